"""PnP-MIX (arXiv 2511.17615): several personal concepts blended into one scene, without training.

Every latent here is in the space the model was trained in (after the host's latent scaling), float32, and noisy as
x = a * x0 + b * eps, with a and b of the model's own path (`schedule.NoisePath`).
"""
