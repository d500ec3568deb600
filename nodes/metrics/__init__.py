"""Scores of pictures as nodes."""
