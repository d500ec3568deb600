"""LoRAs of every trainer are read, those that do not fit are refused by name, and none takes the server along."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from comfy_host import Graph, output, pack_module, refused
from conductor_graph import conductor
from pictures import mask_batch

pytestmark = pytest.mark.oldest
LAYERS = (
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
)
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def factors(network: torch.nn.Module, layer: str, seed: int, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    weight = network.get_submodule(layer).weight
    return random(len(weight), rank, seed=seed), random(rank, weight[0].numel(), seed=seed + 1)


def prompts(file: str, clip, text: str = "a dog") -> tuple[list, list]:
    graph = Graph()
    own = graph.add("PnPMixConceptLora", clip=clip, lora_name=file, strength=0.7, text=text, negative_text="")
    found = graph.run(positive=own, negative=output(own, 1))
    return found["positive"], found["negative"]


def conduct(model, own: tuple[list, list]) -> torch.Tensor:
    graph = Graph()
    link = graph.add("PnPMixConductedConcept", positive=own[0], negative=own[1], mask=mask_batch(0), name="")
    return graph.run(latent=conductor(graph, model, link, steps=1))["latent"]["samples"]


def under(names: str, ends: tuple[str, str]):
    """Entries of layers by these names: {} stands for diffusers' own, {_} for that with _ for each dot."""

    def named(layer: str, up: torch.Tensor, down: torch.Tensor) -> dict[str, torch.Tensor]:
        full = names.replace("{_}", layer.replace(".", "_")).replace("{}", layer)
        return {full + ends[0]: up, full + ends[1]: down}

    return named


DOT, AB = (".lora.up.weight", ".lora.down.weight"), (".lora_B.weight", ".lora_A.weight")
PLAIN = under("lora_unet_{_}", (".lora_up.weight", ".lora_down.weight"))
NAMINGS = {
    "diffusers": under("unet.{}", DOT),
    "diffusers with PEFT": under("unet.{}", AB),
    "PEFT": under("base_model.model.{}", AB),
    "PEFT, while it trains": under("base_model.model.{}", (".lora_B.default.weight", ".lora_A.default.weight")),
    "PEFT, another adapter": under("unet.base_model.model.{}", (".lora_B.dog.weight", ".lora_A.dog.weight")),
    "SimpleTuner, LyCORIS": under("lycoris_{_}", (".lora_up.weight", ".lora_down.weight")),
    "bare": under("{}", AB),
}


@pytest.fixture(scope="module")
def expected(unet, model, clip, tmp_path_factory):
    """What kohya's names give, which ComfyUI's own loader knows."""
    import folder_paths

    place, before = tmp_path_factory.mktemp("loras"), folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = ([str(place)], before[1])
    entries = [PLAIN(layer, *factors(unet, layer, k)) for k, layer in enumerate(LAYERS)]
    safetensors.torch.save_file(entries[0] | entries[1], place / "plain.safetensors")
    result = conduct(model, prompts("plain.safetensors", clip))
    folder_paths.folder_names_and_paths["loras"] = before
    return result


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_acts_the_same_by_whatever_names(unet, model, clip, folder, expected, naming, messages):
    entries = [NAMINGS[naming](layer, *factors(unet, layer, k)) for k, layer in enumerate(LAYERS)]
    safetensors.torch.save_file(entries[0] | entries[1], folder / "dog.safetensors")
    assert torch.equal(conduct(model, prompts("dog.safetensors", clip)), expected)
    assert "2 of 2 layers of dog.safetensors are in this model" in messages()


def test_names_as_diffusers_itself_writes_them(unet, model, clip, folder):
    """Its text encoder's part too."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_state_dict_to_diffusers

    up, down = factors(unet, LAYERS[0], 0)
    own = convert_state_dict_to_diffusers({f"{LAYERS[0]}.lora_A.weight": down, f"{LAYERS[0]}.lora_B.weight": up})
    width = clip.encode_from_tokens(clip.tokenize("x")).shape[-1]
    text = {f"{TEXT}.lora_linear_layer.up.weight": random(width, 2, seed=7)}
    text |= {f"{TEXT}.lora_linear_layer.down.weight": random(2, width, seed=8)}
    StableDiffusionLoraLoaderMixin.save_lora_weights(folder, unet_lora_layers=own, text_encoder_lora_layers=text)
    found = prompts("pytorch_lora_weights.safetensors", clip)
    plain = clip.encode_from_tokens(clip.tokenize("a dog"))
    assert (found[0][0][0] - plain).abs().max() > 1e-3, "the text encoder's part acts"
    conduct(model, found)


def test_a_lora_that_fits_in_part_says_so(unet, model, clip, folder, messages):
    own = PLAIN(LAYERS[0], *factors(unet, LAYERS[0], 0))
    for k in range(9):
        own |= PLAIN(f"no.such.layer.{k}", *factors(unet, LAYERS[0], k))
    safetensors.torch.save_file(own | {"emb": torch.ones(1)}, folder / "part.safetensors")
    conduct(model, prompts("part.safetensors", clip))
    told = messages()
    assert "Warning: 1 of 10 layers of part.safetensors are in this model." in told
    assert "does not read 1 entries of part.safetensors, such as emb" in told
    for name in [x for x in own if "no_such" not in x]:
        del own[name]
    safetensors.torch.save_file(own, folder / "none.safetensors")
    with refused("Concept LoRA", "'lora_name'", "none of the layers of none.safetensors is in this model"):
        conduct(model, prompts("none.safetensors", clip))


def of_another_family(kind: str) -> dict[str, torch.Tensor]:
    """For a layer twice as wide."""
    name, (rows, columns) = f"lora_unet_{LAYERS[0].replace('.', '_')}", (256, 256)
    return {
        "LoKr": {f"{name}.lokr_w1": torch.ones(8, 8), f"{name}.lokr_w2": torch.ones(rows // 8, columns // 8)},
        "LoHa": {f"{name}.hada_w{k}_a": torch.ones(rows, 2) for k in (1, 2)}
        | {f"{name}.hada_w{k}_b": torch.ones(2, columns) for k in (1, 2)},
        "LoRA": {f"{name}.lora_up.weight": torch.ones(rows, 2), f"{name}.lora_down.weight": torch.ones(2, columns)},
        "full": {f"{name}.diff": torch.ones(rows, columns)},
        "bias": {f"{name}.diff_b": torch.ones(rows)},
        "OFT": {f"{name}.oft_blocks": torch.ones(3, 5, 5), f"{name}.alpha": torch.tensor(1.0)},
        "BOFT": {f"{name}.oft_blocks": torch.ones(2, 2, 2, 2)},
        "GLoRA": {f"{name}.{x}.weight": torch.ones(2, 3) for x in ("a1", "a2", "b1", "b2")},
        "DoRA": {
            f"{name}.lora_up.weight": torch.ones(128, 2),
            f"{name}.lora_down.weight": torch.ones(2, 128),
            f"{name}.dora_scale": torch.ones(7, 1),
        },
        "reshaped to 10^10 elements": {
            f"{name}.lora_up.weight": torch.ones(10**5, 1),
            f"{name}.lora_down.weight": torch.ones(1, 10**5),
            f"{name}.reshape_weight": torch.tensor([10**5, 10**5]),
        },
        "half a pair": {f"{name}.lora_up.weight": torch.ones(rows, 2)},
    }[kind]  # fmt: skip


KINDS = [
    "LoKr",
    "LoHa",
    "LoRA",
    "full",
    "bias",
    "OFT",
    "BOFT",
    "GLoRA",
    "DoRA",
    "reshaped to 10^10 elements",
    "half a pair",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_another_family_is_refused_by_name(model, clip, folder, kind):
    """ComfyUI leaves them out with a line in the log, and the concept does nothing."""
    safetensors.torch.save_file(of_another_family(kind), folder / "other.safetensors")
    with refused("Concept LoRA", "'lora_name'", "other.safetensors is for another model family"):
        conduct(model, prompts("other.safetensors", clip))


def test_kinds_that_fit_act(model, clip, folder):
    """Each of another kind than LoRA, in one file."""
    unet = model.model.diffusion_model
    rows, columns = unet.output_blocks[3][1].transformer_blocks[0].attn1.to_q.weight.shape
    name = "lora_unet_" + LAYERS[0].replace(".", "_")
    kinds = {
        "lokr": {"lokr_w1": random(4, 4, seed=1), "lokr_w2": random(rows // 4, columns // 4, seed=2)},
        "loha": {"hada_w1_a": random(rows, 2, seed=1), "hada_w1_b": random(2, columns, seed=2),
                 "hada_w2_a": random(rows, 2, seed=3), "hada_w2_b": random(2, columns, seed=4)},
        "oft": {"oft_blocks": random(rows // 8, 8, 8, seed=1), "alpha": torch.tensor(0.5)},
        "full": {"diff": random(rows, columns, seed=1)},
        "dora": {"lora_up.weight": random(rows, 2, seed=1), "lora_down.weight": random(2, columns, seed=2),
                 "alpha": torch.tensor(4), "dora_scale": torch.ones(rows, 1)},
    }  # fmt: skip
    plain = {f"{name}.lora_up.weight": torch.zeros(rows, 1), f"{name}.lora_down.weight": torch.zeros(1, columns)}
    safetensors.torch.save_file(plain, folder / "plain.safetensors")
    without = conduct(model, prompts("plain.safetensors", clip))
    for kind, entries in kinds.items():
        safetensors.torch.save_file({f"{name}.{end}": x for end, x in entries.items()}, folder / f"{kind}.safetensors")
        assert (conduct(model, prompts(f"{kind}.safetensors", clip)) - without).abs().max() > 1e-5, kind


def entries(unet, **changes) -> dict:
    up, down = factors(unet, LAYERS[0], 0)
    name = "lora_unet_" + LAYERS[0].replace(".", "_")
    whole = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)} | changes
    return {f"{name}.{end}": x for end, x in whole.items() if x is not None}


@pytest.mark.parametrize(
    "changes, fault",
    [
        ({"alpha": torch.ones(2)}, "expected: a single number"),
        ({"alpha": torch.tensor(float("nan"))}, "NaN"),
        ({"lora_up.weight": torch.zeros(128, 0), "lora_down.weight": torch.zeros(0, 128)}, "expected: at least one"),
        ({"lora_up.weight": torch.ones(128, 2, dtype=torch.int32)}, "floating-point ones were expected"),
        ({"lora_up.weight": torch.ones(128, 2, dtype=torch.complex64)}, "floating-point ones were expected"),
        ({"lora_up.weight": torch.full((128, 2), torch.inf)}, "NaN or infinity"),
        ({"reshape_weight": torch.ones(2)}, "whole numbers"),
        ({"lora_down.weight": None, "lora_up.weight": None, "alpha": None, "on_input": torch.ones(3)},
         "no weights of a LoRA"),
    ],
)  # fmt: skip
def test_what_a_file_claims_is_held_against_what_it_holds(unet, clip, folder, changes, fault):
    safetensors.torch.save_file(entries(unet, **changes), folder / "odd.safetensors")
    with refused("Concept LoRA, input 'lora_name'", "odd.safetensors", fault):
        prompts("odd.safetensors", clip)


def test_a_file_may_be_written_anew_in_place(unet, model, clip, folder):
    """Memory that is mapped to a file is gone then, and ComfyUI with it."""
    path = folder / "dog.safetensors"
    safetensors.torch.save_file(entries(unet), path)
    own = prompts("dog.safetensors", clip)
    with path.open("r+b") as file:
        file.truncate(0)
    conduct(model, own)


@pytest.mark.parametrize(
    "token, rows, fault",
    [
        ("<dog>", torch.ones(48), "expected: any × any"),
        ("<dog>", torch.ones(7, 0), "expected: any × any"),
        ("<dog>", torch.ones(7, 47), "expected: 48"),
        ("<dog>", torch.ones(61, 48), "61 layers, not at most 16"),
        ("", torch.ones(7, 48), "entry ''"),
        ("a\x00b", torch.ones(7, 48), "it contains"),
        (3, torch.ones(7, 48), "entry ''"),
    ],
)
def test_ed_lora_tokens_that_are_none(clip, folder, token, rows, fault, monkeypatch):
    """Said before a prompt is encoded."""
    torch.save({"params": {"new_concept_embedding": {token: rows}}}, folder / "odd.pth")
    monkeypatch.setattr(pack_module("conductor.concepts"), "encode_for_each_layer", None)
    with refused("Concept LoRA, input 'lora_name'", fault):
        prompts("odd.pth", clip, "a <dog>")


def test_half_characters_in_names_are_refused_and_written_out(clip, folder):
    """A message with one ends the thread that runs graphs, in the log."""
    torch.save({"params": {"new_concept_embedding": {"<\ud800>": torch.ones(7, 48)}}}, folder / "half.pth")
    with refused("Concept LoRA, input 'lora_name'", "half.pth", "surrogates not allowed"):
        prompts("half.pth", clip)
    check_name = pack_module("common.checks").check_name
    with pytest.raises(Exception, match=r"\\ud800") as error:
        check_name("Train Concept", "name", "a\ud800")
    str(error.value).encode()


def test_a_folder_or_a_file_of_another_user_is_said_so(folder):
    read = pack_module("conductor.lora_files").read
    (folder / "dog.safetensors").mkdir()
    with pytest.raises(Exception, match="'dog.safetensors' is (not in models/loras|no file)"):
        read("Concept LoRA", "dog.safetensors")
    with (
        pytest.raises(Exception, match="Concept LoRA, input 'lora_name': dog.safetensors cannot be read"),
        pack_module("common.loading").reading("Concept LoRA", "lora_name", str(folder / "dog.safetensors"), ""),
    ):
        Path(folder / "dog.safetensors").read_bytes()
