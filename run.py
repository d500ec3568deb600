def find_comfyui():
    from pathlib import Path
    return Path.home()/"ComfyUI"
