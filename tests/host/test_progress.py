"""While it runs, the editor shows how far it is and what it looks like."""

import pytest

from comfy_host import Graph
from mixer_graph import SKIP, STEPS, appearance, chain, custom_mixer, invert, mixer
from pictures import HEIGHT, WIDTH
from small_models import LAYOUTS, comfy_model


@pytest.fixture
def progress():
    """(value, total, preview) of every report to ComfyUI."""
    import comfy.utils
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod

    reports = []
    method, latent_preview.args.preview_method = latent_preview.args.preview_method, LatentPreviewMethod.Latent2RGB
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **_: reports.append((value, total, preview)))
    yield reports
    comfy.utils.set_progress_bar_global_hook(None)
    latent_preview.args.preview_method = method


def test_inversion_and_mixer_report_each_step_with_a_picture(progress):
    model = comfy_model(LAYOUTS["SD 1.x"])
    graph = Graph()
    graph.run(inversion=invert(graph, model, steps=100))
    values = [value for value, _, _ in progress]
    assert values == sorted(set(values)) and values[-1] == 100 - SKIP
    assert all(total == 100 - SKIP for _, total, _ in progress)
    assert all(preview[1].size == (WIDTH // 8, HEIGHT // 8) for _, _, preview in progress)

    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model))["inversion"]
    progress.clear()
    graph = Graph()
    graph.run(latent=mixer(graph, appearance(graph, model), inversion, chain(graph, 3)))
    assert [value for value, _, _ in progress] == list(range(1, STEPS - SKIP + 1))
    for _, _, preview in progress:
        assert preview[1].size == (4 * WIDTH // 8, HEIGHT // 8), "output and three references side by side"


def test_custom_sampling_reports_each_step_with_the_result_so_far(progress):
    model = comfy_model(LAYOUTS["SD 1.x"])
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model))["inversion"]
    progress.clear()
    graph = Graph()
    graph.run(latent=custom_mixer(graph, appearance(graph, model), inversion, chain(graph, 3)))
    assert [value for value, _, _ in progress] == list(range(1, STEPS - SKIP + 1))
    assert all(preview[1].size == (WIDTH // 8, HEIGHT // 8) for _, _, preview in progress)
