"""A LoRA that ComfyUI's own trainer has made is a concept."""

import pytest
import safetensors.torch
import torch

from comfy_host import Graph, output
from conductor_graph import POSITIVE, conductor
from pictures import HEIGHT, WIDTH, mask_batch
from small_models import LAYOUTS, comfy_model, small_clip

pytestmark = pytest.mark.newest  # the oldest one's has other inputs, and its node that saves another name


def test_a_lora_is_trained_and_conducted(monkeypatch, tmp_path):
    """Trained for a step, its weights act."""
    import folder_paths

    known, endings = folder_paths.folder_names_and_paths["loras"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path), *known], endings))
    model, graph = comfy_model(LAYOUTS["SD 1.x"]), Graph()
    model.cached_patcher_init = (
        lambda disable_dynamic: comfy_model(LAYOUTS["SD 1.x"]),
        (),
    )  # as ComfyUI's loaders set it
    samples = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(0))
    training = graph.add(
        "TrainLoraNode", model=model, latents={"samples": samples}, positive=POSITIVE, batch_size=1,
        grad_accumulation_steps=1, steps=1, learning_rate=0.1, rank=4, optimizer="AdamW", loss_function="MSE", seed=0,
        training_dtype="fp32", lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=False, checkpoint_depth=1, offloading=False, existing_lora="[None]", bucket_mode=False,
        bypass_mode=False,
    )  # fmt: skip
    trained = graph.run(lora=training)["lora"]
    safetensors.torch.save_file(trained, tmp_path / "your_dog_1_steps_00001_.safetensors")

    results = []
    for strength in (0.0, 1.0):
        graph = Graph()
        own = graph.add(
            "PnPMixConceptLora", clip=small_clip("SD 1.x"), lora_name="your_dog_1_steps_00001_.safetensors",
            strength=strength, text="a dog", negative_text="",
        )  # fmt: skip
        prompts = dict(positive=own, negative=output(own, 1))
        link = graph.add("PnPMixConductedConcept", mask=mask_batch(0), name="", **prompts)
        results.append(graph.run(latent=conductor(graph, model, link, steps=2))["latent"]["samples"])
    assert torch.isfinite(results[1]).all() and (results[0] - results[1]).abs().max() > 1e-3
