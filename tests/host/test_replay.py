"""An inverted picture can be reached again exactly, whatever the schedule."""

import math

import pytest
import torch

from comfy_host import Graph
from mixer_graph import appearance, chain, invert, mixer
from oracle import relative_error
from pictures import ellipse, latent
from small_models import LAYOUTS, comfy_model


def schedulers() -> list[str]:
    """All of ComfyUI's; the list is only there once ComfyUI is."""
    import comfy.samplers

    return comfy.samplers.SCHEDULER_NAMES


def replay(inversion) -> torch.Tensor:
    """DDPM sampling with the noise maps of eq. 3.2, in double precision."""
    sigmas, path, eps = (x.double() for x in inversion[:3])
    x = path[0]
    for i in range(len(eps)):
        now, then = float(sigmas[i]), float(sigmas[i + 1])

        def mean(x, i=i, now=now, then=then):
            denoised = x - now * eps[i]
            return denoised + then**2 / now**2 * (x - denoised)

        std = then * math.sqrt(max(1 - then**2 / now**2, 0))
        residual = path[i + 1] - mean(path[i])
        noise_map = residual / std if std > 0 else None
        x = mean(x) + (residual if noise_map is None else std * noise_map)
    return x[None]


@pytest.mark.parametrize(
    "layout, steps, skip",
    [("SD 1.x", 12, 0), ("SD 1.x", 12, 4), ("SD 1.x", 12, 11), ("SD 1.x", 30, 7), ("SD 2.x v", 12, 4)],
)
def test_every_scheduler_replays(layout, steps, skip):
    import comfy.samplers

    model = comfy_model(LAYOUTS[layout])
    for scheduler in schedulers():
        graph = Graph()
        inversion = graph.run(inversion=invert(graph, model, steps=steps, skip_steps=skip, scheduler=scheduler))
        inversion = inversion["inversion"].inversion
        whole = len(comfy.samplers.calculate_sigmas(model.model.model_sampling, scheduler, steps)) - 1
        assert len(inversion.eps) == whole - round(whole * skip / steps), scheduler
        assert inversion.sigmas[-1] == 0, scheduler
        x0 = model.model.process_latent_in(latent(0))
        assert relative_error(replay(inversion), x0) < 1e-5, scheduler


@pytest.mark.parametrize("skip, left, noisiest", [(0, 31, 991), (10, 21, 661)])
def test_steps_that_do_not_divide_the_schedule_cut_nothing_but_the_share_that_is_skipped(skip, left, noisiest):
    """ddim_uniform takes every 33rd timestep from 1 for 30 steps, which are 31."""
    model = comfy_model(LAYOUTS["SD 1.x"])
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=30, skip_steps=skip, cfg=1.0))["inversion"].inversion
    assert len(inversion.eps) == left
    assert inversion.sigmas[0] == model.model.model_sampling.sigmas[noisiest]


@pytest.mark.parametrize("scheduler", ["ddim_uniform", "karras", "simple"])
@pytest.mark.parametrize("skip", [0, 5])
def test_background_comes_back_outside_the_masks(scheduler, skip):
    model = comfy_model(LAYOUTS["SD 1.x"])
    graph = Graph()
    inversion = invert(graph, model, steps=12, skip_steps=skip, scheduler=scheduler)
    result = graph.run(latent=mixer(graph, model, inversion, chain(graph, 2)))["latent"]["samples"]
    outside = torch.from_numpy(ellipse(0) + ellipse(1)).reshape(12, 8, 16, 8).amax((1, 3)) == 0
    assert outside.any()
    assert relative_error(result[..., outside], latent(0)[..., outside]) < 1e-6


def test_few_steps_replay_and_leave_the_background():
    model = comfy_model(LAYOUTS["SD 2.x v"])
    graph = Graph()
    few = dict(steps=4, skip_steps=1, scheduler="sgm_uniform", cfg=1.0)
    inversion = invert(graph, model, **few)
    mixed = mixer(graph, appearance(graph, model), inversion, chain(graph, 2), falling_guidance=False)
    results = graph.run(inversion=inversion, latent=mixed)
    x0 = model.model.process_latent_in(latent(0))
    assert relative_error(replay(results["inversion"].inversion), x0) < 1e-5
    outside = torch.from_numpy(ellipse(0) + ellipse(1)).reshape(12, 8, 16, 8).amax((1, 3)) == 0
    result = results["latent"]["samples"]
    assert relative_error(result[..., outside], latent(0)[..., outside]) < 1e-6
    assert relative_error(result, latent(0)) > 0.01


def test_the_seed_decides_the_noise():
    model = comfy_model(LAYOUTS["SD 1.x"])

    def first(seed):
        graph = Graph()
        return graph.run(inversion=invert(graph, model, seed=seed))["inversion"].inversion.trajectory[0]

    assert torch.equal(first(3), first(3))
    assert relative_error(first(3), first(4)) > 0.5


def test_a_patch_that_acts_by_time_sees_every_timestep():
    """Batched timesteps would show such a patch only the first of them."""
    model = comfy_model(LAYOUTS["SD 1.x"])

    def by_time(args):
        return args["denoised"] * (1.2 if float(args["sigma"][0]) > 2 else 0.8)

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(by_time)
    graph = Graph()
    results = graph.run(plain=invert(graph, model), patched=invert(graph, patched))
    plain, patched = results["plain"].inversion, results["patched"].inversion
    for i, sigma in enumerate(plain.sigmas[:-1]):
        denoised = plain.trajectory[i] - sigma * plain.eps[i]
        expected = (plain.trajectory[i] - denoised * (1.2 if sigma > 2 else 0.8)) / sigma
        assert relative_error(patched.eps[i], expected) < 1e-5


def test_a_wired_schedule_inverts_like_the_scheduler_of_the_same_levels():
    model = comfy_model(LAYOUTS["SD 1.x"])
    graph = Graph()
    sigmas = graph.add("BasicScheduler", model=model, scheduler="karras", steps=6, denoise=1.0)
    wired = invert(graph, model, sigmas=sigmas, skip_steps=2)
    results = graph.run(wired=wired, named=invert(graph, model, scheduler="karras", steps=6, skip_steps=2))
    for ours, theirs in zip(results["wired"].inversion, results["named"].inversion, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
