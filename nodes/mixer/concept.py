"""Concept: an image of the user's own object, and its target mask in the scene."""

from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.masks import to_image_size
from ..common.checks import check_latent, check_marks_an_object, check_mask, check_numbers
from ..common.types import CATEGORY, EXPERT, Concept, ConceptsType, TrainedConcept, TrainedType, schema


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
            description="Your own dog, cup or face, and the object of the scene that it replaces.",
            inputs=[
                io.Latent.Input("latent", tooltip="The concept image, VAE-encoded, at the size of the scene."),
                io.Mask.Input("mask", tooltip="The target mask: the object of the scene to be replaced."),
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
    ) -> io.NodeOutput:
        title = own_title(cls.hidden.unique_id, cls.hidden.prompt) or ""
        name = name or title or str(len(concepts) + 1)
        node = f"Concept '{name}'"
        check_numbers(node, seed=seed)
        samples = check_latent(node, "latent", latent)
        mask = check_mask(node, "mask", mask, "Paint the object of the scene.")
        if object_mask is not None:
            object_mask = check_mask(node, "object_mask", object_mask, "Paint the object of the concept image.")
            cells = to_image_size(object_mask, *samples.shape[-2:])
            check_marks_an_object(node, "object_mask", samples[0], cells, near=0.1 * samples.std().item())
        title = title if title != name else ""
        concept = Concept(samples, mask, positive, seed, name, object_mask, cls.hidden.unique_id, learned, title)
        return io.NodeOutput([*concepts, concept])


def own_title(node_id: str, prompt: dict) -> str | None:
    """Returns the node's title in the editor; None where no other Concept differs by it."""
    concepts = {key: node for key, node in prompt.items() if node["class_type"] == "PnPMixConcept"}
    titles = {key: (node.get("_meta") or {}).get("title") for key, node in concepts.items()}
    own = titles.get(node_id)
    return own if own != "Concept" and list(titles.values()).count(own) == 1 else None


NODES = [PnPMixConcept]
