"""run.py blend: what a table may say, what a job becomes, and what is left when something goes wrong."""

import errno
import http.server
import os
import threading
from pathlib import Path

import pytest
from cli import blend, evaluate, graphs
from cli.blend import in_order
from cli.errors import BadTable, JobFailed
from cli.jobs import TEMPLATE, Job, columns, read_table
from cli.tasks import Task
from cli.work import prompt_of, work_of
from PIL import Image


def save_picture(path: Path, color: str = "red", size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def job(tmp_path) -> Job:
    """Two concepts, with all masks."""
    names = ("scene", "dog", "cat", "mask 1", "mask 2", "own 1", "own 2")
    scene, *files = (save_picture(tmp_path / f"{x}.png", "red" if "mask" not in x else "white") for x in names)
    dog, cat, *masks = files
    return Job(
        scene=scene, concepts=(dog, cat), objects=("cup", "fish"), prompt="cup, fish",
        target_masks=masks[:2], object_masks=masks[2:],
    )  # fmt: skip


def changed(job: Job, **fields) -> Job:
    return job.model_copy(update=fields)


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "jobs.csv"
    path.write_text("\n".join(lines), encoding="utf-8-sig")  # as spreadsheets write it
    return path


def by_class(prompt: dict) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for node in prompt.values():
        found.setdefault(node["class_type"], []).append(node["inputs"])
    return found


def test_a_table_says_what_the_options_say_for_each_row(tmp_path):
    path = table(
        tmp_path,
        "Scene,concepts,objects,seed,steps,prompt,target masks",
        'a.png,dog.png|cat.png,dog | big cat,7,12,"a street, at night",',
        "",
        "b.png,/x/cup.png,cup,,,,mask.png",
    )
    first, second = read_table(path, Job, seed=3, steps=30, checkpoint="mine.safetensors")
    assert first.where == "row 2" and second.where == "row 4"
    assert first.scene == tmp_path / "a.png" and first.concepts == (tmp_path / "dog.png", tmp_path / "cat.png")
    assert first.objects == ("dog", "big cat") and first.prompt == "a street, at night" and first.target_masks == ()
    assert (first.seed, first.steps, second.seed, second.steps) == (7, 12, 3, 30)
    assert second.concepts == (Path("/x/cup.png"),) and second.target_masks == (tmp_path / "mask.png",)
    assert second.checkpoint == "mine.safetensors"


@pytest.mark.parametrize(
    "header, said",
    [
        ("scene,seed", "lacks the columns: concepts, objects"),
        ("scene;concepts;objects", "with a comma between"),
        ("scene,concepts,objects,sed", "not known: 'sed'"),
        ("", "lacks the columns: scene, concepts, objects"),
    ],
)
def test_a_table_without_its_columns_is_refused_before_anything_runs(tmp_path, header, said):
    with pytest.raises(BadTable, match=said):
        read_table(table(tmp_path, header, "a,b,c"), Job)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    for path in (save_picture(tmp_path / "jobs.png"), tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(BadTable, match="cannot be read"):
            read_table(path, Job)


@pytest.mark.parametrize(
    "row, said",
    [
        ("a,b|c,dog", "2 concepts and 1 objects"),
        ("a,,dog", "the column 'concepts': it is empty"),
        (
            "a,b,dog,x",
            "the column 'seed': input should be a valid integer, unable to parse string as an integer (it is 'x')",
        ),
        ("a,b,dog,-1", "the column 'seed': input should be greater than or equal to 0 (it is '-1')"),
        ("a,b,dog,1,1", "the column 'steps': input should be greater than or equal to 2 (it is '1')"),
        ("a,b|c,dog|cat,1,9,m", "2 concepts and 1 target masks, not one for each"),
        ("a,b|c,dog|", "the column 'objects': one of them is empty (it is 'dog|')"),
        ("a,b,dog,1,9,m,too many", "more cells"),
    ],
)
def test_a_wrong_row_is_named_and_the_others_are_jobs(tmp_path, row, said):
    wrong, right = read_table(table(tmp_path, "scene,concepts,objects,seed,steps,target masks", row, "a,b,dog"), Job)
    assert isinstance(wrong, JobFailed) and "row 2: " in str(wrong) and said in str(wrong)
    assert isinstance(right, Job)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "give --scene"),
        (["--scene", "a.png"], "give --scene"),
        (["--table", "a.csv", "--scene", "a.png"], "leave out"),
        (["--demo", "--scene", "a.png", "--concept", "cup=b.png"], "in a --table, with masks"),
        (["--demo", "0"], "1 scene or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(capsys, arguments, said):
    with pytest.raises(SystemExit) as error:
        blend.main(arguments)
    assert error.value.code == 2 and said in capsys.readouterr().err


def test_a_concept_without_its_object_or_image_is_refused(capsys):
    for concept in ("my_dog.jpg", "dog=", "=my_dog.jpg"):
        assert blend.main(["--scene", "a.png", "--concept", concept]) == 2
        assert f'--concept "{concept}"' in capsys.readouterr().out


def test_the_template_is_filled_in(job):
    job = changed(job, seed=5, steps=25, checkpoint="mine.safetensors", target_masks=(), object_masks=())
    work = work_of(job)
    nodes = by_class(work.prompt)
    ((inverted,), (loaded,)) = nodes["PnPMixDDPMInvert"], nodes["CheckpointLoaderSimple"]
    assert (inverted["seed"], inverted["steps"], inverted["skip_steps"]) == (5, 25, 8), "the template's share is 16/50"
    assert loaded["ckpt_name"] == "mine.safetensors"
    assert sorted((x["prompt"], x["pick"]) for x in nodes["PnPMixGroundedMask"]) == [
        ("cup", "best"), ("cup . fish", "in order"), ("fish", "best"),
    ]  # fmt: skip
    assert {"cup, fish"} < {x["text"] for x in nodes["CLIPTextEncode"]}
    assert {x["image"] for x in nodes["LoadImage"]} == {f"pnp-mix/{name}" for name in work.files}
    assert [sent.path.stem for sent in work.files.values()] == ["scene", "dog", "cat"]
    assert "PreviewImage" not in nodes, "nobody looks"
    assert graphs.to_api(work.workflow).items() >= work.prompt.items(), "the metadata is the graph that ran"


def test_two_of_a_kind_each_take_an_object_of_their_own(job):
    """Two dogs, from left to right in the order of the concepts."""
    work = work_of(changed(job, objects=("dog", "dog"), target_masks=(), object_masks=()))
    asked = [x["prompt"] for x in by_class(work.prompt)["PnPMixGroundedMask"] if x["pick"] == "in order"]
    assert asked == ["dog . dog"]


def test_a_cut_out_is_its_own_object_mask(job, tmp_path):
    """A concept image with an alpha channel is not searched for its object; the other one is."""
    cut_out = Image.new("RGBA", (64, 64))
    cut_out.paste((200, 30, 30, 255), (10, 10, 40, 50))
    cut_out.save(tmp_path / "mug.png")
    work = work_of(changed(job, concepts=(tmp_path / "mug.png", job.concepts[1]), target_masks=(), object_masks=()))
    (loaded,) = by_class(work.prompt)["LoadImageMask"]
    assert work.files[loaded["image"].removeprefix("pnp-mix/")].content == "alpha"
    assert len(by_class(work.prompt)["PnPMixGroundedMask"]) == 2 and work.workflow is None


def test_masks_from_files_replace_the_nodes_that_find_objects(job):
    nodes = by_class(work_of(job).prompt)
    assert not {"PnPMixGroundedMask", "PnPMixGroundingDinoLoader", "PnPMixSamLoader"} & set(nodes)
    assert len(nodes["LoadImageMask"]) == 4 and nodes["CheckpointLoaderSimple"]
    demo = by_class(work_of(job, demo=True).prompt)
    assert demo["PnPMixDemoModel"] and "CheckpointLoaderSimple" not in demo
    with pytest.raises(JobFailed, match="masks"):
        work_of(changed(job, target_masks=()), demo=True)


def test_a_picture_is_named_by_all_that_it_is_made_from(job):
    name = work_of(job).output
    assert name.startswith("scene-") and work_of(changed(job, where="row 9")).output == name
    for change in (
        dict(seed=1),
        dict(prompt="fish, cup"),
        dict(steps=9),
        dict(checkpoint="x"),
    ):
        assert work_of(changed(job, **change)).output != name
    assert work_of(changed(job, objects=("a", "b"))).output == name, "masks leave the objects' names unused"
    assert work_of(changed(job, name="../a b")).output.startswith("_a_b-")
    other = save_picture(job.scene.parent / "other.png", "blue")
    assert work_of(changed(job, concepts=(other, job.concepts[1]))).output != name


def test_a_missing_and_a_broken_picture_are_named(job, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(job.scene.read_bytes()[:40])
    for path, said in ((tmp_path / "gone.png", "is not there"), (broken, "is no image"), (tmp_path, "is no image")):
        with pytest.raises(JobFailed, match=said) as error:
            work_of(changed(job, concepts=(path, job.concepts[1])))
        assert str(path) in str(error.value)


def test_a_template_that_does_not_fit_is_answered_by_those_that_do(job):
    for name in ("START HERE - two objects, no downloads", "Replace one object, masks painted by hand", "../x"):
        with pytest.raises(JobFailed, match="'Replace two objects with SDXL'"):
            work_of(changed(job, template=name))


@pytest.mark.parametrize("template", [TEMPLATE, "Replace two objects"])
def test_a_template_takes_any_number_of_objects(job, template):
    """As people copy one: each has its picture and its own node in the chain, also in the graph of the metadata."""
    for count in (1, 2, 4):
        many = {x: getattr(job, x)[:1] * count for x in ("concepts", "objects")}
        work = work_of(changed(job, **many, target_masks=(), object_masks=(), template=template))
        nodes = by_class(work.prompt)
        assert len(nodes["PnPMixConcept"]) == count == sum("concepts" in x for x in nodes["PnPMixConcept"]) + 1
        chain, (mixer,) = {key: x["inputs"].get("concepts") for key, x in work.prompt.items()}, nodes["PnPMixSampler"]
        link, reached = mixer["concepts"], 0
        while link:
            reached, link = reached + 1, chain[link[0]]
        assert reached == count
        assert graphs.to_api(work.workflow).items() >= work.prompt.items()


def test_target_masks_of_several_sizes_are_refused(job, tmp_path):
    other = save_picture(tmp_path / "small.png", "white", size=(32, 32))
    with pytest.raises(JobFailed, match="8 x 8 and 32 x 32 pixels"):
        work_of(changed(job, target_masks=(job.target_masks[0], other)))


def test_jobs_that_share_an_inversion_follow_each_other(job):
    a, b = job, changed(job, seed=1)
    other_concept = changed(a, concepts=a.concepts[::-1])
    assert in_order([a, b, other_concept, b]) == [a, other_concept, b, b]


def test_the_prompt_is_made_of_the_objects():
    assert prompt_of(["dog"]) == "a photo of a dog"
    assert prompt_of(["dog", "owl", "cup"]) == "a photo of a dog, an owl and a cup"


def test_a_full_disk_leaves_no_half_picture_and_the_next_job_is_tried(job, tmp_path, monkeypatch, capsys):
    """The disk is stood in for; the server is not needed to get there."""

    class Drawn:
        messages = ()

        def images(self, *_):
            return [job.scene.read_bytes()]

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    really = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda handle, mode: Full(really(handle, mode)))
    folder = tmp_path / "out"
    jobs = [job, changed(job, seed=1)]
    assert not blend.run_jobs(jobs, folder, Drawn, demo=True)
    assert list(folder.iterdir()) == []
    said = capsys.readouterr().out
    assert said.count("No space left on device") == 2 and "0 made, 0 there already, 2 failed" in said

    monkeypatch.setattr(os, "fdopen", really)
    assert blend.run_jobs(jobs, folder, Drawn, demo=True)
    assert sorted(path.name for path in folder.iterdir()) == sorted(work_of(x, True).output for x in jobs)


TEMPLATES = sorted(path.stem for path in graphs.TEMPLATES.glob("*.json"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_nodes_of_a_subgraph_are_titled_by_it_in_the_api_graph_of_each_template(name):
    workflow = graphs.read(graphs.TEMPLATES / f"{name}.json")
    graph = graphs.api_graph(name.removesuffix(".app"))
    inside = {node["_meta"]["title"].partition(": ")[0] for node_id, node in graph.items() if ":" in node_id}
    assert inside == {graphs.title(workflow, x) for x in workflow["nodes"] if x["type"] in graphs.subgraphs(workflow)}


@pytest.mark.parametrize(
    "lines, said",
    [
        (['scene,concepts,objects', 'a.png,b.png,"a dog', "c.png,d.png,cat"], "line 3: unexpected end of data"),
        (["scene,concepts,objects,objects", "a.png,b.png,dog,cat"], "has columns twice: 'objects'"),
        (["scene,concepts,objects,prompt", "a,b,dog," + 200_000 * "x"], "line 2: field larger than field limit"),
        (['scene,concepts,objects', '"a.png"x,b.png,dog'], "line 2: ',' expected after"),
    ],
)  # fmt: skip
def test_a_table_that_would_lose_rows_is_refused(tmp_path, lines, said):
    """With a quote that is never closed, all that follows is one cell."""
    with pytest.raises(BadTable, match=said):
        read_table(table(tmp_path, *lines), Job)


def test_a_cell_with_the_character_0_is_named(tmp_path):
    (fault,) = read_table(table(tmp_path, "scene,concepts,objects", "a\0.png,b.png,dog"), Job)
    assert "row 2: the column 'scene'" in str(fault)


class Answers(http.server.BaseHTTPRequestHandler):
    """Another program than ComfyUI."""

    code, body = 200, b""

    def do_GET(self):
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def other(monkeypatch):
    """Its address."""
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


OTHERS = {
    "a page": (200, b"<html>Welcome</html>"),
    "a list": (200, b"[1, 2]"),
    "nothing": (200, b""),
    "a number": (200, b"3"),
    "half characters": (200, b'{"\\ud800": 1}'),
    "nested without end": (200, b"[" * 100_000),
    "another type": (200, b'{"PnPMixSampler": 1, "system": 3, "devices": []}'),
    "an error": (500, b"{}"),
    "not found": (404, b"no such page"),
    "asks for a password": (401, b"[]"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("command", [blend, evaluate])
def test_another_program_at_the_address_is_named(job, tmp_path, other, capsys, monkeypatch, command, kind):
    monkeypatch.setattr(Answers, "code", OTHERS[kind][0])
    monkeypatch.setattr(Answers, "body", OTHERS[kind][1])
    path = tmp_path / "tasks.csv"
    path.write_text("scene,concepts,objects,target masks,object masks\nscene.png,dog.png,cup,mask 1.png,own 1.png")
    given = ["--table", str(path)] if command is blend else ["--tasks", str(tmp_path)]
    code, told = command.main([*given, "--url", other, "--output", str(tmp_path / "made")]), capsys.readouterr().out
    if kind == "another type" and command is blend:  # which says nothing that is asked for
        assert code == 1 and "is not in ComfyUI's models" in told
    else:
        assert code == 2 and "another program than ComfyUI answers" in told


@pytest.mark.parametrize("command", [blend, evaluate])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_sent(job, tmp_path, capsys, command, monkeypatch):
    monkeypatch.setattr(f"{command.__name__}.comfyui_server", None)
    (tmp_path / "file").touch()
    path = tmp_path / "tasks.csv"
    path.write_text("scene,concepts,objects\nscene.png,dog.png,cup")
    given = ["--table", str(path)] if command is blend else ["--tasks", str(tmp_path)]
    for options in (given, ["--demo"]):
        assert command.main([*options, "--output", str(tmp_path / "file" / "made")]) == 2
        assert "cannot be written to (Not a directory)" in capsys.readouterr().out


@pytest.mark.parametrize("kind, page", [(Job, "README.md"), (Task, "evaluation.md")])
def test_the_page_of_a_command_lists_every_column_of_its_table(kind, page):
    text = (graphs.PACK / "cli" / page).read_text(encoding="utf-8")
    own = columns(kind) if kind is Job else {k: v for k, v in columns(kind).items() if v != columns(Job).get(k)}
    for name, says in own.items():
        assert f"| `{name}` | " + says.replace("|", "\\|") + " |" in text
