"""Concept Conductor (arXiv 2408.03632): several concepts, each with its own weights, in one new image.

Every latent here is in the space the UNet was trained in, float32, and noisy as x = x0 + sigma * eps. The paper's
latents are z = x / sqrt(1 + sigma²). Branch 0 is the base model, branches 1..n are the models of the concepts.
"""
