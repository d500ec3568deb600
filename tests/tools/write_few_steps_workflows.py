"""What the templates for few steps differ in; write_workflows.py writes them with the others."""

from graph_files import Output, Subgraph
from template_models import CHECKPOINTS, FACE, SD, SD15, SDXL, UNTRIED, Kind, asked, download, listed

LCM = download(
    "pytorch_lora_weights.safetensors",
    "loras",
    FACE + "latent-consistency/lcm-lora-sdv1-5/resolve/main/pytorch_lora_weights.safetensors",
)
LIGHTNING = download(
    "sdxl_lightning_4step_lora.safetensors",
    "loras",
    FACE + "ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step_lora.safetensors",
)
INVERSION = {"steps": 4, "skip_steps": 1, "cfg": 1.0, "scheduler": "sgm_uniform"}
HINTS = f"""- Made for such a LoRA: 4 steps, of which 1 is skipped, sgm_uniform and *cfg* 1 in **DDPM Invert**. \
{UNTRIED}
- For finer results: *steps* 8, *skip_steps* 2. Without the LoRA: *steps* 50, *skip_steps* 16, ddim_uniform.
"""


def few_steps(name: str, side: int, checkpoint: dict, lora: dict, **more: str) -> Kind:
    def load(graph: Subgraph) -> list[Output]:
        model, clip, vae = asked(graph, "checkpoint", "CheckpointLoaderSimple", "ckpt_name", checkpoint)
        faster = asked(graph, "LoRA", "LoraLoaderModelOnly", "lora_name", lora, model=model, strength_model=1.0)
        return [*faster, clip, vae]

    return Kind(f" in few steps, {name}", side, load, listed(checkpoint, lora, **more), INVERSION, hints=HINTS)


FEW_STEPS_KINDS = {
    "Few steps 1 Two things with SD 1.5 and an LCM LoRA": few_steps(
        "SD 1.5", SD, SD15, LCM, v1="; any SD 1.5 checkpoint works", pytorch=", LCM LoRA"
    ),
    "Few steps 2 Two things with SDXL Lightning": few_steps(
        "SDXL", SDXL, CHECKPOINTS[SDXL], LIGHTNING, sd_xl="; any SDXL checkpoint works"
    ),
}
