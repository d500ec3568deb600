"""python -m headless blend …: what `run.py` calls, with the Python of the ComfyUI that COMFYUI_DIR names."""

import signal
import sys

from . import blend

COMMANDS = {"blend": blend.main}


def stop(*_) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl+C does: what was started ends too
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    try:
        sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", flush=True)
        sys.exit(130)
