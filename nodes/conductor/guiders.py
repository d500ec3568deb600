"""A guider for one prompt without classifier-free guidance."""

import comfy.model_management
import comfy.samplers

from ..common.unread import READERS


class PlainGuider(comfy.samplers.CFGGuider):
    """Predicts with one prompt, without an unconditional pass, and stops when interrupted."""

    reads = frozenset(READERS)  # none; but another sampler is to run the MODEL

    def __init__(self, model, positive: list):
        super().__init__(model)
        self.inner_set_conds({"positive": positive})

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 the signature of the base class
        comfy.model_management.throw_exception_if_processing_interrupted()
        (denoised,) = comfy.samplers.calc_cond_batch(
            self.inner_model, [self.conds["positive"]], x, timestep, model_options
        )
        return denoised
