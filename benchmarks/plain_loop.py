"""PnP-MIX as published code of this family does it: what the pack's speed is measured against.

Every picture is inverted over all steps, one timestep a call. In every step every branch (background, emptied
background, output, branches, concepts) goes through the UNet, without and with appearance guidance, each with
classifier-free guidance. Nothing is batched over timesteps, skipped or kept.
"""

from collections.abc import Callable
from itertools import pairwise

import comfy.model_patcher
import comfy.samplers
import torch
from pnpmix.mixer.dilution import Dilution, background_dilution
from pnpmix.mixer.inversion import edit_friendly_trajectory
from pnpmix.mixer.mixing import mix_noise, mix_reference_noise
from pnpmix.schedule import posterior_mean, swap_guidance_scale, to_eps
from torch import Tensor

GUIDED = "branches_guided"  # in transformer_options


class PlainSampler(comfy.samplers.Sampler):
    """Leaves the output in row 0 of the result, then the branches.

    Args:
        pictures: (n + 1, C, H, W) latents of the emptied background and of the concepts.
        seeds: of the trajectories of the background, of the emptied one and of the concepts.
        masks, boxes: (n, 1, H, W) on the latent grid.
        stage: called with "invert" and "blend" when they begin.
    """

    def __init__(
        self,
        pictures: Tensor,
        seeds: list[int],
        masks: Tensor,
        boxes: Tensor,
        inversion_cfg: float,
        alpha: float,
        beta: float,
        swap_guidance: float,
        stage: Callable[[str], None],
    ):
        self.pictures, self.seeds, self.masks, self.boxes = pictures, seeds, masks, boxes
        self.inversion_cfg, self.alpha, self.beta, self.swap_guidance = inversion_cfg, alpha, beta, swap_guidance
        self.stage = stage

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        model, device, steps = model_wrap.inner_model, sigmas.device, len(sigmas) - 1
        masks, boxes, concepts = self.masks.to(device), self.boxes.to(device), len(self.masks)
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        options["transformer_options"]["patches"] = {"attn1_patch": [guide_branches(concepts, self.alpha)]}

        def predict(x: Tensor, sigma: Tensor, cfg: Tensor | float, guided: bool) -> Tensor:
            """Returns noise predictions with classifier-free guidance; `cfg` is a number or one for each row."""
            told = {**options, "transformer_options": {**options["transformer_options"], GUIDED: guided}}
            conds = [model_wrap.conds["negative"], model_wrap.conds["positive"]]
            uncond, cond = comfy.samplers.calc_cond_batch(model, conds, x, sigma.expand(len(x)), told)
            return to_eps(x, uncond + cfg * (cond - uncond), sigma)

        def invert(x0: Tensor, seed: int) -> tuple[Tensor, Tensor]:
            trajectory, residuals = edit_friendly_trajectory(x0, sigmas, seed), []
            for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
                x = trajectory[i : i + 1]
                eps = predict(x, sigma, self.inversion_cfg, guided=False)
                residuals.append(trajectory[i + 1] - posterior_mean(x, eps, sigma, sigma_next)[0])
            return trajectory, torch.stack(residuals)

        self.stage("invert")
        pictures = [latent_image[0], *model.process_latent_in(self.pictures.to(device))]
        (back, residuals), (inpaint, _), *concept_inversions = (
            invert(x0, seed) for x0, seed in zip(pictures, self.seeds, strict=True)
        )
        personal = torch.stack([trajectory for trajectory, _ in concept_inversions])

        self.stage("blend")
        output, branches = back[0], back[0].expand(concepts, *back[0].shape)
        dilution = Dilution(inpaint, boxes, self.beta, "scaled")
        cfg = torch.ones(2 * concepts + 3, 1, 1, 1, device=device)
        cfg[:2] = self.inversion_cfg
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            x = torch.cat([back[i : i + 1], inpaint[i : i + 1], output[None], branches, personal[:, i]])
            plain, guided = (predict(x, sigma, cfg, guided) for guided in (False, True))
            weight = swap_guidance_scale(self.swap_guidance, i, steps)
            eps_branches = (plain + weight * (guided - plain))[3 : 3 + concepts]
            eps = mix_noise(plain[0], eps_branches, masks)
            output = posterior_mean(output, eps, sigma, sigma_next) + residuals[i]
            eps_branches = mix_reference_noise(plain[0], eps_branches, masks)
            branches = posterior_mean(branches, eps_branches, sigma, sigma_next) + residuals[i]
            branches = background_dilution(branches, inpaint[i + 1], dilution)
        return torch.cat([output[None], branches])


def guide_branches(concepts: int, alpha: float) -> Callable:
    """Returns an attn1_patch: in guided calls the branches, which lie before the concepts, read them (eq. 3.3)."""

    def patch(q, key, value, extra_options):
        if not extra_options.get(GUIDED):
            return q, key, value
        chunks = len(extra_options["cond_or_uncond"])
        key, value = (x.clone().unflatten(0, (chunks, -1)) for x in (key, value))
        branches, personal = slice(3, 3 + concepts), slice(3 + concepts, None)
        key[:, branches] = key[:, personal]
        value[:, branches] = value[:, personal] + alpha * (value[:, personal] - value[:, branches])
        return q, key.flatten(0, 1), value.flatten(0, 1)

    return patch
