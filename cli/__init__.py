"""Templates run without the editor, on ComfyUI's own server: `run.py blend` and `run.py evaluate`."""
