"""The preview of the concepts that the editor shows when a sampler starts; js/concept_overlay.js draws it."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from latent_preview import Latent2RGBPreviewer
from server import PromptServer
from torch import Tensor

from ...pnpmix.vision.drawing import color, draw_masks, overlaps
from .messages import thumbnails
from .types import Concept, ConductedConcept


def concept_overlay(concepts: Sequence[Concept | ConductedConcept], background: Tensor, latent_format) -> dict:
    """Returns the concepts' colors, a preview of the scene's latent (C, H, W) with the masks, and their overlaps."""
    masks = torch.stack([concept.mask for concept in concepts]) >= 0.5
    picture = draw_masks(rough_picture(background, latent_format, masks.shape[1:]), masks)
    return {
        "picture": thumbnails(picture[None], longest=512)[0],
        "concepts": [{"node": x.node_id, "name": x.name, "color": color(k)} for k, x in enumerate(concepts)],
        "overlaps": overlaps(masks),
    }


def show_at_once(node_id: str, overlay: dict) -> None:
    """Sends it to the editor before the node is done, which is when ComfyUI sends what a node returns."""
    server = PromptServer.instance
    server.send_sync("pnpmix.concepts", {"node": node_id, "overlay": overlay}, server.client_id)


def rough_picture(latent: Tensor, latent_format, size: Sequence[int]) -> Tensor:
    """Returns what ComfyUI's fastest preview shows of a latent, (*size, 3)."""
    factors = latent_format.latent_rgb_factors
    if factors is None:
        return torch.full((*size, 3), 0.5)
    names = ("latent_rgb_factors_bias", "latent_rgb_factors_reshape")  # the second on newer hosts
    others = [getattr(latent_format, name) for name in names if hasattr(latent_format, name)]
    preview = Latent2RGBPreviewer(factors, *others).decode_latent_to_preview(latent[None])
    pixels = torch.from_numpy(np.asarray(preview).astype(np.float32) / 255).movedim(-1, 0)[None]
    return F.interpolate(pixels, list(size), mode="bilinear")[0].movedim(0, -1)
