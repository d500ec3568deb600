"""The oracle of test_transformers.py with diffusers' Flux in the place of ComfyUI's: another hand's network."""

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb

from flow_oracle import FlowPnPMix

GUIDANCE = 3.5  # ComfyUI's, where a prompt names none


class Processor:
    """Of a block's attention: all but what the oracle's own attention does."""

    def __init__(self, attention):
        self.attention = attention

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        query, key, value = heads(attn.to_q(hidden_states)), heads(attn.to_k(hidden_states)), attn.to_v(hidden_states)
        query, key, value = attn.norm_q(query), attn.norm_k(key), heads(value)
        if encoder_hidden_states is not None:
            of_text = [heads(x(encoder_hidden_states)) for x in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
            query = torch.cat([attn.norm_added_q(of_text[0]), query], 1)
            key, value = torch.cat([attn.norm_added_k(of_text[1]), key], 1), torch.cat([of_text[2], value], 1)
        query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        together = (x.transpose(1, 2) for x in (query, key, value))
        out = self.attention(None, *together, attn.heads, skip_reshape=True)
        if encoder_hidden_states is None:
            return out
        text = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, text:]), attn.to_add_out(out[:, :text])


def diffusers_flux(model, network: dict) -> FluxTransformer2DModel:
    """With the weights of a ModelPatcher whose network has these arguments."""
    import comfy.utils

    heads, ours = network["num_heads"], model.model.diffusion_model.state_dict()
    flux = FluxTransformer2DModel(
        in_channels=network["in_channels"] * network["patch_size"] ** 2,
        num_layers=network["depth"],
        num_single_layers=network["depth_single_blocks"],
        attention_head_dim=network["hidden_size"] // heads,
        num_attention_heads=heads,
        joint_attention_dim=network["context_in_dim"],
        pooled_projection_dim=network["vec_in_dim"],
        guidance_embeds=network["guidance_embed"],
        axes_dims_rope=tuple(network["axes_dim"]),
    )
    weights, names = {}, comfy.utils.flux_to_diffusers(network)
    for name in flux.state_dict():
        source, part, change = (*((names[name],) if isinstance(names[name], str) else names[name]), None, None)[:3]
        x = ours[source] if source in ours else ours[source.removesuffix("scale") + "weight"]  # as newer hosts name it
        weights[name] = x.narrow(*part) if part else x
        if change:
            weights[name] = change(x)  # swaps two halves, and so is its own inverse
    flux.load_state_dict(weights)
    return flux.eval().requires_grad_(False)


@dataclass
class DiffusersFluxPnPMix(FlowPnPMix):
    def __post_init__(self):
        super().__post_init__()
        self.flux = diffusers_flux(self.unet, self.small.network)
        self.flux.set_attn_processor(Processor(self.attention))

    def denoised(self, x, sigma, tokens, options):
        rows, columns = self.tokens(x.shape)
        ids = [(0, row, column) for row in range(rows) for column in range(columns)]
        velocity = self.flux(
            torch.nn.functional.pixel_unshuffle(x, self.small.patch).flatten(2).mT,
            tokens,
            options["pooled_output"],
            sigma,
            torch.tensor(ids, dtype=torch.float32),
            torch.zeros(tokens.shape[1], 3),
            torch.tensor([GUIDANCE]),
            return_dict=False,
        )[0]
        return x - sigma * torch.nn.functional.pixel_shuffle(velocity.mT.unflatten(2, (rows, columns)), 2)
