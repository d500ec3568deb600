"""PnP-MIX for ComfyUI: several of your own concepts in a scene you chose, without training."""

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .nodes.common.loading import register_folders

WEB_DIRECTORY = "./js"
PARTS = (  # files of nodes/, each of which ends in a list NODES
    "mixer.inversion",
    "mixer.inversion_files",
    "mixer.concept",
    "mixer.settings",
    "mixer.mixing",
    "conductor.layout",
    "conductor.concepts",
    "conductor.settings",
    "conductor.conductor",
    "latexblend.training",
    "latexblend.concept_files",
    "latexblend.blending",
    "latexblend.guidance",
    "vision.detection",
    "vision.segmentation",
    "vision.grounded_mask",
    "vision.inpaint_model",
    "vision.inpainting",
    "vision.framing",
    "vision.picker",
    "metrics.similarity",
    "metrics.segsim",
    "metrics.background",
    "metrics.plot",
    "demo",
)

register_folders()


def nodes_of(part: str) -> list[type[io.ComfyNode]]:
    """Returns the nodes of a part; none where a package that only it needs is missing or broken."""
    try:
        return import_module(f".nodes.{part}", __name__).NODES
    except Exception as error:
        logging.warning("PnP-MIX: the nodes of nodes/%s are left out: %s", part.replace(".", "/") + ".py", error)
        return []


class PnPMixExtension(ComfyExtension):
    """The pack as ComfyUI's V3 interface asks for it."""

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for part in PARTS for node in nodes_of(part)]


async def comfy_entrypoint() -> PnPMixExtension:
    """Returns the extension; ComfyUI calls it."""
    return PnPMixExtension()
