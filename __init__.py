"""PnP-MIX for ComfyUI: several of your own concepts in a scene you chose, without training."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .nodes.concept import PnPMixConcept
from .nodes.demo import PnPMixDemoModel, PnPMixDemoScene
from .nodes.grounded_mask import PnPMixGroundedMask
from .nodes.grounding_models import BERT, PnPMixGroundingDinoLoader, PnPMixSamLoader
from .nodes.inpaint import PnPMixInpaintBackground, PnPMixInpaintModelLoader
from .nodes.inversion import PnPMixDDPMInvert, PnPMixLoadInversion, PnPMixSaveInversion
from .nodes.loading import MODEL_FILES, register_folder
from .nodes.mixer import PnPMixSampler
from .nodes.patches import PnPMixAppearance, PnPMixDilution
from .nodes.picker import PnPMixBackgroundPicker

WEB_DIRECTORY = "./js"

for folder in ("grounding-dino", "sams", "inpaint"):
    register_folder(folder, MODEL_FILES)
register_folder(BERT, set())


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
            PnPMixGroundingDinoLoader,
            PnPMixSamLoader,
            PnPMixGroundedMask,
            PnPMixInpaintModelLoader,
            PnPMixInpaintBackground,
            PnPMixBackgroundPicker,
            PnPMixDemoModel,
            PnPMixDemoScene,
        ]


async def comfy_entrypoint() -> PnPMixExtension:
    return PnPMixExtension()
