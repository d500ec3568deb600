"""run.py evaluate: folders of tasks, rows of an ablation, and the page."""

import html
import json
import re
from pathlib import Path

import pytest
from headless import evaluate, papers, scores
from headless.evaluate import Evaluated, Made
from headless.jobs import BadTable, Job, JobFailed, work_of
from headless.report import page
from headless.tasks import pictures_of, read_tasks
from headless.variants import ROWS, change, for_demo
from PIL import Image

NOTHING = Job(None, (), ())


def save_picture(path: Path, colour: str = "red", size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
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


def made_from(kind: str, source: Path, folder: Path, *options: str) -> list[Job]:
    assert evaluate.main(["--make", kind, str(source), "--tasks", str(folder), *options]) == 0
    return read_tasks(folder, NOTHING)


def test_tasks_are_made_from_dreambooths_pictures_and_unos_pairs(dreambooth, tmp_path):
    tasks = made_from("dreambench", dreambooth, tmp_path / "tasks", "--limit", "3")
    assert [task.prompt[-1] for task in tasks] == ["0", "2", "4"], "spread over all pairs"
    task = tasks[0]
    assert task.scene is None and task.words == ("dog", "can") and task.name == "001 dog6+can"
    assert [path.resolve().parent.name for path in task.things] == ["dog6", "can"]
    assert [path.name for path in pictures_of(task.references[0])] == ["00.jpg", "01.jpg", "02.jpg"]


def test_tasks_are_made_from_customconcept101(customconcept101, tmp_path):
    tasks = made_from("customconcept101", customconcept101, tmp_path / "tasks")
    assert [task.prompt for task in tasks] == ["a dog beside a cup", "cup under the dog"]
    assert all(path.name == "a.jpg" for task in tasks for path in task.things), "the first of each folder"


@pytest.mark.parametrize(
    "content", ["{", "{}", "[1]", '[{"prompt": "a"}]', '[{"prompt": "a", "image_paths": ["x/y"]}]']
)
def test_a_data_set_that_is_not_as_published_is_refused(tmp_path, capsys, content):
    source = tmp_path / "pairs.json"
    source.write_text(content)
    for kind in ("dreambench", "customconcept101"):
        assert evaluate.main(["--make", kind, str(source), "--tasks", str(tmp_path / "tasks")]) == 2
        assert str(tmp_path) in capsys.readouterr().out and not (tmp_path / "tasks").exists()


def test_a_folder_without_its_table_or_pictures_is_refused(tmp_path, capsys):
    assert evaluate.main(["--tasks", str(tmp_path)]) == 2
    assert f"no tasks.csv in {tmp_path}" in capsys.readouterr().out
    with pytest.raises(JobFailed, match="no picture in"):
        pictures_of(tmp_path)
    (tmp_path / "tasks.csv").write_text("scene,things\na,b")
    with pytest.raises(BadTable, match="lacks the columns: words"):
        read_tasks(tmp_path, NOTHING)


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
def job(tmp_path) -> Job:
    """Two pictures have the same name."""
    dog, cat = (save_picture(tmp_path / x / "it.png", x) for x in ("red", "blue"))
    masks = [save_picture(tmp_path / f"{k}.png", "white" if k == 0 else "black") for k in range(4)]
    scene = save_picture(tmp_path / "scene.png", "green")
    return Job(scene, (dog, cat), ("cup", "fish"), "cup, fish", masks=tuple(masks[:2]), object_masks=tuple(masks[2:]))


def graph_of(job: Job, row: str) -> dict[str, list[dict]]:
    (variant,) = (x for x in ROWS if x.name.startswith(row))
    found: dict[str, list[dict]] = {}
    work = work_of(job._replace(steps=variant.steps), False, lambda prompt: change(variant, prompt))
    for node in work.prompt.values():
        found.setdefault(node["class_type"], []).append(node["inputs"])
    return found


def test_two_pictures_of_one_name_stay_apart(job):
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
    names = {work_of(job._replace(steps=x.steps), False, lambda p, x=x: change(x, p)).output for x in ROWS}
    assert len(names) == len(ROWS), "no row overwrites another"
    assert all(for_demo(x).steps < x.steps for x in ROWS)


def test_scores_of_the_background_are_of_what_lies_outside_the_masks(job):
    own = job._replace(masks=(job.masks[1], job.masks[1]))  # black: nothing is covered
    same = scores.of_background(own, scores.read_picture(job.scene))
    assert same["psnr"] == pytest.approx(100) and same["ssim"] == pytest.approx(1)
    assert scores.of_background(own, scores.read_picture(job.things[0]))["psnr"] < 10
    assert scores.of_background(job, scores.read_picture(job.scene)) == {}, "the masks leave nothing"


def test_the_page_is_one_file_with_every_picture_the_intervals_and_the_papers_tables(job, tmp_path):
    rows = ROWS[-2:]
    path = save_picture(tmp_path / "made.png", "purple", 640)
    results = [
        Evaluated(job._replace(name=f"<task {k}>"), {x.name: Made(path, {"fidelity": 0.2 + 0.2 * k}) for x in rows}, {})
        for k in range(3)
    ]
    broken = Evaluated(job._replace(name="half"), {rows[0].name: Made(path, {"fidelity": 0.9})}, {rows[1].name: "why"})
    written = page(rows, [*results, broken, Evaluated(NOTHING, {}, {"": "row 9: gone"})], {"date": "today"})
    said = html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", written, flags=re.DOTALL)))
    assert "0.400 ± 0.497" in said, "of 0.2, 0.4 and 0.6: Student's t of two degrees of freedom"
    assert "over 3 tasks" in said and "2 tasks are left out" in said
    assert f"{rows[1].name}: why" in said and "row 9: gone" in said and "<task 1>" in said
    assert papers.REMARK in said and all(cell in said for x in papers.TABLES for row in x.rows for cell in row)
    assert written.count("<img") == 4 * 5 + 7, "scene, things, masks and results of each"
    assert set(re.findall(r'src="([^:]*:[^,]*),', written)) == {"data:image/png;base64", "data:image/jpeg;base64"}
    assert "http" not in written.replace("https", "http").split("<h2>What the papers")[0], "nothing is fetched"
