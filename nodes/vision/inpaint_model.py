"""Load Inpaint Model: LaMa, for Inpaint Background."""

from comfy_api.latest import io
from typing_extensions import override

from ..common.checks import BadInput
from ..common.loading import file_input, importing, load_weights, needs, validate_file
from ..common.types import MASKS_CATEGORY, InpaintModelType, schema

needs("spandrel")
NODE = "Load Inpaint Model"


class PnPMixInpaintModelLoader(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixInpaintModelLoader",
            search_aliases=["lama", "big-lama", "object removal"],
            display_name=NODE,
            category=MASKS_CATEGORY,
            description="Loads LaMa, which removes objects from images.",
            inputs=[file_input("inpaint", tooltip="big-lama.pt, or LaMa as .safetensors, in models/inpaint.")],
            outputs=[InpaintModelType.Output(display_name="inpaint_model", tooltip="For Inpaint Background.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, model_name):
        return validate_file(NODE, "inpaint", model_name)

    @classmethod
    @override
    def execute(cls, model_name) -> io.NodeOutput:
        with importing("spandrel", NODE):
            import spandrel

        weights = load_weights(NODE, "inpaint", model_name)
        remedy = "Use big-lama.pt."
        try:
            model = spandrel.ModelLoader().load_from_state_dict(weights)
        except Exception as error:  # the tests for its many architectures stumble over weights of none of them
            fault = f"{model_name} is of no known architecture ({type(error).__name__})."
            raise BadInput(NODE, "model_name", fault, remedy) from error
        if not isinstance(model, spandrel.MaskedImageModelDescriptor):
            fault = f"{model_name} ({model.architecture.name}) is not an inpainting model."
            raise BadInput(NODE, "model_name", fault, remedy)
        return io.NodeOutput(model.eval())


NODES = [PnPMixInpaintModelLoader]
