"""Grounded Mask: masks from text, with Grounding DINO and Segment Anything."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.masks import gaussian_blur, grow
from ..common.checks import BadInput, check_choice, check_image, check_numbers, check_text
from ..common.types import EXPERT, MASKS_CATEGORY, DetectorType, SegmenterType, schema

NODE = "Grounded Mask"
PICK = ["best", "all", "each", "in order"]


class PnPMixGroundedMask(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixGroundedMask",
            search_aliases=[
                "grounded sam",
                "segment anything",
                "mask from text",
                "text to mask",
                "grounding dino",
                "background mask",
            ],
            display_name=NODE,
            category=MASKS_CATEGORY,
            description="Finds objects by text and outlines them (Grounding DINO and Segment Anything).",
            inputs=[
                io.Image.Input("image", tooltip="The image to search. A batch gives a batch of masks."),
                DetectorType.Input("detector", tooltip="From Load Grounding DINO."),
                SegmenterType.Input("segmenter", tooltip="From Load SAM. Each image is encoded once for all nodes."),
                io.String.Input("prompt", default="", tooltip="What to find, such as: dog. Several: dog . red cup"),
                io.Float.Input(
                    "box_threshold",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Minimum score of a detection. Lower: finds more, also wrong objects.",
                ),
                io.Float.Input(
                    "text_threshold",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Minimum score for a word to count as a match. Lower: longer labels.",
                    **EXPERT,
                ),
                io.Combo.Input(
                    "pick",
                    options=PICK,
                    default="best",
                    tooltip="best: the one with the highest score. all: one mask that joins all objects. each: a mask "
                    "for each object, from left to right. in order: a mask for each phrase, as the prompt orders them; "
                    "a phrase that occurs twice takes two objects, from left to right. All but best stop with an "
                    "error if a phrase finds nothing.",
                ),
                io.Int.Input(
                    "expand", default=0, min=0, max=512, tooltip="Grows the mask on each side, in image pixels."
                ),
                io.Int.Input(
                    "feather", default=0, min=0, max=512, tooltip="Softens the mask's border, in image pixels."
                ),
                io.Int.Input(
                    "number",
                    optional=True,
                    default=0,
                    min=0,
                    max=100,
                    tooltip="With each and in order: only the mask with this number, counted from 1. 0: all of them.",
                    **EXPERT,
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="The objects: for Concept and Inpaint Background."),
                io.Mask.Output(display_name="background", tooltip="Everything else: 1 - mask."),
                io.Image.Output(display_name="preview", tooltip="Boxes, labels, scores and masks on the image."),
            ],
        )

    @classmethod
    @override
    def execute(
        cls, image, detector, segmenter, prompt, box_threshold, text_threshold, pick, expand, feather, number=0
    ) -> io.NodeOutput:
        from ...pnpmix.vision.drawing import draw_objects

        check_numbers(NODE, box_threshold=box_threshold, text_threshold=text_threshold, expand=expand, feather=feather)
        check_numbers(NODE, number=number)
        check_image(NODE, "image", image)
        check_choice(NODE, "pick", pick, PICK)
        height, width = image.shape[1:3]
        if max(height, width) > 30 * min(height, width):  # Grounding DINO would have too few tokens
            remedy = "Crop it to at most 30 times its shorter side."
            raise BadInput(NODE, "image", f"{width} x {height} is too narrow.", remedy)
        progress = comfy.utils.ProgressBar(2 * len(image))
        found = []
        for index in range(len(image)):
            objects = search(detector, image, index, prompt, box_threshold, text_threshold, pick)
            found.append(numbered(objects, number) if number and pick in ("each", "in order") else objects)
            progress.update(1)

        masks, previews = [], []
        for index, objects in enumerate(found):
            outlines = segmenter.masks(image, index, torch.stack([x.box for x in objects]))
            previews.append(draw_objects(image[index, ..., :3].float().cpu(), objects, outlines))
            masks.append(outlines.amax(0, keepdim=True) if pick == "all" else outlines)
            if not masks[-1].any((1, 2)).all():
                fault = f"SAM outlines nothing in the box of '{objects[0].phrase}'."
                raise BadInput(NODE, "segmenter", fault, "Use other words, or a larger SAM model.")
            progress.update(1)
        mask = grow(torch.cat(masks), expand)
        if feather > 0:
            mask = torch.stack([gaussian_blur(x, feather / 2) for x in mask])
        return io.NodeOutput(mask, 1 - mask, torch.stack(previews))


def search(detector, images, index: int, prompt: str, box_threshold: float, text_threshold: float, pick: str) -> list:
    """Returns the objects in one image of a batch, from left to right, or in the order of the prompt.

    Raises:
        BadInput: a phrase finds nothing.
    """
    from ...pnpmix.vision.detection import in_order_of

    named, objects, best = look_for(NODE, detector, images, index, prompt, box_threshold, text_threshold)
    missing = [phrase for phrase, score in best.items() if score <= max(box_threshold, text_threshold)]
    fault = None
    if not objects or (missing and pick != "best"):
        listed = ", ".join(f"'{phrase}' (best score {best[phrase]:.2f})" for phrase in missing or best)
        fault = f"not found: {listed}; box_threshold is {box_threshold:g}, text_threshold {text_threshold:g}."
    elif pick == "in order":
        phrases = list(best)
        ordered = in_order_of([phrases.index(phrase) for phrase in named], objects)
        short = next((phrase for phrase, found in zip(named, ordered, strict=True) if found is None), None)
        if short is not None:
            there = named.count(short) - sum(x is None for p, x in zip(named, ordered, strict=True) if p == short)
            fault = f"'{short}' occurs {named.count(short)} times, and {there} of it were found."
        else:
            objects = ordered
    if fault is not None:
        if len(images) > 1:
            fault = f"in image {index + 1} of {len(images)} {fault}"
        raise BadInput(NODE, "prompt", fault, "Lower the thresholds, or use other words.")
    return [max(objects, key=lambda found: found.score)] if pick == "best" else objects


def numbered(objects: list, number: int) -> list:
    """Returns the one object with this number, counted from 1."""
    if number > len(objects):
        raise BadInput(NODE, "number", f"it is {number}, and there are {len(objects)} objects.", "Lower it.")
    return [objects[number - 1]]


def look_for(
    node: str, detector, images, index: int, prompt: str, box_threshold: float, text_threshold: float
) -> tuple[list[str], list, dict[str, float]]:
    """Returns the phrases of the prompt, all objects in one image of a batch, and each phrase's best score."""
    from ...pnpmix.vision.detection import MAX_TOKENS, found_objects, split_phrases, tokenize

    named = split_phrases(prompt) if isinstance(prompt, str) else []
    phrases = list(dict.fromkeys(named))
    if not phrases:
        raise BadInput(node, "prompt", "it has no words.", "Name what to find, such as: dog")
    check_text(node, "prompt", prompt)
    tokenizer = detector.model.tokenizer
    ids, owners = tokenize(tokenizer, phrases)
    for k in set(range(len(phrases))) - set(owners):  # of signs alone that nobody sees
        raise BadInput(node, "prompt", f"'{phrases[k]}' has no words.", "Name what to find, such as: dog")
    if len(ids) > MAX_TOKENS:
        fault = f"it has {len(ids)} tokens."
        raise BadInput(node, "prompt", fault, f"Name fewer objects, in at most {MAX_TOKENS} tokens.")

    comfy.model_management.throw_exception_if_processing_interrupted()
    scores, boxes = detector.scores_and_boxes(images, index, ids)
    objects, best = found_objects(scores, boxes, tokenizer, phrases, box_threshold, text_threshold)
    return named, objects, dict(zip(phrases, best, strict=True))


NODES = [PnPMixGroundedMask]
