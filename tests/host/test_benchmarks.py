"""The pack beside a plain implementation of the same method: fewer model rows, the same picture."""

import pytest
import torch
from benchmarks.speed import Meter, draw_task, run_pack, run_plain_loop
from benchmarks.unets import random_model

from oracle import relative_error

STEPS, SKIP = 10, 4
pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def model():
    return random_model("small", torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("concepts", [1, 2])
def test_a_third_of_the_rows_for_the_same_result(model, concepts):
    task = draw_task(model, "small", 64, concepts, STEPS, SKIP)
    meter, n = Meter(model.model.diffusion_model, torch.device("cpu")), STEPS - SKIP
    ours, result = meter.measure(run_pack, task)
    plain, expected = meter.measure(run_plain_loop, task)
    assert relative_error(result, expected) < 2e-4
    assert (ours["invert"].rows, ours["blend"].rows) == (2 * n, 3 * concepts * n)
    assert (plain["invert"].rows, plain["blend"].rows) == (2 * (concepts + 2) * n, 4 * (2 * concepts + 3) * n)
    rows, theirs = (sum(stage.rows for stage in stages.values()) for stages in (ours, plain))
    assert rows <= 0.35 * theirs


def test_rows_grow_with_the_concepts_alone(model):
    rows = []
    for concepts in (1, 2, 4, 8):
        meter = Meter(model.model.diffusion_model, torch.device("cpu"))
        task = draw_task(model, "small", 64, concepts, 4, 2)
        stages, _ = meter.measure(run_pack, task)
        rows.append((stages["invert"].rows, stages["blend"].rows))
    assert rows == [(4, 3 * 2 * concepts) for concepts in (1, 2, 4, 8)]
