"""Every reader, given its own valid file with one thing in it changed, gives something right or a BadInput.

Never anything else, nor more memory than a file of that size is worth.
"""

import contextlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comfy_host import pack_module
from learned_concepts import learned
from mutations import damaged, mutated, mutated_json, mutated_pickle, mutated_safetensors, quick, safetensors_bytes

pytestmark = pytest.mark.oldest
LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@contextlib.contextmanager
def right_or_bad_input():
    """What is raised names the node and what was expected, in words that a log takes."""
    bad = pack_module("common.checks").BadInput
    try:
        yield
    except bad as error:
        str(error).encode()
        assert ", input '" in str(error) and len(str(error)) < 2000
        if not error.__suppress_context__:  # which the log would show too
            str(error.__context__).encode()
        str(error.__cause__).encode()


def test_concept_files(model, tmp_path):
    files, bank = pack_module("latexblend.concept_files"), pack_module("latexblend.concept_files").bank
    concept = learned(model, "dog", 1, settings={"steps": "3", "rank": "0"})
    features = dict(list(bank.to_tensors(concept.features).items())[:4])
    tensors = features | {"training.identifier.l": torch.zeros(48)}
    about = {name: getattr(concept, name) for name in files.FIELDS} | {"settings": concept.settings, "version": "1"}

    @quick
    @given(st.data())
    def check(data):
        own = mutated(data, {"about": about}).get("about") if data.draw(st.booleans()) else about
        (tmp_path / "x.safetensors").write_bytes(mutated_safetensors(data, tensors, {bank.FORMAT: json.dumps(own)}))
        with right_or_bad_input():
            found = files.read_concept(str(tmp_path / "x.safetensors"))
            assert all(torch.isfinite(x).all() and x.ndim == 2 for pair in found.features.values() for x in pair)
            files.file_bytes(found)
            json.dumps(found.settings).encode()
            int(found.settings.get("steps", "0"))

    check()


def test_inversions(tmp_path):
    files = pack_module("mixer.inversion_files")
    tensors = {
        "sigmas": torch.tensor([2.0, 1.0, 0.0]),
        "trajectory": torch.ones(3, 4, 2, 2),
        "eps": torch.ones(2, 4, 2, 2),
    }
    metadata = {"format": files.FORMAT, "family": "SD15 EPS", "seed": "7", "steps": "10"}

    @quick
    @given(st.data())
    def check(data):
        (tmp_path / "x.safetensors").write_bytes(mutated_safetensors(data, tensors, metadata))
        with right_or_bad_input():
            found = files.read_inversion(str(tmp_path / "x.safetensors")).inversion
            assert found.trajectory.shape == (len(found.eps) + 1, *found.eps.shape[1:])
            assert len(found.sigmas) == len(found.trajectory) and 0 <= found.seed < 2**64

    check()


@pytest.fixture
def loras(folder):
    for name in ("x.safetensors", "x.pth"):
        (folder / name).touch()
    return folder


def use(model, clip, name: str) -> None:
    """All that Concept LoRA and the Conductor ask of a file, but for the picture."""
    import comfy.hooks
    import comfy.lora

    files, concepts, checks = (pack_module(f"conductor.{x}") for x in ("lora_files", "concepts", "checks"))
    types = pack_module("common.types")
    file = files.read("Concept LoRA", name)
    layers = concepts.check_tokens("Concept LoRA", file, clip, "a <dog> on a beach")
    concepts.with_weights("Concept LoRA", clip, file, name, 1.0)
    hooks = comfy.hooks.create_hook_lora(file.weights, 1.0, 1.0)
    positive = [[None, {types.CONCEPT_FILE: types.ConceptFile(name, layers, None, bool(file.tokens))}]]
    checks.check_weights(types.ConductedConcept(positive, [], torch.ones(1, 1), "dog"), hooks, model)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    weights = model.model.state_dict()
    for key, patch in comfy.lora.load_lora(file.weights, keys, log_missing=False).items():
        changed = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weights[key].clone(), key)
        assert changed.shape == weights[key].shape


def lora(unet) -> dict[str, torch.Tensor]:
    """Of several kinds."""
    name, weight = "lora_unet_" + LAYER.replace(".", "_"), unet.get_submodule(LAYER).weight
    rows, columns = weight.shape
    cross = name.replace("attn1", "attn2")
    out = name.replace("to_q", "to_out_0")
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    return {
        f"{name}.lora_up.weight": torch.ones(rows, 2),
        f"{name}.lora_down.weight": torch.ones(2, columns),
        f"{name}.alpha": torch.tensor(2.0),
        f"{name}.dora_scale": torch.ones(rows, 1),
        f"{cross}.hada_w1_a": torch.ones(rows, 2),
        f"{cross}.hada_w1_b": torch.ones(2, columns),
        f"{cross}.hada_w2_a": torch.ones(rows, 2),
        f"{cross}.hada_w2_b": torch.ones(2, columns),
        f"{out}.lokr_w1": torch.ones(4, 4),
        f"{out}.lokr_w2_a": torch.ones(rows // 4, 2),
        f"{out}.lokr_w2_b": torch.ones(2, columns // 4),
        f"{text}.lora_up.weight": torch.ones(48, 2),
        f"{text}.lora_down.weight": torch.ones(2, 48),
    }


def test_loras(unet, model, clip, loras):
    whole = lora(unet)

    @quick
    @given(st.data())
    def check(data):
        (loras / "x.safetensors").write_bytes(mutated_safetensors(data, whole, {"ss_network_dim": "2"}))
        with right_or_bad_input():
            use(model, clip, "x.safetensors")

    check()


def test_ed_loras(unet, model, clip, loras):
    up = {f"{LAYER}.lora_{x}.weight": torch.ones(*shape) for x, shape in (("up", (128, 2)), ("down", (2, 128)))}
    layers = sum(name.endswith("attn2.to_k") for name, _ in unet.named_modules())
    whole = {"params": {"new_concept_embedding": {"<dog>": torch.ones(layers, 48)}, "unet": up, "text_encoder": {}}}

    @quick
    @given(st.data())
    def check(data):
        (loras / "x.pth").write_bytes(mutated_pickle(data, whole))
        with right_or_bad_input():
            use(model, clip, "x.pth")

    check()


def test_the_fuzzed_loras_are_right_as_they_are(unet, model, clip, loras):
    (loras / "x.safetensors").write_bytes(safetensors_bytes(lora(unet)))
    use(model, clip, "x.safetensors")


@pytest.mark.parametrize("kind", ["bank", "delta", "diffusers"])
def test_concepts_of_other_makers(model, clip, tmp_path, monkeypatch, kind):
    import folder_paths
    import nodes

    files, layers = pack_module("latexblend.concept_files"), pack_module("latexblend.layers")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "concepts", ([str(tmp_path)], {".bin", ".pt"}))
    names = {ours: theirs for theirs, ours in files.diffusers_names(model).items()}
    modules = layers.cross_attentions(model.model.diffusion_model)
    weights = {
        f"{names[x]}.to_{side}.weight": getattr(m, f"to_{side}").weight
        for x, (_, m) in modules.items()
        for side in "kv"
    }
    content = {
        "bank": {
            names[x]: {side: torch.ones(2, m.to_k.weight.shape[0]) for side in "kv"} for x, (_, m) in modules.items()
        },
        "delta": {"unet": weights, "modifier_token": {"<new1>": torch.ones(48)}},
        "diffusers": {
            name.replace(".to_", ".processor.to_").replace(".weight", "_custom_diffusion.weight"): x
            for name, x in weights.items()
        },
    }[kind]
    (tmp_path / "x.bin").touch()
    torch.save({"<new1>": torch.ones(48)}, tmp_path / "<new1>.bin")
    node = nodes.NODE_CLASS_MAPPINGS["PnPMixImportConcept"].PREPARE_CLASS_CLONE(None)
    node.hidden = type("Hidden", (), {"prompt": {}, "unique_id": "1"})

    @quick
    @given(st.data())
    def check(data):
        (tmp_path / "x.bin").write_bytes(mutated_pickle(data, content))
        with right_or_bad_input(), torch.inference_mode():
            (found,) = node.execute("x.bin", "dog", "", clip, model).result
            layers.check_fits("", "", found, model)

    check()


@pytest.mark.parametrize("folder, node", [("sams", "SAM"), ("inpaint", "LaMa"), ("grounding-dino", "DINO")])
def test_checkpoints(folder, node, tmp_path, monkeypatch):
    """The reader alone, and what each network asks first; whole ones are in test_model_files.py."""
    import folder_paths
    import nodes

    monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path)], {".pth", ".safetensors"}))
    ids = {"SAM": "PnPMixSamLoader", "LaMa": "PnPMixInpaintModelLoader", "DINO": "PnPMixGroundingDinoLoader"}
    content = {
        "image_encoder.pos_embed": torch.ones(1, 4, 4, 768),
        "module.backbone.0.patch_embed.proj.weight": torch.ones(96, 3, 4, 4),
        "transformer.decoder.layers.0.ca_text.in_proj_weight": torch.ones(6, 2),
        "model.model.1.ffc.convl2l.weight": torch.ones(2, 2, 3, 3),
    }
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).touch()

    @quick
    @given(st.data())
    def check(data):
        is_pickle = data.draw(st.booleans())
        name = "x.pth" if is_pickle else "x.safetensors"
        new = mutated_pickle(data, {"model": content}) if is_pickle else mutated_safetensors(data, content)
        (tmp_path / name).write_bytes(new)
        with right_or_bad_input():
            nodes.NODE_CLASS_MAPPINGS[ids[node]].execute(name)

    check()


def test_tables_tasks_and_notes(tmp_path):
    """Of the command line."""
    from cli import datasets, errors, evaluate, jobs, tasks

    table = (
        "scene,concepts,objects,seed,steps,prompt,target masks,name\n"
        'a.png,b.png|c.png,dog|"big, cat",7,12,"at night",x|y,one\n'
    )
    pairs = [{"prompt": "a dog", "image_paths": ["a/b.png", "c/d.png"]}]

    @quick
    @given(st.data())
    def check(data):
        (tmp_path / "tasks.csv").write_bytes(damaged(data, table.encode()))
        with contextlib.suppress(errors.BadTable):
            for job in jobs.read_table(tmp_path / "tasks.csv", tasks.Task):
                str(job).encode()
        (tmp_path / "pairs.json").write_bytes(mutated_json(data, pairs))
        with contextlib.suppress(errors.BadTable):
            datasets.make_tasks("dreambench", tmp_path / "pairs.json", tmp_path / "made", None)
        (tmp_path / "notes.json").write_bytes(mutated_json(data, {"seconds": 1.5, "psnr": 30.0}))
        assert all(isinstance(x, float) for x in evaluate.read_notes(tmp_path / "notes.json").values())

    check()


def test_a_settings_file_of_a_text_encoder_takes_no_more_than_one_has(tmp_path):
    from pnpmix.vision.dino_weights import read_text_encoder

    from detection_models import write_bert_folder

    write_bert_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    read_bert = pack_module("vision.detection").read_bert

    @quick
    @given(st.data())
    def check(data):
        (tmp_path / "config.json").write_bytes(mutated_json(data, config))
        with right_or_bad_input():
            read_bert(read_text_encoder, str(tmp_path))

    check()
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"):
        (tmp_path / "config.json").write_text(json.dumps(config | {name: 10**9}))
        with pytest.raises(pack_module("common.checks").BadInput, match=name):
            read_bert(read_text_encoder, str(tmp_path))
