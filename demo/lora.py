"""LoRA (arXiv 2106.09685) of the demo model's UNet, in a file as ComfyUI's Load LoRA reads it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

FEW_STEPS = Path(__file__).parent / "few-steps-lora.safetensors"  # made by demo.distil
PREFIX = "lora_unet_"


def layers_of(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Name in a LoRA file → layer."""
    kinds = (nn.Linear, nn.Conv2d)
    return {PREFIX + name.replace(".", "_"): x for name, x in unet.named_modules() if isinstance(x, kinds)}


class Lora(nn.Module):
    """A low-rank addition to every linear and convolutional layer of `unet`, at first zero, to be trained."""

    def __init__(self, unet: nn.Module, rank: int):
        super().__init__()
        self.active, self.parts = True, nn.ModuleDict()
        for name, layer in layers_of(unet).items():
            if isinstance(layer, nn.Conv2d):
                shape = dict(kernel_size=layer.kernel_size, stride=layer.stride, padding=layer.padding)
                down = nn.Conv2d(layer.in_channels, rank, bias=False, **shape)
                up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
            else:
                down = nn.Linear(layer.in_features, rank, bias=False)
                up = nn.Linear(rank, layer.out_features, bias=False)
            nn.init.zeros_(up.weight)
            self.parts[name] = nn.ModuleDict({"lora_down": down, "lora_up": up})
            layer.register_forward_hook(self.add(name))

    def add(self, name: str):
        def hook(_, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            part = self.parts[name]
            return output + part["lora_up"](part["lora_down"](args[0])) if self.active else output

        return hook

    @contextmanager
    def off(self) -> Iterator[None]:
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def weights(self) -> dict[str, Tensor]:
        """As in a file, in half precision."""
        return {name.removeprefix("parts."): x.half().contiguous() for name, x in self.state_dict().items()}


def add_lora(unet: nn.Module, weights: dict[str, Tensor]) -> None:
    """Adds the weights of a LoRA file to the layers that they are for."""
    for name, layer in layers_of(unet).items():
        down, up = (weights[f"{name}.{part}.weight"].float() for part in ("lora_down", "lora_up"))
        layer.weight.data += (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
