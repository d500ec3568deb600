"""Templates from the command line, on ComfyUI's own server: `run.py blend` and `run.py evaluate`."""
