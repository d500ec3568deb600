"""Latents and masks that the tests draw."""

import numpy as np
import torch

HEIGHT, WIDTH = 96, 128  # image pixels, not square


def latent(seed: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """(1, 4, height / 8, width / 8)."""
    return torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))


def ellipse(k: int) -> np.ndarray:
    """(HEIGHT, WIDTH) mask whose outline cuts through latent cells; 0 and 1 are apart, 2 overlaps both."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    row, column = [(40, 30), (56, 96), (48, 64)][k]
    return ((((y - row) / 27) ** 2 + ((x - column) / 23) ** 2) < 1).astype(np.float32)


def mask_batch(k: int) -> torch.Tensor:
    """ComfyUI's MASK."""
    return torch.from_numpy(ellipse(k))[None]
