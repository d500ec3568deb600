"""Segmentation Similarity, Concept Conductor's measure (arXiv 2408.03632, appendix A.3, algorithm 2).

An image that shows two objects as one, or one twice, scores high by its whole embedding. SegSim compares each concept
with the objects that are detected in the image.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .similarity import cosines


class Subjects(NamedTuple):
    """How many objects an image shows of those that a prompt names."""

    prompt: str
    wanted: int  # concepts with this prompt
    found: int


def segsim(segments: Tensor, references: Sequence[Sequence[Tensor]]) -> list[float]:
    """Returns how similar each concept is to the most similar object of the image, 0..1; their mean is SegSim.

    Args:
        segments: (g, d) embeddings of the image's objects, found by the prompts of all concepts.
        references: for each concept, for each of its images, (r, d) of the objects found in it by its prompt.
    """
    return [sum(most_alike(own, segments) for own in pictures) / len(pictures) for pictures in references]


def most_alike(own: Tensor, segments: Tensor) -> float:
    """Returns the largest max(0, cos) over all pairs of (r, d) and (g, d); 0 where one has none."""
    if len(own) == 0 or len(segments) == 0:
        return 0.0
    return max(0.0, float(cosines(own, segments).max()))


def count_subjects(prompts: Sequence[str], found: dict[str, int]) -> list[Subjects]:
    """Returns how many objects were wanted and found, for each different prompt.

    Args:
        prompts: of the concepts; two dogs have the same one.
        found: prompt → number of objects found by it.
    """
    return [Subjects(prompt, wanted, found[prompt]) for prompt, wanted in Counter(prompts).items()]


def omission(subjects: Sequence[Subjects]) -> bool:
    """Tells whether there are fewer objects than concepts, of any prompt."""
    return any(x.found < x.wanted for x in subjects)


def redundancy(subjects: Sequence[Subjects]) -> bool:
    """Tells whether there are more objects than concepts, of any prompt."""
    return any(x.found > x.wanted for x in subjects)
