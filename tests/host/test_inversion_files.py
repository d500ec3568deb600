"""Inversions survive in files, and only whole and fitting ones come back."""

import contextlib
import errno
import json
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from comfy_host import Graph, GraphError, refused
from mixer_graph import chain, invert, mixer
from pictures import HEIGHT, latent
from small_models import LAYOUTS, comfy_model


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


@pytest.fixture
def folder():
    import folder_paths

    folder = Path(folder_paths.get_output_directory(), "inversions")
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made(model):
    """An inversion, for tests that only save it."""
    graph = Graph()
    return graph.run(inversion=invert(graph, model))["inversion"]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def keep(made, prefix: str) -> None:
    """Saves an inversion that is there."""
    graph = Graph()
    inversion = graph.given(made)
    graph.add("PnPMixSaveInversion", inversion=inversion, filename_prefix=prefix)
    graph.run(inversion=inversion)


def save(model, prefix: str, **inputs):
    graph = Graph()
    inversion = invert(graph, model, **inputs)
    graph.add("PnPMixSaveInversion", inversion=inversion, filename_prefix=prefix)
    return graph.run(inversion=inversion)["inversion"]


def load(name: str):
    graph = Graph()
    return graph.run(inversion=graph.add("PnPMixLoadInversion", file=name))["inversion"]


def test_what_was_saved_comes_back(model, folder):
    made = save(model, "street", seed=2**64 - 1)
    assert [path.name for path in folder.iterdir()] == ["street_00001_.safetensors"]
    loaded = load("street_00001_.safetensors")
    for name, tensor in made.inversion._asdict().items():
        same = loaded.inversion._asdict()[name]
        assert torch.equal(same, tensor) if isinstance(tensor, torch.Tensor) else same == tensor
    assert (loaded.family, loaded.settings) == (made.family, made.settings)

    with safetensors.safe_open(folder / "street_00001_.safetensors", "pt") as file:
        settings = file.metadata()
    assert settings["seed"] == str(2**64 - 1)
    assert (settings["steps"], settings["skip_steps"], settings["cfg"]) == ("10", "4", "3.5")
    assert (settings["scheduler"], settings["family"]) == ("ddim_uniform", "SD15 EPS")


def rewritten(path: Path, **changes: str | None) -> None:
    """The same file with other metadata; None takes an entry out."""
    with safetensors.safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    safetensors.torch.save_file(tensors, path, metadata)


def test_of_a_wired_schedule_only_what_had_an_effect_is_saved_beside_it(model, folder):
    made = save(model, "street", sigmas=torch.tensor([3.0, 2.0, 1.0, 0.0]), skip_steps=1)
    loaded = load("street_00001_.safetensors")
    assert loaded.inversion.sigmas.tolist() == made.inversion.sigmas.tolist() == [2.0, 1.0, 0.0]
    assert loaded.settings == {"skip_steps": "1", "cfg": "3.5"}


def test_a_loaded_inversion_gives_the_same_picture(model, folder):
    made = save(model, "street")
    results = []
    for inversion in (made, load("street_00001_.safetensors")):
        graph = Graph()
        results.append(graph.run(latent=mixer(graph, model, inversion, chain(graph, 2)))["latent"]["samples"])
    assert torch.equal(*results)


def test_names_are_counted_and_may_have_folders(model, folder):
    for _ in range(2):
        save(model, "city/street")
    assert files(folder) == ["city/street_00001_.safetensors", "city/street_00002_.safetensors"]
    assert load("city/street_00002_.safetensors").family == "SD15 EPS"


@pytest.mark.parametrize(
    "prefix, name",
    [
        ("city/", "city"),
        ("town/.", "town"),
        ("./village/", "village"),
        ("a//b", "a/b"),
        ("a/../b", "b"),
        ("a\\b", "a/b"),
        ("CON", "CON"),
        ("강아지 %width%", "강아지 0"),
    ],
)
def test_nothing_is_overwritten_whatever_the_prefix(made, folder, prefix, name):
    keep(made, prefix)
    first = folder / f"{name}_00001_.safetensors"
    first.write_bytes(b"the first one")
    keep(made, prefix)
    assert files(folder) == [f"{name}_00001_.safetensors", f"{name}_00002_.safetensors"]
    assert first.read_bytes() == b"the first one"
    assert load(f"{name}_00002_.safetensors").family == made.family


@pytest.mark.parametrize(
    "prefix, fault",
    [
        ("", "no name"),
        ("./", "no name"),
        ("a\0b", r"'\x00'"),
        ("a\ud800b", r"'\ud800'"),
        ("a\nb", r"'\n'"),
        ("one: two", "':'"),
        ("what?", "'?'"),
        ("con/street", "Windows"),
        ("COM1.x", "Windows"),
        ("city./street", "Windows"),
        ("n" * 300, "shorter"),
        ("n" * 300 + "/street", "shorter"),
        ("강" * 90, "shorter"),
        ("file/street", "Not a directory"),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_a_name_that_cannot_be_saved_leaves_nothing(made, folder, prefix, fault):
    (folder / "file").touch()
    with refused("Save Inversion, input 'filename_prefix'", fault):
        keep(made, prefix)
    assert files(folder) == ["file"]


def test_a_full_disk_leaves_nothing(made, folder):
    """A limit on the size of files cuts a write short as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with refused("Save Inversion, input 'filename_prefix'", "cannot be saved", os.strerror(errno.EFBIG)):
            keep(made, "street")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(folder) == []


@contextlib.contextmanager
def without_rights():
    """Root may write anywhere, so it becomes somebody else."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_a_folder_that_may_not_be_written_is_said_so(made, folder):
    folder.chmod(0o555)
    try:
        with without_rights(), refused("Save Inversion, input 'filename_prefix'", "Permission denied", "Allow ComfyUI"):
            keep(made, "street")
    finally:
        folder.chmod(0o755)
    assert files(folder) == []


def saving(write) -> int:
    """A second process that saves; its id."""
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            write()
        os._exit(0)
    return process


def files_module():
    import nodes

    package = nodes.NODE_CLASS_MAPPINGS["PnPMixSaveInversion"].__module__.removesuffix(".mixer.inversion_files")
    return sys.modules[f"{package}.common.files"]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")


@needs_fork
def test_servers_that_save_at_the_same_time_overwrite_nothing(folder):
    data = [bytes([k]) * 1000 for k in range(4)]

    def write(k):
        for _ in range(10):
            files_module().save_new("node", "street", str(folder), ".safetensors", data[k])

    processes = [saving(lambda k=k: write(k)) for k in range(4)]
    for process in processes:
        os.waitpid(process, 0)
    assert files(folder) == [f"street_{k:05}_.safetensors" for k in range(1, 41)]
    contents = [path.read_bytes() for path in folder.iterdir()]
    assert sorted(contents) == sorted(data * 10)


@needs_fork
def test_what_a_killed_save_left_is_not_listed_and_goes_with_the_next(made, folder, monkeypatch):
    """Killed when all is written, before the file gets its name."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        os.waitpid(saving(lambda: keep(made, "city/street")), 0)
    assert len(files(folder)) == 1
    with refused("Load Inversion, input 'file'"):
        load(files(folder)[0])
    keep(made, "other")
    assert files(folder) == ["other_00001_.safetensors"]


@needs_fork
def test_a_file_that_another_server_is_writing_stays(made, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: time.sleep(1))  # a slow disk
        process = saving(lambda: keep(made, "street"))
    while not files(folder):
        time.sleep(0.01)
    keep(made, "street")
    os.waitpid(process, 0)
    assert files(folder) == ["street_00001_.safetensors", "street_00002_.safetensors"]
    assert load("street_00001_.safetensors").settings == made.settings


def test_saving_says_where_it_went(made, folder, monkeypatch):
    import server

    shown = []
    monkeypatch.setattr(
        server.PromptServer.instance, "send_progress_text", lambda text, node_id, sid=None: shown.append(text)
    )
    keep(made, "city/street")
    assert shown == ["Saved as city/street_00001_.safetensors (0.0 MB). Load Inversion finds it; press R there."]


@pytest.mark.parametrize("prefix", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_no_name_leaves_the_folder(model, folder, prefix):
    with pytest.raises(GraphError, match="Save Inversion, input 'filename_prefix'"):
        save(model, prefix)
    assert not list(folder.parent.rglob("escaped*"))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "missing.safetensors", ""])
def test_no_other_file_is_read(folder, name):
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder.parent / "secret.safetensors")
    with pytest.raises(GraphError, match="Load Inversion, input 'file'.*Save an inversion"):
        load(name)


def test_no_other_file_is_read_through_a_link(folder):
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder.parent / "secret.safetensors")
    graph = Graph()
    with pytest.raises(GraphError, match="Load Inversion, input 'file'"):
        graph.run(inversion=graph.add("PnPMixLoadInversion", file=graph.given(Path("../secret.safetensors"))))


def test_damaged_and_foreign_files(model, folder):
    save(model, "street")
    whole = (folder / "street_00001_.safetensors").read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (folder / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(GraphError, match="'file': cut.safetensors is damaged, cut short.*Make it again"):
            load("cut.safetensors")

    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "lora.safetensors")
    with pytest.raises(GraphError, match="lora.safetensors is not an inversion"):
        load("lora.safetensors")

    with safetensors.safe_open(folder / "street_00001_.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for change in ({"eps": tensors["eps"][1:].clone()}, {"eps": tensors["eps"] * float("nan")}):
        safetensors.torch.save_file(tensors | change, folder / "odd.safetensors", metadata)
        with pytest.raises(GraphError, match="odd.safetensors is damaged.*entry '(trajectory|eps)'"):
            load("odd.safetensors")
    safetensors.torch.save_file(tensors, folder / "odd.safetensors", {**metadata, "seed": "x"})
    with pytest.raises(GraphError, match="entry 'seed': input should be a valid integer"):
        load("odd.safetensors")


def rewrite(path: Path, metadata: dict | None = None, **tensors) -> None:
    """Changes a saved inversion, as no node would."""
    with safetensors.safe_open(path, "pt") as file:
        old, values = file.metadata(), {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(values | tensors, path, old | (metadata or {}))


@pytest.mark.parametrize("seed", [str(2**64), "9" * 5000], ids=["2^64", "5000 digits"])
def test_a_seed_that_no_generator_takes(made, folder, seed):
    keep(made, "street")
    rewrite(folder / "street_00001_.safetensors", {"seed": seed})
    with refused("Load Inversion, input 'file'", "entry 'seed'"):
        load("street_00001_.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda sigmas: sigmas.flip(0),
        lambda sigmas: sigmas + 1,
        lambda sigmas: -sigmas,
        lambda sigmas: sigmas * float("nan"),
        lambda sigmas: torch.cat([torch.tensor([float("inf")]), sigmas[1:]]),
        lambda sigmas: torch.cat([sigmas[:2], torch.zeros(len(sigmas) - 2)]),
    ],
    ids=["rising", "not to 0", "negative", "NaN", "infinite", "0 too early"],
)
def test_noise_levels_that_no_inversion_has(made, folder, change):
    keep(made, "street")
    rewrite(folder / "street_00001_.safetensors", sigmas=change(made.inversion.sigmas))
    with refused("Load Inversion, input 'file'", "entry 'sigmas'"):
        load("street_00001_.safetensors")


def test_a_picture_of_no_cells(made, folder):
    keep(made, "street")
    empty = {name: getattr(made.inversion, name)[..., :0] for name in ("trajectory", "eps")}
    rewrite(folder / "street_00001_.safetensors", **empty)
    with refused("Load Inversion, input 'file'", "entry 'eps' has shape"):
        load("street_00001_.safetensors")


@pytest.mark.parametrize("header", [b"[]", b'{"__metadata__": 3}', b"[" * 10_000, b"\xff\xff", b"{}" * 50])
def test_a_file_whose_header_is_no_table(folder, header):
    (folder / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with refused("Load Inversion, input 'file'", "odd.safetensors is damaged"):
        load("odd.safetensors")


def test_a_large_foreign_file_is_not_read(folder):
    """100 GB of nothing behind the header of another kind of file."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [10**11], "data_offsets": [0, 10**11]}}).encode()
    with (folder / "large.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 10**11)
    with refused("Load Inversion, input 'file'", "large.safetensors is not an inversion"):
        load("large.safetensors")


def test_a_loaded_inversion_outlives_its_file(made, folder):
    """Cut short in place: memory that is mapped to a file is gone then, and ComfyUI with it."""
    keep(made, "street")
    loaded = load("street_00001_.safetensors")
    os.truncate(folder / "street_00001_.safetensors", 0)
    assert torch.equal(loaded.inversion.eps, made.inversion.eps)
    assert torch.equal(loaded.inversion.trajectory, made.inversion.trajectory)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none in folders")
def test_a_pipe_is_never_opened(folder):
    """Whoever opens one waits until somebody writes to it."""
    os.mkfifo(folder / "pipe.safetensors")
    os.symlink("/dev/zero", folder / "device.safetensors")
    for name in ("pipe.safetensors", "device.safetensors"):
        with refused("Load Inversion, input 'file'", name):
            load(name)


def test_a_file_that_vanishes_before_it_is_read(folder):
    """Between the list and the reading there is no time for a test, so it asks for the reading alone."""
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["PnPMixLoadInversion"]
    with pytest.raises(Exception, match=r"Load Inversion, input 'file': gone\.safetensors cannot be read.*Press R"):
        sys.modules[node.__module__].read_inversion(str(folder / "gone.safetensors"))


def test_no_file_chosen():
    graph = Graph()
    link = graph.add("PnPMixLoadInversion")
    graph.prompt[link[0]]["inputs"]["file"] = None
    with refused("Load Inversion, input 'file'", "no file is chosen", "Save an inversion"):
        graph.run(inversion=link)


def test_a_file_for_another_shape_or_family_is_refused_by_the_mixer(model, folder):
    save(model, "small", latent={"samples": latent(0, HEIGHT, 64)})
    graph = Graph()
    loaded = graph.add("PnPMixLoadInversion", file="small_00001_.safetensors")
    with pytest.raises(GraphError, match="its picture is 128 x 96 pixels, the scene 64 x 96"):
        graph.run(latent=mixer(graph, model, loaded, chain(graph, 1)))
    graph = Graph()
    loaded = graph.add("PnPMixLoadInversion", file="small_00001_.safetensors")
    with pytest.raises(GraphError, match="another family"):
        graph.run(latent=mixer(graph, comfy_model(LAYOUTS["SD 2.x eps"]), loaded, chain(graph, 1)))
