"""PnP-MIX for ComfyUI: several of your own concepts in a scene you chose, without training."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .nodes.concept import PnPMixConcept
from .nodes.inversion import PnPMixDDPMInvert, PnPMixLoadInversion, PnPMixSaveInversion
from .nodes.mixer import PnPMixSampler
from .nodes.patches import PnPMixAppearance, PnPMixDilution


class PnPMixExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            PnPMixDDPMInvert,
            PnPMixSaveInversion,
            PnPMixLoadInversion,
            PnPMixConcept,
            PnPMixAppearance,
            PnPMixDilution,
            PnPMixSampler,
        ]


async def comfy_entrypoint() -> PnPMixExtension:
    return PnPMixExtension()
