"""Settings that a MODEL carries for the pack's own samplers, and a log line where another sampler runs it."""

import logging

from comfy.patcher_extension import WrappersMP

from .types import APPEARANCE, DILUTION, LAYOUT_GUIDANCE, REFINEMENT

KEY = "pnpmix_unread"
# settings → their node, and the sampler that reads them
READERS = {
    APPEARANCE: ("Guided Appearance Attention", "Mask Noise Mixer"),
    DILUTION: ("Background Dilution++", "Mask Noise Mixer"),
    LAYOUT_GUIDANCE: ("Layout Alignment", "Conductor"),
    REFINEMENT: ("Mask Refinement", "Conductor"),
}


def with_settings(model, key: str, settings: object):
    """Returns a clone of the MODEL that carries settings, for guiders with the key among what they `read`."""
    patched = model.clone()
    patched.model_options[key] = settings
    wrappers = patched.model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    wrappers.setdefault(WrappersMP.OUTER_SAMPLE, {})[KEY] = [tell_what_is_unread]
    return patched


def tell_what_is_unread(executor, *args, **kwargs):
    """Logs settings that this sampler does not read (an OUTER_SAMPLE wrapper)."""
    guider = executor.class_obj
    for key, (node, sampler) in READERS.items():
        if key in guider.model_options and key not in getattr(guider, "reads", ()):
            logging.warning("%s did nothing in this run: only the node %s reads it.", node, sampler)
    return executor(*args, **kwargs)
