"""Training of h_c: a trainable flow for the concept's words beside a frozen one for all others."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masks import weighted

TEMPLATES = (
    "{}",
    "a {}",
    "photo of {}",
    "a photo of {}",
    "a photo of a {}",
    "a fancy photo of a {}",
    "A close-up, detailed photo of {}",
)
EXTRACTED_FROM = TEMPLATES[2]
WEIGHT_DECAY, MAX_NORM = 0.01, 1.0
CONCEPT_WEIGHT = 4.0  # of the concept's loss beside that of its class
TIMESTEPS = 1000
SMALL, MIDDLE = 1 / 3, 0.6  # shares of the frame: how small a photo is shown, and below which on gray
GRAY = 0.5  # which for the VAE is 0
ZOOM = (1.2, 1.4)

Delta = tuple[Tensor, ...]  # of one projection: (inner, width), or its factors (inner, rank) and (rank, width)


class Diverged(Exception):
    """The loss was NaN or infinite at `step`."""

    def __init__(self, step: int):
        super().__init__(f"the loss is NaN or infinite at step {step}")
        self.step = step


class Draw(NamedTuple):
    """The random choices of one step. Row 0 is of the concept, row 1, if present, of its class."""

    concept_template: int
    base_template: int
    view: int
    class_picture: int
    timesteps: Tensor  # (rows,)
    noise: Tensor  # (rows, C, H, W)


def new_delta(inner: int, width: int, rank: int, generator: torch.Generator) -> Delta:
    """Returns a change of zero, in float32. `rank` 0: of full rank."""
    if rank == 0:
        return (torch.zeros(inner, width),)
    down = torch.randn((rank, width), generator=generator) * width**-0.5
    return torch.zeros(inner, rank), down


def apply_delta(delta: Delta, x: Tensor) -> Tensor:
    """Returns what a trained projection adds to the frozen one's output, for (..., width)."""
    for matrix in reversed(delta):
        x = F.linear(x.to(matrix), matrix)
    return x


def training_features(
    projected: Tensor, delta: Delta, context: Tensor, first: Sequence[int], length: int, concept_rows: int
) -> Tensor:
    """Returns K, or V, of one layer for a step of training.

    In rows of the concept, h_c (the last `length` tokens of the context through the trained projection) takes its slot
    in h_b, everything else through the frozen one; so nothing but h_c can learn. In the rows after them, of the class,
    every token goes through the trained projection.

    Args:
        projected: (B, tokens + length, inner), the frozen projection of the context.
        context: (B, tokens + length, width); in concept rows the concept flow's slot follows the base flow's prompt.
        first: of each concept row, the first token of its slot.

    Returns:
        (B, tokens, inner)
    """
    tokens = context.shape[1] - length
    features = projected[:, :tokens].clone()
    own = projected[:concept_rows, tokens:] + apply_delta(delta, context[:concept_rows, tokens:]).to(projected)
    for row, start in enumerate(first):
        features[row, start : start + length] = own[row]
    if concept_rows < len(context):
        change = apply_delta(delta, context[concept_rows:, :tokens]).to(projected)
        features = torch.cat([features[:concept_rows], features[concept_rows:] + change])
    return features


def prediction_loss(denoised: Tensor, x0: Tensor, sigma: Tensor, mask: Tensor, predicts_v: bool) -> Tensor:
    """Returns the mean squared error (B,) of the predicted eps, or v, where the mask (B, 1, H, W) is 1."""
    weight = (1 + sigma**2) / sigma**2 if predicts_v else 1 / sigma**2
    error = weighted((denoised.float() - x0).square().mean(1, keepdim=True), mask)
    return weight * error.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)


def total_loss(losses: Tensor, prior_weight: float) -> Tensor:
    """Returns the loss () of a step from the losses of its rows (B,).

    The authors' code adds the concept's error up over the 4 channels of a latent, and takes the mean for its class.
    Without a class picture it takes the mean for the concept as well. Clipping of gradients sees the difference.
    """
    return losses[0] if len(losses) == 1 else CONCEPT_WEIGHT * losses[0] + prior_weight * losses[1]


def step_generator(seed: int, step: int) -> torch.Generator:
    """Returns a generator that draws the same for a step, whether or not training was interrupted before it."""
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + step) % 2**63)


def draw(seed: int, step: int, views: int, class_pictures: int, shape: torch.Size) -> Draw:
    """Draws the random choices of a step.

    Args:
        shape: of a latent (C, H, W).
    """
    generator = step_generator(seed, step)

    def one_of(count: int) -> int:
        return int(torch.randint(max(count, 1), (1,), generator=generator))

    rows = 2 if class_pictures else 1
    return Draw(
        one_of(len(TEMPLATES)),
        one_of(len(TEMPLATES)),
        one_of(views),
        one_of(class_pictures),
        torch.randint(TIMESTEPS, (rows,), generator=generator),
        torch.randn((rows, *shape), generator=generator),
    )


def augment(picture: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns a view of a square photo (3, S, S), and the mask (S, S) of the photo in it.

    Half of them are mirrored. A third are cut out of a magnified photo; of the others, those drawn to be smaller than
    MIDDLE stand on gray, and the rest fill the frame.
    """
    size = picture.shape[-1]
    chance, share, x, y = torch.rand(4, generator=generator).tolist()
    if torch.rand(1, generator=generator) < 0.5:
        picture = picture.flip(-1)
    mask = torch.ones(size, size)
    if chance < 1 / 3:
        zoomed = round(size * (ZOOM[0] + (ZOOM[1] - ZOOM[0]) * share))
        left, top = (round((zoomed - size) * offset) for offset in (x, y))
        return resized(picture, zoomed)[:, top : top + size, left : left + size], mask
    share = SMALL + (1 - SMALL) * share
    if share >= MIDDLE:
        return picture, mask
    small = max(round(size * share), 1)
    left, top = (round((size - small) * offset) for offset in (x, y))
    there = slice(top, top + small), slice(left, left + small)
    view = torch.full_like(picture, GRAY)
    view[(slice(None), *there)], mask = resized(picture, small), torch.zeros(size, size)
    mask[there] = 1
    return view, mask


def mask_on_latent(mask: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Scales the mask of a view (S, S) to (h, w), without the latent tokens at the photo's border.

    The VAE mixes these with the gray around the photo; the authors' code leaves them out too.
    """
    if mask.all():
        return mask.new_ones(grid)
    inside = mask.new_zeros(grid)
    spans = []
    for along, count in zip((mask.any(1), mask.any(0)), grid, strict=True):
        first, last = along.nonzero()[[0, -1], 0].tolist()
        pixels = len(along) // count  # of a latent token
        spans.append(slice(first // pixels + 1, max((last + 1) // pixels - 1, 0)))
    inside[tuple(spans)] = 1
    return inside


def resized(picture: Tensor, size: int) -> Tensor:
    """Resizes an image (3, S, S) to (3, size, size)."""
    return F.interpolate(picture[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


def square(picture: Tensor, size: int) -> Tensor:
    """Crops the central square of an image (3, H, W), resized to (3, size, size)."""
    side = min(picture.shape[1:])
    top, left = ((length - side) // 2 for length in picture.shape[1:])
    return resized(picture[:, top : top + side, left : left + side], size)


def fit(
    parameters: Mapping[str, Tensor],
    loss_of: Callable[[int], Tensor],
    steps: range,
    learning_rate: float,
    state: Mapping[str, Tensor] | None = None,
    callback: Callable[[int, float], bool] = lambda step, loss: False,
) -> dict[str, Tensor]:
    """Trains with AdamW and clipped gradients, in place.

    Args:
        parameters: leaf tensors in float32, by name.
        loss_of: the loss of a step.
        state: the moments that an earlier call returned, to go on from.
        callback: called after each step with its number, from 1, and its loss; ends training where it returns True.

    Returns:
        "<name>.mean" and "<name>.square", the optimizer's moments.

    Raises:
        Diverged: the parameters are then those that gave the bad loss.
    """
    optimizer = torch.optim.AdamW(parameters.values(), learning_rate, weight_decay=WEIGHT_DECAY)
    for name, parameter in parameters.items():
        parameter.requires_grad_(True)
        if state:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(steps.start)),
                "exp_avg": state[f"{name}.mean"].to(parameter).clone(),
                "exp_avg_sq": state[f"{name}.square"].to(parameter).clone(),
            }
    for step in steps:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise Diverged(step + 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        optimizer.step()
        if callback(step + 1, float(loss.detach())):
            break
    moments = {"mean": "exp_avg", "square": "exp_avg_sq"}
    return {
        f"{name}.{ours}": optimizer.state[parameter][theirs]
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for ours, theirs in moments.items()
    }
