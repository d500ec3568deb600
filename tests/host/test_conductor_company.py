"""The Conductor with files of other trainers, and beside what people already have in their graphs."""

import pytest
import safetensors.torch
import torch

from comfy_host import Graph, output, pack_module, refused
from conductor_graph import NEGATIVE, POSITIVE, alignment, chain, conductor, reference
from conductor_oracle import random_lora
from oracle import relative_error
from pictures import HEIGHT, WIDTH, mask_batch
from small_models import LAYOUTS, comfy_model, small_clip, small_control_net

pytestmark = pytest.mark.oldest
UP, DOWN = "lora_up.weight", "lora_down.weight"


@pytest.fixture
def loras(unet):
    return [random_lora(unet, k) for k in range(2)]


@pytest.fixture
def folder(tmp_path):
    """models/loras, with models/embeddings beside it."""
    import folder_paths

    before = {name: folder_paths.folder_names_and_paths[name] for name in ("loras", "embeddings")}
    for name, (_, endings) in before.items():
        folder_paths.folder_names_and_paths[name] = ([str(tmp_path)], endings)
    yield tmp_path
    folder_paths.folder_names_and_paths |= before


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def concept_of(file: str, clip, text: str, strength: float = 0.7) -> tuple[list, list]:
    graph = Graph()
    own = graph.add(
        "PnPMixConceptLora", clip=clip, lora_name=file, strength=strength, text=text, negative_text="blurry"
    )
    prompts = graph.run(positive=own, negative=output(own, 1))
    return prompts["positive"], prompts["negative"]


def run_one(model, prompts: tuple[list, list], **inputs) -> torch.Tensor:
    graph = Graph()
    own = dict(positive=prompts[0], negative=prompts[1], mask=mask_batch(0), name="")
    link = graph.add("PnPMixConductedConcept", **own)
    return graph.run(latent=conductor(graph, model, link, steps=1, **inputs))["latent"]["samples"]


def encode(clip, text: str) -> torch.Tensor:
    return clip.encode_from_tokens(clip.tokenize(text))


def test_ed_lora_as_its_authors_save_it(model, folder):
    """Each cross-attention layer reads the prompt with its own rows of the two tokens, in the order of the layers; the
    rows are what ComfyUI's own embeddings give."""
    clip = small_clip("SD 1.x")
    width = encode(clip, "x").shape[-1]
    layers = [x for name, x in model.model.diffusion_model.named_modules() if name.endswith("attn2.to_k")]
    tokens = {f"<dog{j}>": random(len(layers), width, seed=j) for j in (1, 2)}
    q = "text_model.encoder.layers.0.self_attn.q_proj"
    of_text = {f"{q}.{UP}": random(width, 4, seed=3), f"{q}.{DOWN}": random(4, width, seed=4)}
    block = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    side = model.model.state_dict()["diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_out.0.weight"]
    of_unet = {f"{block}.{UP}": random(len(side), 4, seed=5), f"{block}.{DOWN}": random(4, len(side), seed=6)}
    params = {"new_concept_embedding": tokens, "text_encoder": of_text, "unet": of_unet}
    torch.save({"params": params}, folder / "dog.pth")
    positive, negative = concept_of("dog.pth", clip, "a <dog1> <dog2> and a <dog1> <dog2>")

    # the same by ComfyUI's nodes: a LoRA of the text encoder, and an embedding for each layer
    flat = {f"lora_te_{q.replace('.', '_')}.{kind}": of_text[f"{q}.{kind}"] for kind in (UP, DOWN)}
    safetensors.torch.save_file(flat, folder / "text.safetensors")
    graph = Graph()
    own = graph.add(
        "LoraLoader", model=model, clip=clip, lora_name="text.safetensors", strength_model=0.0, strength_clip=0.7
    )
    merged = graph.run(clip=output(own, 1))["clip"]
    merged.tokenizer.clip_l.embedding_directory = [str(folder)]
    parts = positive[0][0].unflatten(1, (len(layers), -1))
    for number in range(len(layers)):
        for j in (1, 2):
            row = {"emb_params": tokens[f"<dog{j}>"][number : number + 1].contiguous()}
            safetensors.torch.save_file(row, folder / f"l{number}d{j}.safetensors")
        both = f"embedding:l{number}d1 embedding:l{number}d2"
        wanted = encode(merged, f"a {both} and a {both}")
        assert relative_error(parts[:, number, : wanted.shape[1]], wanted) < 1e-5

    seen: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(layers))}
    hooks = [x.register_forward_pre_hook(lambda _, args, n=n: seen[n].append(args[0])) for n, x in enumerate(layers)]
    try:
        result = run_one(model, (positive, negative))
    finally:
        for hook in hooks:
            hook.remove()
    for number, contexts in seen.items():
        rows = [row for x in contexts for row in x]
        assert any(torch.equal(row, parts[0, number]) for row in rows)
    without = {name: torch.zeros_like(x) for name, x in of_unet.items()}
    torch.save({"params": params | {"unet": without}}, folder / "words.pth")
    words = concept_of("words.pth", clip, "a <dog1> <dog2> and a <dog1> <dog2>")
    assert relative_error(run_one(model, words), result) > 1e-4, "the UNet's weights count too"


def test_ed_lora_that_does_not_fit(model, folder):
    clip = small_clip("SD 1.x")
    tokens = {"<cat1>": random(3, encode(clip, "x").shape[-1], seed=1)}
    torch.save({"params": {"new_concept_embedding": tokens}}, folder / "cat.pth")
    with refused("Concept LoRA", "'text'", "<cat1>"):
        concept_of("cat.pth", clip, "a cat")
    with refused("Concept LoRA", "'lora_name'", "3 layers"):
        run_one(model, concept_of("cat.pth", clip, "a <cat1>"))


def test_file_of_comfyuis_own_trainer(model, folder):
    """Its names, and all that it saves: low rank, whole differences of a norm, and of its bias."""
    unet = model.model.diffusion_model
    attention, norm = unet.output_blocks[3][1].transformer_blocks[0].attn1.to_q, unet.output_blocks[3][0].in_layers[0]
    rows, columns = attention.weight.shape
    up, down = random(rows, 4, seed=1), random(4, columns, seed=2)
    diff, bias = random(len(norm.weight), seed=3), random(len(norm.bias), seed=4)
    query, first = "output_blocks.3.1.transformer_blocks.0.attn1.to_q", "output_blocks.3.0.in_layers.0"
    file = {f"{query}.{UP}": up, f"{query}.{DOWN}": down, f"{query}.alpha": torch.tensor(2.0)}
    file |= {f"{first}.diff": diff, f"{first}.diff_b": bias}
    file = {f"diffusion_model.{name}": x for name, x in file.items()}
    safetensors.torch.save_file(file, folder / "trained.safetensors")
    seen = []
    before = attention.weight.clone(), norm.weight.clone(), norm.bias.clone()
    hook = attention.register_forward_pre_hook(
        lambda *_: seen.append((attention.weight.clone(), norm.weight.clone(), norm.bias.clone()))
    )
    try:
        run_one(model, concept_of("trained.safetensors", small_clip("SD 1.x"), "a dog"))
    finally:
        hook.remove()
    wanted = before[0] + 0.7 * 2 / 4 * up @ down, before[1] + 0.7 * diff, before[2] + 0.7 * bias
    assert len(seen) == 2, "the concept's branch, and the base's"
    for own, base, ours, plain in zip(*seen, wanted, before, strict=True):
        assert relative_error(own, ours) < 1e-5
        assert torch.equal(base, plain)


def run_aligned(model, loras: list[dict], **inputs) -> torch.Tensor:
    graph = Graph()
    patched = alignment(graph, model, reference(graph, model, method="noised"))
    link = conductor(graph, patched, chain(graph, loras[:1]), steps=2, **inputs)
    return graph.run(latent=link)["latent"]["samples"]


def test_control_net(model, loras):
    """It acts, gradients included, and changes nothing where its strength is next to none."""
    results = []
    for strength in (1e-6, 1.0):
        graph = Graph()
        image = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
        hint = dict(control_net=small_control_net(), image=image, strength=strength, start_percent=0.0, end_percent=1.0)
        link = graph.add("ControlNetApplyAdvanced", positive=POSITIVE, negative=NEGATIVE, **hint)
        prompts = graph.run(positive=link, negative=output(link, 1))
        results.append(run_aligned(model, loras, **prompts))
    plain = run_aligned(model, loras)
    assert relative_error(results[0], plain) < 1e-4
    assert relative_error(results[1], plain) > 1e-3


def test_attention_replaced_as_by_an_ip_adapter(model, loras):
    from comfy.ldm.modules.attention import attention_pytorch

    def adapted(scale: float):
        def replace(query, key, value, extra):
            own = random(1, 4, key.shape[-1], seed=1).to(key).expand(len(key), -1, -1)
            heads = extra["n_heads"]
            return attention_pytorch(query, key, value, heads) + scale * attention_pytorch(query, own, own, heads)

        patched = model.clone()
        for place in (("input", 1), ("output", 3), ("output", 5)):
            patched.set_model_attn2_replace(replace, *place)
        return patched

    plain, none, much = (run_aligned(x, loras) for x in (model, adapted(0.0), adapted(50.0)))
    assert relative_error(none, plain) < 1e-5
    assert relative_error(much, plain) > 1e-3


def test_weights_of_which_no_gradients_can_be_had(loras):
    import comfy.ops

    model = comfy_model(LAYOUTS["SD 1.x"])
    graph = Graph()
    layout = graph.run(layout=reference(graph, model, method="noised"))["layout"]
    linear = model.model.diffusion_model.output_blocks[3][1].transformer_blocks[0].attn1.to_q
    linear.__class__ = comfy.ops.fp8_ops.Linear
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    graph = Graph()
    with refused("Layout Alignment", "'model'", "quantized", "bypass"):
        graph.run(latent=conductor(graph, alignment(graph, model, layout), chain(graph, loras), steps=2))


def test_prompts_of_the_whole_picture_are_one_each(model, loras):
    graph = Graph()
    with refused("Conductor", "'positive'", "combined"):
        graph.run(latent=conductor(graph, model, chain(graph, loras), steps=2, positive=POSITIVE * 2))


@pytest.mark.parametrize(
    ("layout", "keys", "attention"),
    [("sd15", ("output", 3, 0), ("output", 8, 0)), ("sdxl", ("output", 1, 4), ("output", 1, 4))],
)
def test_layers_are_those_of_the_paper(layout, keys, attention):
    from benchmarks.unets import random_model

    unet = random_model(layout, torch.float16, torch.device("meta")).model.diffusion_model
    found = pack_module("conductor.layers").layers_of(unet)
    assert (found.keys, found.attention) == (keys, attention)


def test_layers_of_a_model_whose_deepest_level_attends():
    """The demo's: keys of 16 × 16 tokens, not of 8 × 8, which are too few to tell its things apart."""
    graph = Graph()
    model = graph.run(model=graph.add("PnPMixDemoModel"))["model"]
    found = pack_module("conductor.layers").layers_of(model.model.diffusion_model)
    assert (found.keys, found.attention, found.last) == (("output", 2, 0), ("output", 3, 0), ("output", 5, 0))
