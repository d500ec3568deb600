"""The things of `own_things`, learned once for the demo model (LaTexBlend) and kept."""

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

FOLDER = Path(__file__).parent / "concepts"


def load_concept(noun: str) -> dict[str, Tensor]:
    """Returns a concept's tensors, which `pnpmix.latexblend.bank.from_tensors` takes.

    Raises:
        ValueError: there is none of this noun, or the file is damaged.
    """
    path = FOLDER / f"{noun}.safetensors"
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        fault = f"{path} is missing, damaged or cut short ({error})."
        raise ValueError(f"{fault} Get it again, with git checkout.") from error
