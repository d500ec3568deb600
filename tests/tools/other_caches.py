"""Caches as packs for speed bring them: they keep outputs from call to call and know nothing of rows."""

import torch


def with_residual_cache(model, threshold: float = 1.5):
    """As TeaCache does it: a call whose input differs little from the last one's gets the last one's change of it."""
    import comfy.patcher_extension

    patched, kept = model.clone(), {}

    def wrapper(executor, x, timesteps, *others, **named):
        if timesteps[0] > kept.get("time", -1):  # another picture begins
            kept.clear()
        kept["time"] = timesteps[0]
        if "x" in kept and (x - kept["x"]).abs().mean() < threshold * kept["x"].abs().mean():
            return x + kept["change"]
        answer = executor(x, timesteps, *others, **named)
        kept.update(x=x, change=answer - x)
        return answer

    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "residual", wrapper)
    return patched


def with_deep_cache(model, every: int = 2):
    """As DeepCache does it: of `every` calls one goes through the whole UNet, the others through its outermost blocks
    with what that one found below them."""
    import comfy.patcher_extension
    from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed, timestep_embedding

    patched, kept = model.clone(), {}
    unet, last = model.model.diffusion_model, len(model.model.diffusion_model.output_blocks) - 1

    def wrapper(executor, x, timesteps, context, y, control, options, **others):
        if timesteps[0] > kept.get("time", -1):
            kept.update(calls=0)
        kept.update(calls=kept["calls"] + 1, time=timesteps[0])
        if kept["calls"] % every == 1:
            return executor(x, timesteps, context, y, control, options, **others)
        emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels))
        options |= {"original_shape": list(x.shape), "transformer_index": 0, "block": ("output", last)}
        above = forward_timestep_embed(unet.input_blocks[0], x, emb, context, options)
        both = torch.cat([kept["below"], above], 1)
        return unet.out(forward_timestep_embed(unet.output_blocks[last], both, emb, context, options))

    def keep(below, above, options):
        if options["block"][1] == last:
            kept["below"] = below
        return below, above

    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "deep", wrapper)
    patched.set_model_output_block_patch(keep)
    return patched
