"""PSNR, SSIM and LPIPS of a scene outside the masks.

Images are (H, W, 3) in 0..1, masks (H, W), 1 where a change is wanted.
"""

import importlib
import importlib.util
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAME = 1e-10  # mean squared error below which pictures count as the same: 100 dB
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
LEAST = 32  # pixels of a side, below which LPIPS's network has nothing left to compare
ALEXNET = "alexnet-owt-7be5be79.pth"


def psnr(picture: Tensor, original: Tensor, mask: Tensor) -> float:
    """Returns the peak signal-to-noise ratio of the pixels outside the mask, in dB; 100 where they are identical.

    Raises:
        ValueError: the mask covers everything.
    """
    outside = mask < 0.5
    if not outside.any():
        raise ValueError("the mask covers the whole image.")
    error = (picture.double() - original.double())[outside].square().mean()
    return -10 * float(error.clamp(min=SAME).log10())


def ssim(picture: Tensor, original: Tensor, mask: Tensor) -> float:
    """Returns the structural similarity (Wang et al. 2004), -1..1: the mean over the windows outside the mask.

    Raises:
        ValueError: there is no such window.
    """
    if min(mask.shape) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} pixels a side.")
    seen = F.max_pool2d((mask >= 0.5).float()[None], WINDOW, stride=1)[0]
    if seen.all():
        raise ValueError(f"the mask leaves no room for SSIM's window of {WINDOW} pixels.")
    return float(ssim_map(picture, original)[seen == 0].mean())


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Returns the SSIM of each window, (H - 10, W - 10), of two images (H, W, 3), the mean over the channels."""
    x, y = (p.double().movedim(-1, 0)[:, None] for p in (a, b))
    mean_x, mean_y = window_mean(x), window_mean(y)
    variance_x, variance_y = window_mean(x * x) - mean_x**2, window_mean(y * y) - mean_y**2
    covariance = window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * covariance + K2**2) / (variance_x + variance_y + K2**2)
    return (luminance * structure).mean((0, 1))


def window_mean(x: Tensor) -> Tensor:
    """Averages (n, 1, H, W) over a Gaussian window, to (n, 1, H - 10, W - 10)."""
    weights = torch.exp(-0.5 * ((torch.arange(WINDOW).to(x) - WINDOW // 2) / SIGMA) ** 2)
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def lpips_network() -> nn.Module:
    """Loads LPIPS (arXiv 1801.03924) on AlexNet, from the package lpips and torch's own cache.

    Raises:
        FileNotFoundError: the package or the weights of AlexNet are missing; the message says what to do.
    """
    if importlib.util.find_spec("lpips") is None:
        raise FileNotFoundError("the package lpips is not installed.")
    path = os.path.join(torch.hub.get_dir(), "checkpoints", ALEXNET)
    if not os.path.isfile(path):  # which the package would download without asking
        raise FileNotFoundError(f"put https://download.pytorch.org/models/{ALEXNET} into {os.path.dirname(path)}.")
    network = importlib.import_module("lpips").LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network.net.load_state_dict(
        {name: weights["features." + name.split(".", 1)[1]] for name in network.net.state_dict()}
    )
    return network.eval().requires_grad_(False)


def lpips(network: nn.Module, picture: Tensor, original: Tensor, mask: Tensor) -> float:
    """Returns the perceptual distance of two images, 0 if identical, with the original's pixels under the mask in both.

    Raises:
        ValueError: the images are too small for the network.
    """
    if min(mask.shape) < LEAST:
        raise ValueError(f"LPIPS needs images of at least {LEAST} pixels a side.")
    kept = torch.where((mask >= 0.5)[..., None], original, picture)
    a, b = (p.float().movedim(-1, 0)[None] * 2 - 1 for p in (kept, original))
    return float(network(a, b))
