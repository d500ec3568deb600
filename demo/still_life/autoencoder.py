"""The demo's autoencoder: pictures of eight pixels to a latent cell, across and down."""

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 8  # of a latent
DOWNSCALE = 8  # pixels to a cell
WIDTHS = (48, 96, 128)


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.c = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.c(x) + x)


def down(channels: int, to: int) -> nn.Conv2d:
    return nn.Conv2d(channels, to, 3, stride=2, padding=1)


def up(channels: int, to: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, to, 3, padding=1))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        a, b, c = WIDTHS
        self.encoder = nn.Sequential(
            *[nn.PixelUnshuffle(2), nn.Conv2d(12, a, 3, padding=1), Block(a)],
            *[down(a, b), Block(b), Block(b)],
            *[down(b, c), Block(c), Block(c), nn.Conv2d(c, CHANNELS, 3, padding=1)],
        )
        self.decoder = nn.Sequential(
            *[nn.Conv2d(CHANNELS, c, 3, padding=1), nn.ReLU(), Block(c), Block(c)],
            *[up(c, b), Block(b), Block(b)],
            *[up(b, a), Block(a), Block(a)],
            *[nn.Conv2d(a, 12, 3, padding=1), nn.PixelShuffle(2)],
        )

    def encode(self, images: Tensor) -> Tensor:
        """Encodes (B, H, W, 3) pictures in 0..1 → (B, 8, H/8, W/8) latents, roughly of mean 0 and deviation 1."""
        return self.encoder(images.movedim(-1, 1) * 2 - 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Inverts `encode`, nearly, and limits the pictures to 0..1."""
        return (self.decoder(latents).movedim(1, -1) / 2 + 0.5).clamp(0, 1)
