"""What a gradient step of Layout Alignment holds in memory: python -m benchmarks.conductor_memory

Counts what autograd keeps of one row, up to the layer whose keys are compared, in ComfyUI's full-size UNets on the meta
device, where nothing is computed; with an attention that keeps no probabilities, as on GPUs, and with one that does.
Needs a ComfyUI, which is found as the tests find it. What is kept is freed branch by branch, so the number of concepts
makes no difference.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

TESTS = Path(__file__).resolve().parents[1] / "tests" / "tools"
SIZES = {"sd15": (512, 768), "sdxl": (1024,)}  # of the square pictures, in pixels


def fused_attention(_, query: Tensor, key: Tensor, value: Tensor, heads: int, *args, **kwargs) -> Tensor:
    """Keeps no probabilities."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, None, True)[0].transpose(1, 2).flatten(2)


def kept_bytes(layout: str, size: int, fused: bool, dtype: torch.dtype = torch.float16) -> int:
    """Of all storages that autograd keeps for one row, weights left out."""
    from benchmarks.unets import LAYOUTS, random_model

    from comfy_host import pack_module

    taps = pack_module("conductor.taps")
    meta = torch.device("meta")
    unet = random_model(layout, dtype, meta).model.diffusion_model
    weights = {x.untyped_storage()._cdata for x in unet.parameters()}
    held: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            held[storage._cdata] = x
        return x

    def tap(query: Tensor, key: Tensor, extra: dict) -> None:
        raise taps.Stop

    options = taps.with_attention_tap(taps.differentiable({}), taps.layers_of(unet).keys, tap)
    options = taps.with_stop(options)["transformer_options"]
    if fused:
        options["optimized_attention_override"] = fused_attention
    x = torch.randn(1, 4, size // 8, size // 8, device=meta, dtype=dtype, requires_grad=True)
    context = torch.randn(1, 77, LAYOUTS[layout][1]["context_dim"], device=meta, dtype=dtype)
    pooled = torch.randn(1, 2816, device=meta, dtype=dtype) if layout == "sdxl" else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        unet(x, torch.ones(1, device=meta), context, y=pooled, transformer_options=options)
    return sum(x.untyped_storage().nbytes() for x in held.values())


def main() -> None:
    sys.path.insert(0, str(TESTS))
    from comfy_host import boot

    boot(Path(tempfile.mkdtemp()), "--cpu")
    print("| UNet, half precision | picture | GB | GB with probabilities |\n| --- | ---: | ---: | ---: |")
    for layout, sizes in SIZES.items():
        for size in sizes:
            small, large = (kept_bytes(layout, size, fused) / 1e9 for fused in (True, False))
            print(f"| {layout} | {size} × {size} | {small:.2f} | {large:.2f} |")


if __name__ == "__main__":
    main()
