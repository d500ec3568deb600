"""Concept Conductor: several LoRA concepts in one new image."""
