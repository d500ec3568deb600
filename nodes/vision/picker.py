"""Background Picker: one of several candidate images."""

from comfy_api.latest import io
from typing_extensions import override

from ..common.checks import BadInput, check_image, check_numbers
from ..common.messages import thumbnails
from ..common.types import CATEGORY, schema

NODE = "Background Picker"


class PnPMixBackgroundPicker(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixBackgroundPicker",
            search_aliases=["pick image", "choose image", "select from batch", "candidates"],
            display_name=NODE,
            category=CATEGORY,
            description="Passes on the candidate that you choose. Changing it only reruns what follows.",
            inputs=[
                io.Image.Input("images", tooltip="The candidates, as a batch."),
                io.Int.Input("index", default=0, min=0, max=4095, tooltip="Which candidate; 0 is the first."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The chosen image."),
                io.Int.Output(display_name="index", tooltip="Its place in the batch."),
            ],
            is_output_node=True,  # shows its pictures while nothing follows it yet, and again after a reload
        )

    @classmethod
    @override
    def execute(cls, images, index) -> io.NodeOutput:
        check_numbers(NODE, index=index)
        check_image(NODE, "images", images)
        if not 0 <= index < len(images):
            fault = f"{index} is not in the batch of {len(images)}."
            raise BadInput(NODE, "index", fault, f"Choose 0 to {len(images) - 1}.")
        shown = {"candidates": thumbnails(images), "chosen": [index]}
        return io.NodeOutput(images[index : index + 1], index, ui=shown)


NODES = [PnPMixBackgroundPicker]
