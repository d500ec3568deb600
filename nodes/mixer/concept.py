"""Concept: an image of the user's own object, and its target mask in the scene."""

from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.masks import to_image_size
from ...pnpmix.vision.framing import cut_masks
from ..common.checks import BadInput, check_latent, check_marks_an_object, check_mask, check_numbers, masks_of
from ..common.types import (
    CATEGORY,
    EXPERT,
    Concept,
    ConceptsType,
    Place,
    PlaceType,
    TrainedConcept,
    TrainedType,
    schema,
)


class PnPMixConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixConcept",
            search_aliases=[
                "multi concept",
                "multi-concept",
                "multi subject",
                "subject driven",
                "product placement",
                "character consistency",
                "personalization",
                "subject",
                "face",
                "identity",
                "reference image",
                "ip adapter",
                "swap object",
                "replace object",
                "pnp-mix",
            ],
            display_name="Concept",
            category=CATEGORY,
            description="Your own dog, cup or face, and the object of the scene that it replaces.",
            inputs=[
                io.Latent.Input("latent", tooltip="The concept image, VAE-encoded, at the size of the scene."),
                io.Mask.Input(
                    "mask",
                    tooltip="The target mask: the object of the scene to be replaced. Of a batch, the mask at this "
                    "concept's position in the chain.",
                ),
                ConceptsType.Input("concepts", optional=True, tooltip="The concepts before this one."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Prompt that describes the concept image. Without it the Mask Noise Mixer's is used.",
                ),
                io.Int.Input(
                    "seed",
                    default=1,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the concept image's noise. Keep it different from the scene's.",
                    **EXPERT,
                ),
                io.String.Input(
                    "name", default="", tooltip="A name for messages, such as dog. Without it the node's title."
                ),
                io.Mask.Input(
                    "object_mask",
                    optional=True,
                    tooltip="The object in the concept image. If wired, only the object's look is read, not its "
                    "surroundings; adain of Guided Appearance Attention needs it.",
                ),
                TrainedType.Input(
                    "learned",
                    optional=True,
                    tooltip="The same concept as a trained concept, for its identity. Blend puts it into the Mask "
                    "Noise "
                    "Mixer's prompt; wired here, it acts only on this concept.",
                ),
                PlaceType.Input(
                    "place",
                    optional=True,
                    tooltip="From the scene's Fit Picture, if mask covers the whole photo: crops it as the scene was.",
                ),
            ],
            outputs=[
                ConceptsType.Output(display_name="concepts", tooltip="For the next Concept or the Mask Noise Mixer.")
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def execute(
        cls,
        latent,
        mask,
        concepts=(),
        positive=None,
        seed=1,
        name="",
        object_mask=None,
        learned: TrainedConcept | None = None,
        place: Place | None = None,
    ) -> io.NodeOutput:
        title = own_title(cls.hidden.unique_id, cls.hidden.prompt) or ""
        name = name or title or str(len(concepts) + 1)
        node = f"Concept '{name}'"
        check_numbers(node, seed=seed)
        samples = check_latent(node, "latent", latent)
        mask = check_mask(node, "mask", of_position(node, mask, len(concepts)), "Paint the object of the scene.")
        if place is not None:
            mask = in_crop(node, mask, place)
        if object_mask is not None:
            object_mask = check_mask(node, "object_mask", object_mask, "Paint the object of the concept image.")
            cells = to_image_size(object_mask, *samples.shape[-2:])
            check_marks_an_object(node, "object_mask", samples[0], cells, near=0.1 * samples.std().item())
        title = title if title != name else ""
        concept = Concept(samples, mask, positive, seed, name, object_mask, cls.hidden.unique_id, learned, title)
        return io.NodeOutput([*concepts, concept])


def of_position(node: str, mask: Tensor, position: int) -> Tensor:
    """Returns a MASK, or of a batch the mask at a concept's position in the chain."""
    masks = masks_of(node, "mask", mask)
    if len(masks) == 1:
        return masks
    if position >= len(masks):
        fault = f"it is a batch of {len(masks)}, and this is concept {position + 1}."
        raise BadInput(node, "mask", fault, "Wire a mask for each concept, in the order of the chain.")
    return masks[position : position + 1]


def in_crop(node: str, mask: Tensor, place: Place) -> Tensor:
    """Returns a mask of the photo (H, W), or of the crop, as a mask of the crop."""
    if mask.shape not in (place.photo, place.size):
        (height, width), (rows, columns) = mask.shape, place.photo
        fault = f"it is {width} x {height}, but place comes from a photo of {columns} x {rows}."
        raise BadInput(node, "mask", fault, "Wire a mask of the photo that went into Fit Picture.")
    return mask if mask.shape == place.size else cut_masks(mask[None], place.frame, place.size)[0]


def own_title(node_id: str, prompt: dict) -> str | None:
    """Returns the node's title in the editor; None where no other Concept differs by it."""
    concepts = {key: node for key, node in prompt.items() if node["class_type"] == "PnPMixConcept"}
    titles = {key: (node.get("_meta") or {}).get("title") for key, node in concepts.items()}
    own = titles.get(node_id)
    return own if own != "Concept" and list(titles.values()).count(own) == 1 else None


NODES = [PnPMixConcept]
