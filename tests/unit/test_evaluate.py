"""run.py evaluate: folders of tasks, rows of an ablation, and the page."""

import html
import html.parser
import json
import re
from pathlib import Path

import pytest
from cli import evaluate, methods, scores
from cli.errors import BadTable, JobFailed, ServerEnded
from cli.report import page, write_report
from cli.tasks import CompleteTask, Evaluated, Made, Task, images_of, read_tasks
from cli.variants import OTHER_METHODS, ROWS, change, for_demo
from cli.work import work_of
from PIL import Image


def save_picture(path: Path, color: str = "red", size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).save(path)
    return path


@pytest.fixture
def dreambooth(tmp_path) -> Path:
    """UNO's file of pairs, with DreamBooth's folders beside it."""
    dataset = tmp_path / "datasets" / "dreambooth" / "dataset"
    for subject in ("dog6", "can"):
        for k in range(3):
            save_picture(dataset / subject / f"{k:02}.jpg", ("red", "blue", "green")[k])
    (dataset / "prompts_and_classes.txt").write_text("Classes\n\nsubject_name,class\ndog6,dog\ncan,can\n")
    paths = [f"./dreambooth/dataset/{name}/00.jpg" for name in ("dog6", "can")]
    pairs = [{"prompt": f"a dog and a can in place {k}", "image_paths": paths} for k in range(6)]
    source = tmp_path / "datasets" / "dreambench_multiip.json"
    source.write_text(json.dumps(pairs))
    return source


@pytest.fixture
def customconcept101(tmp_path) -> Path:
    root = tmp_path / "customconcept101"
    for name in ("pet_dog1", "things_cup2"):
        save_picture(root / "benchmark_dataset" / name / "b.jpg")
        save_picture(root / "benchmark_dataset" / name / "a.jpg")
    (root / "prompts").mkdir()
    (root / "prompts" / "pair.txt").write_text("a {0} beside a {1}\n\n{1} under the {0} \n")
    pair = [
        {"class_prompt": kind, "instance_data_dir": f"./benchmark_dataset/{name}"}
        for kind, name in (("dog", "pet_dog1"), ("cup", "things_cup2"))
    ]
    source = root / "dataset_multiconcept.json"
    source.write_text(json.dumps([[*pair, {"prompt_filename_compose": "prompts/pair.txt"}]]))
    return source


def made_from(kind: str, source: Path, folder: Path, *options: str) -> list[Task]:
    assert evaluate.main(["--make", kind, str(source), "--tasks", str(folder), *options]) == 0
    return read_tasks(folder)


def test_tasks_are_made_from_dreambooths_pictures_and_unos_pairs(dreambooth, tmp_path):
    tasks = made_from("dreambench", dreambooth, tmp_path / "tasks", "--limit", "3")
    assert [task.prompt[-1] for task in tasks] == ["0", "2", "4"], "spread over all pairs"
    task = tasks[0]
    assert task.scene is None and task.objects == ("dog", "can") and task.name == "001 dog6+can"
    assert [path.resolve().parent.name for path in task.concepts] == ["dog6", "can"]
    assert [path.name for path in images_of(task.references[0])] == ["00.jpg", "01.jpg", "02.jpg"]


def test_tasks_are_made_from_customconcept101(customconcept101, tmp_path):
    tasks = made_from("customconcept101", customconcept101, tmp_path / "tasks")
    assert [task.prompt for task in tasks] == ["a dog beside a cup", "cup under the dog"]
    assert all(path.name == "a.jpg" for task in tasks for path in task.concepts), "the first of each folder"


def test_a_folder_without_its_table_or_pictures_is_refused(tmp_path, capsys):
    assert evaluate.main(["--tasks", str(tmp_path)]) == 2
    assert f"no tasks.csv in {tmp_path}" in capsys.readouterr().out
    with pytest.raises(JobFailed, match="no image in"):
        images_of(tmp_path)
    (tmp_path / "tasks.csv").write_text("scene,concepts\na,b")
    with pytest.raises(BadTable, match="lacks the columns: objects"):
        read_tasks(tmp_path)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "give --tasks or --demo"),
        (["--demo", "--tasks", "x"], "leave out --tasks"),
        (["--tasks", "x", "--clip-text", "a"], "needs --clip-vision"),
        (["--demo", "--rows", "no such"], "background dilution++"),
        (["--make", "dreambench", "x.json"], "--tasks for the folder"),
        (["--make", "other", "x.json", "--tasks", "x"], "dreambench or customconcept101"),
        (["--demo", "--limit", "0"], "1 task or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(capsys, arguments, said):
    with pytest.raises(SystemExit) as error:
        evaluate.main(arguments)
    assert error.value.code == 2 and said in capsys.readouterr().err


@pytest.fixture
def job(tmp_path) -> CompleteTask:
    """Two pictures have the same name."""
    dog, cat = (save_picture(tmp_path / x / "it.png", x) for x in ("red", "blue"))
    masks = [save_picture(tmp_path / f"{k}.png", "white" if k == 0 else "black") for k in range(4)]
    scene = save_picture(tmp_path / "scene.png", "green")
    return CompleteTask(
        scene=scene, concepts=(dog, cat), objects=("cup", "fish"), prompt="cup, fish",
        target_masks=masks[:2], object_masks=masks[2:],
    )  # fmt: skip


def changed(task: CompleteTask, **fields) -> CompleteTask:
    return task.model_copy(update=fields)


def graph_of(job: CompleteTask, row: str) -> dict[str, list[dict]]:
    (variant,) = (x for x in ROWS if x.name.startswith(row))
    found: dict[str, list[dict]] = {}
    work = work_of(changed(job, steps=variant.steps), False, lambda prompt: change(variant, prompt))
    for node in work.prompt.values():
        found.setdefault(node["class_type"], []).append(node["inputs"])
    return found


def test_two_images_of_one_name_stay_apart(job):
    names = [name for name in work_of(job).files if name.startswith("it-")]
    assert len(names) == len(set(names)) == 2


def test_the_rows_are_the_ablation_of_the_paper(job):
    """What each adds to the one before it."""
    a, b, c, d, e = (graph_of(job, f"({row})") for row in "abcde")
    assert "PnPMixDilution" not in a and "PnPMixDilution" not in b
    assert [x["PnPMixAppearance"][0]["alpha"] for x in (a, b, c, d, e)] == [0, 0.15, 0.15, 0.15, 0.15]
    mixed = [x["PnPMixSampler"][0]["mix_reference_noise"] for x in (a, b, c, d, e)]
    assert mixed == [False, False, False, True, True]
    for row in (c, d):
        assert row["PnPMixDilution"][0]["latent"] == row["PnPMixDDPMInvert"][0]["latent"]
    assert e["PnPMixDilution"][0]["latent"] != e["PnPMixDDPMInvert"][0]["latent"]
    for row in (a, b, c, d, e):
        inverted = row["PnPMixDDPMInvert"][0]
        assert (inverted["steps"], inverted["skip_steps"]) == (100, 32) and not row["PnPMixAppearance"][0]["adain"]
        assert all("object_mask" not in concept for concept in row["PnPMixConcept"])
    ours = graph_of(job, "the templates")
    assert ours["PnPMixAppearance"][0]["adain"] and all("object_mask" in x for x in ours["PnPMixConcept"])
    names = {work_of(changed(job, steps=x.steps), False, lambda p, x=x: change(x, p)).output for x in ROWS}
    assert len(names) == len(ROWS), "no row overwrites another"
    assert all(for_demo(x).steps < x.steps for x in ROWS)


def test_scores_of_the_background_are_of_what_lies_outside_the_masks(job):
    own = changed(job, target_masks=(job.target_masks[1], job.target_masks[1]))  # black: nothing is covered
    same = scores.of_background(own, scores.read_image(job.scene))
    assert same["psnr"] == pytest.approx(100) and same["ssim"] == pytest.approx(1)
    assert scores.of_background(own, scores.read_image(job.concepts[0]))["psnr"] < 10
    assert scores.of_background(job, scores.read_image(job.scene)) == {}, "the masks leave nothing"


def test_the_page_is_one_file_with_every_picture_the_intervals_and_the_papers_tables(job, tmp_path):
    rows = ROWS[-2:]
    path = save_picture(tmp_path / "made.png", "purple", 640)
    results = [
        Evaluated(changed(job, name=f"<task {k}>"), {x.name: Made(path, {"fidelity": 0.2 + 0.2 * k}) for x in rows}, {})
        for k in range(3)
    ]
    broken = Evaluated(changed(job, name="half"), {rows[0].name: Made(path, {"fidelity": 0.9})}, {rows[1].name: "why"})
    written = page(rows, [*results, broken, Evaluated(None, {}, {"": "row 9: gone"})], {"date": "today"})
    said = html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", written, flags=re.DOTALL)))
    assert "0.400 ± 0.497" in said, "of 0.2, 0.4 and 0.6: Student's t of two degrees of freedom"
    assert "over 3 tasks" in said and "2 tasks are left out" in said
    assert f"{rows[1].name}: why" in said and "row 9: gone" in said and "<task 1>" in said
    assert "not comparable" in said and "0.6542" in said, "the papers' tables"
    assert written.count("<img") == 4 * 5 + 7, "scene, things, masks and results of each"
    assert set(re.findall(r'src="([^:]*:[^,]*),', written)) == {"data:image/png;base64", "data:image/jpeg;base64"}
    assert "http" not in written.replace("https", "http").split("<h2>What the papers")[0], "nothing is fetched"


class Elements(html.parser.HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, [name for name, _ in attributes]))

    def handle_data(self, data):
        self.text += data


def test_no_text_of_a_task_or_a_fault_is_html_in_the_page(job, tmp_path):
    def written(said: str) -> Elements:
        rows = [ROWS[0]._replace(name=f"row {said}"), ROWS[1]]
        made = {rows[0].name: Made(job.scene, {"fidelity": 0.5})}
        own = changed(job, name=said, prompt=said, objects=(said, said))
        results = [Evaluated(own, made, {said: said}), Evaluated(None, {}, {"": said})]
        return Elements(write_report(tmp_path, rows, results, {said: said}).read_text(encoding="utf-8"))

    said = "'\"><img src=x onerror=alert(1)><script>alert(2)</script>&amp;\ud800"
    hostile, plain = written(said), written("plain")
    assert hostile.found == plain.found
    assert hostile.text.count(said.replace("\ud800", "\\ud800")) == plain.text.count("plain")


def test_tasks_of_the_same_name_are_all_in_the_report(job, tmp_path):
    names, row = ["dog", "dog (2)", "dog", "dog", ""], ROWS[0]
    results = [
        Evaluated(changed(job, name=name), {row.name: Made(job.scene, {"fidelity": k / 8})}, {})
        for k, name in enumerate(names)
    ]
    nothing = [Evaluated(None, {}, {"": "why"})] * 2
    text = write_report(tmp_path, [row], [*results, *nothing], {}).read_text(encoding="utf-8")
    tasks = json.loads((tmp_path / "scores.json").read_text())["tasks"]
    found = {name: x[row.name]["fidelity"] for name, x in tasks.items() if x}
    expected = ["dog", "dog (2)", "dog (3)", "dog (4)", job.scene.stem]
    assert found == {name: k / 8 for k, name in enumerate(expected)}
    assert len(tasks) == 7 and all(f"<h3>{name}:" in text for name in expected)


# Rows of the other methods


def graph_of_other(job: CompleteTask, row: str, **fields) -> dict[str, list[dict]]:
    (variant,) = (x for x in OTHER_METHODS if x.name == row)
    given = dict(loras=("a.safetensors", "b.safetensors"), trained=("c.safetensors", "d.safetensors"))
    own, found = changed(job, **given | fields), {}
    work = methods.work_of(own, variant.steps, variant.template, lambda prompt: change(variant, prompt))
    for node in work.prompt.values():
        found.setdefault(node["class_type"], []).append(node["inputs"])
    found["file"] = [work.output]
    return found


def test_concept_conductors_rows_leave_out_what_their_names_say(job):
    job = changed(job, prompt="a cup and a fish in a room", seed=5, checkpoint="mine.safetensors")
    whole = graph_of_other(job, "Concept Conductor", trigger_words=("sks cup", "fish"))
    assert [x["lora_name"] for x in whole["PnPMixConceptLora"]] == ["a.safetensors", "b.safetensors"]
    texts = [x["text"] for x in whole["PnPMixConceptLora"]]
    assert texts == ["a sks cup and a sks cup in a room", "a fish and a fish in a room"]
    assert len(whole["LoadImageMask"]) == 2 and whole["CheckpointLoaderSimple"][0]["ckpt_name"] == "mine.safetensors"
    assert whole["PnPMixConductor"][0]["seed"] == 5 and whole["PnPMixConductor"][0]["steps"] == 200
    without = {
        x: graph_of_other(job, f"Concept Conductor without {x}") for x in ("layout alignment", "mask refinement")
    }
    assert "PnPMixLayoutAlignment" not in without["layout alignment"]
    assert "PnPMixMaskRefinement" not in without["mask refinement"]
    for name, inject in (("self-attention", "cross"), ("cross-attention", "self")):
        row = graph_of_other(job, f"Concept Conductor without {name}")
        assert row["PnPMixConductor"][0]["inject"] == inject
        assert "PnPMixLayoutAlignment" in row and "PnPMixMaskRefinement" in row


def test_loras_are_merged_by_comfyuis_own_loader_under_the_names_that_they_were_taught(job):
    row = graph_of_other(job, "LoRAs merged", trigger_words=("sks cup", "red fish"))
    assert [x["lora_name"] for x in row["LoraLoader"]] == ["a.safetensors", "b.safetensors"]
    assert "sks cup, red fish" in [x["text"] for x in row["CLIPTextEncode"]]
    assert not any(kind.startswith("PnPMix") for kind in row)


def test_latexblends_rows_blend_what_was_learned_into_the_masks(job):
    rows = [graph_of_other(job, f"LaTexBlend{x}") for x in ("", ", binding", ", binding and regions")]
    for row in rows:
        assert [x["file"] for x in row["PnPMixLoadConcept"]] == ["c.safetensors", "d.safetensors"]
        assert len(row["LoadImageMask"]) == 2 and "LoadImage" not in row
        assert all(x["mask"][1] == 0 for x in row["PnPMixBlendConcept"])
    assert [(x["PnPMixBlend"][0]["bind"], x["PnPMixBlend"][0]["region"]) for x in rows] == [
        (False, 0.0), (True, 0.0), (True, 1.0),
    ]  # fmt: skip


def test_no_row_of_another_method_overwrites_another(job):
    names = {graph_of_other(job, x.name)["file"][0] for x in OTHER_METHODS}
    assert len(names) == len(OTHER_METHODS)


@pytest.mark.parametrize("row", [x.name for x in OTHER_METHODS])
def test_a_task_that_does_not_fit_another_method_is_refused(job, tmp_path, row):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (64, 32)).save(wide)
    with pytest.raises(JobFailed, match="64 x 32 pixels"):
        graph_of_other(job, row, scene=wide)
    with pytest.raises(JobFailed, match="for two concepts, not for 1"):
        graph_of_other(job, row, concepts=job.concepts[:1])


def test_a_folder_of_tasks_names_loras_and_learned_concepts(tmp_path):
    for name in ("a", "b"):
        save_picture(tmp_path / f"{name}.png")
    header, cells = (
        "concepts,objects,loras,trigger words,trained",
        "a.png|b.png,dog|cat,x.safetensors|y.safetensors,sks dog|cat,",
    )
    (tmp_path / "tasks.csv").write_text(f"{header}\n{cells}\n")
    (job,) = read_tasks(tmp_path)
    assert job.loras == ("x.safetensors", "y.safetensors")
    assert job.trigger_words == ("sks dog", "cat") and job.trained == ()
    (tmp_path / "tasks.csv").write_text(f"{header}\n{cells.replace('|y.safetensors', '')}\n")
    assert "1 loras" in str(read_tasks(tmp_path)[0])


def test_segsim_compares_every_reference_of_a_concept(job, tmp_path):
    """By the encoder of DINO, with the template's detector."""
    folder = tmp_path / "own"
    for name in ("a", "b", "c"):
        save_picture(folder / f"{name}.png")
    prompt = {}

    class Server:
        def run(self, graph, files):
            prompt.update(graph)
            return {node: {"text": ["0.25"]} for node in graph}

    own = changed(job, references=(folder, job.concepts[1]))
    encoders = scores.Encoders("clip.safetensors", "dino.safetensors", "", True)
    assert scores.by_encoders(own, job.scene, encoders, Server())["segsim"] == 0.25
    kinds = {}
    for node in prompt.values():
        kinds.setdefault(node["class_type"], []).append(node["inputs"])
    assert [x["prompt"] for x in kinds["PnPMixSegSimConcept"]] == ["cup", "fish"] and len(kinds["ImageBatch"]) == 2
    encoder = prompt[kinds["PnPMixSegSim"][0]["encoder"][0]]
    assert encoder["inputs"]["clip_name"] == "dino.safetensors"


def test_a_server_that_stops_in_the_middle_costs_one_picture_and_is_started_again(job, tmp_path):
    """And a file that is no picture costs its own task alone."""
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    columns = {
        "scene": job.scene,
        "target masks": job.target_masks,
        "object masks": job.object_masks,
        "objects": job.objects,
    }
    cells = ["|".join(map(str, x)) if isinstance(x, tuple) else str(x) for x in columns.values()]
    rows = [",".join([*cells, f"{thing}|{job.concepts[1]}", name]) for thing, name in (
        (job.concepts[0], "one"), (broken, "two"), (job.concepts[1], "three"),
    )]  # fmt: skip
    (tmp_path / "tasks.csv").write_text("\n".join([",".join([*columns, "concepts", "name"]), *rows]))
    content, calls, restarts = job.scene.read_bytes(), [], []

    class Server:
        def images(self, *_):
            calls.append(1)
            if len(calls) == 1:
                raise ServerEnded("ComfyUI has ended while it worked.")
            return [content]

        def memory(self):
            return None

        def restart(self):
            restarts.append(1)

    arguments = ["--tasks", str(tmp_path), "--rows", "few steps", "--output", str(tmp_path / "out")]
    options, _ = evaluate.read_options(arguments)
    server = Server()
    first, second, third = evaluate.evaluate(options, lambda: server)
    assert len(restarts) == 1 and "has ended" in next(iter(first.faults.values()))
    assert "no image that can be read" in next(iter(second.faults.values()))
    assert len(third.made) == 1 and len(calls) == 2
    again = evaluate.evaluate(options, lambda: server)
    assert [len(x.made) for x in again] == [1, 0, 1] and len(calls) == 3, "what is there is not made again"


DAMAGED = [
    "",
    "{",
    "[]",
    "3",
    '{"seconds": "much"}',
    '{"seconds": NaN}',
    '{"seconds": null}',
    '{"a": {"b": 1}}',
    "\xff",
]


@pytest.mark.parametrize("notes", [*DAMAGED, "a folder", "a damaged picture"])
def test_what_an_interrupted_run_left_is_done_again(job, tmp_path, notes, monkeypatch):
    """Notes that are damaged, and pictures that are."""
    options, _ = evaluate.read_options(["--tasks", str(tmp_path), "--output", str(tmp_path / "made")])
    content = job.scene.read_bytes()
    monkeypatch.setattr(evaluate, "image_of", lambda work, server, watch: content)

    def make() -> tuple[Made, bool]:
        return evaluate.make(job, ROWS[0], options, lambda: None)

    made, there = make()
    assert not there and make() == (made, True)
    path = made.path.with_suffix(".json")
    if notes == "a damaged picture":
        made.path.write_bytes(content[:40])
    elif notes == "a folder":
        path.unlink()
        path.mkdir()
        with pytest.raises(OSError):
            make()
        path.rmdir()
    else:
        path.write_text(notes, encoding="latin-1")
    again, there = make()
    assert not there and again.scores.keys() == made.scores.keys()
    assert make() == (again, True)


@pytest.mark.parametrize(
    "content",
    ["{", "[" * 100_000, "null", "{}", "[1]", '["\\ud800"]', "\xff", '[{"prompt": "a"}]', '[[1, 2, 3]]',
     '[[{}, {}, {}]]', '[{"prompt": 3, "image_paths": []}]', '[{"prompt": "a", "image_paths": "text"}]',
     '[[{"class_prompt": "a", "instance_data_dir": "b"}]]'],
)  # fmt: skip
def test_a_data_set_that_is_not_as_published_is_refused(tmp_path, capsys, content):
    source = tmp_path / "pairs.json"
    source.write_text(content, encoding="latin-1")
    for kind in ("dreambench", "customconcept101"):
        assert evaluate.main(["--make", kind, str(source), "--tasks", str(tmp_path / "tasks")]) == 2
        assert "not as it is published: entry" in capsys.readouterr().out and not (tmp_path / "tasks").exists()


def test_a_data_set_that_lacks_its_files_is_refused(tmp_path, capsys):
    source = tmp_path / "pairs.json"
    source.write_text('[{"prompt": "a", "image_paths": ["x/y"]}]')
    assert evaluate.main(["--make", "dreambench", str(source), "--tasks", str(tmp_path / "tasks")]) == 2
    assert f"{tmp_path / 'prompts_and_classes.txt'} cannot be read" in capsys.readouterr().out


def test_no_prompt_of_a_data_set_is_followed_as_a_format(customconcept101, tmp_path):
    (customconcept101.parent / "prompts" / "pair.txt").write_text("{0.__init__.__globals__} {1} {2} {")
    (task,) = made_from("customconcept101", customconcept101, tmp_path / "tasks")
    assert task.prompt == "{0.__init__.__globals__} cup {2} {"
