"""The pack's methods in plain torch, a folder each, and what they share. Nothing here knows ComfyUI."""
