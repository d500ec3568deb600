"""The mixer's hooks into a model, one file each, and what they share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ....pnpmix.mixer.sampling import BatchRows
from ...common.checks import BadInput
from ...common.hooks import Call, Hook, with_options
from ...common.types import Concept

ROWS = "pnpmix_rows"  # in transformer_options: the batch rows of a call that the mixer made
Area = tuple[int, int, int, int]  # height, width, top and left in latent tokens


class ConceptsOnGrid(NamedTuple):
    """The concepts whose objects attention reads, and the latent grid that they are on."""

    concepts: list[Concept]  # with masks of the picture's size
    grid: tuple[int, int]  # height and width of the latent
    areas: dict[object, Area]  # of the conditionings that are limited to one, by their uuid

    @property
    def parts(self) -> set[Area]:
        """All that a chunk of a call may cover: the whole grid, or the area of a conditioning."""
        return {(*self.grid, 0, 0), *self.areas.values()}


def hooked(hooks: Sequence[Hook], call: Call, rows: BatchRows) -> Call:
    """Returns the call with all hooks around it, the first one outermost."""
    for hook in reversed(hooks):
        call = hook.around(call, rows)
    return telling(call, {ROWS: rows})


def telling(call: Call, more: dict) -> Call:
    """Returns the call with more entries in its transformer_options."""
    return lambda options: call(with_options(options, more))


def with_first_patch(options: dict, name: str, patch: Callable) -> dict:
    """Returns the model options with a patch that runs before those of other packs, which may tile the batch."""
    patches = options["transformer_options"].get("patches", {})
    return with_options(options, {"patches": {**patches, name: [patch, *patches.get(name, [])]}})


def check_batch(size: int, rows: BatchRows, chunks: int) -> None:
    """Refuses a batch that is anything but the batch rows of a call, once for each chunk."""
    if size != chunks * len(rows.roles) * (rows.concepts.stop - rows.concepts.start):
        fault = f"one of its patches repeats, tiles or reorders the batch ({size} rows), so that rows cannot be told."
        raise BadInput("Mask Noise Mixer", "model", fault, "Bypass that patch, for example tiled diffusion.")


def areas_of(conds: dict[str, list[dict]], grid: tuple[int, int]) -> dict[object, Area]:
    """Returns uuid → area of the conditionings that ComfyUI has limited to one, clipped as it clips them."""
    areas = {}
    for entry in (entry for entries in conds.values() for entry in entries if "area" in entry):
        height, width, top, left = entry["area"]
        areas[entry["uuid"]] = (min(height, grid[0] - top), min(width, grid[1] - left), top, left)
    return areas


def areas_of_chunks(areas: dict[object, Area], grid: tuple[int, int], options: dict) -> list[Area]:
    """Returns the area of each chunk of a call; a single one where no conditioning is limited.

    Args:
        options: the call's transformer_options.
    """
    everything = (*grid, 0, 0)
    return [areas.get(uuid, everything) for uuid in options["uuids"]] if areas else [everything]
