"""One of the person's own concepts, and where it goes."""

from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.masks import to_image_size
from ..common.checks import check_latent, check_marks_an_object, check_mask, check_numbers
from ..common.types import CATEGORY, EXPERT, Concept, ConceptsType, LearnedConcept, LearnedType, schema


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
            description="Your own dog, cup or face, and the object of the background that takes its look.",
            inputs=[
                io.Latent.Input("latent", tooltip="Your picture, VAE-encoded, in the size of the background."),
                io.Mask.Input("mask", tooltip="The object of the background that takes this look."),
                ConceptsType.Input("concepts", optional=True, tooltip="The concepts before this one."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Prompt that describes your picture. Without it the Mask Noise Mixer's is used.",
                ),
                io.Int.Input(
                    "seed",
                    default=1,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of this picture's noise. Keep it different from the background's.",
                    **EXPERT,
                ),
                io.String.Input(
                    "name", default="", tooltip="A name for messages, such as dog. Without it the node's title."
                ),
                io.Mask.Input(
                    "object_mask",
                    optional=True,
                    tooltip="Where the object is in your picture. Wired, only the object's look is read and not what "
                    "surrounds it; adain of Guided Appearance Attention needs it.",
                ),
                LearnedType.Input(
                    "learned",
                    optional=True,
                    tooltip="The same concept, learned: who it is, where your picture says how it looks. Blend puts it "
                    "into the Mask Noise Mixer's prompt, and wired here it acts on this concept alone.",
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
        learned: LearnedConcept | None = None,
    ) -> io.NodeOutput:
        title = own_title(cls.hidden.unique_id, cls.hidden.prompt) or ""
        name = name or title or str(len(concepts) + 1)
        node = f"Concept '{name}'"
        check_numbers(node, seed=seed)
        samples = check_latent(node, "latent", latent)
        mask = check_mask(node, "mask", mask, "Mark the object of the background in white.")
        if object_mask is not None:
            object_mask = check_mask(node, "object_mask", object_mask, "Mark the object of your picture in white.")
            cells = to_image_size(object_mask, *samples.shape[-2:])
            check_marks_an_object(node, "object_mask", samples[0], cells, near=0.1 * samples.std().item())
        title = title if title != name else ""
        concept = Concept(samples, mask, positive, seed, name, object_mask, cls.hidden.unique_id, learned, title)
        return io.NodeOutput([*concepts, concept])


def own_title(node_id: str, prompt: dict) -> str | None:
    """What the person called the node in the editor; None where that tells it from no other Concept."""
    concepts = {key: node for key, node in prompt.items() if node["class_type"] == "PnPMixConcept"}
    titles = {key: (node.get("_meta") or {}).get("title") for key, node in concepts.items()}
    own = titles.get(node_id)
    return own if own != "Concept" and list(titles.values()).count(own) == 1 else None


NODES = [PnPMixConcept]
