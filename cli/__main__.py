"""python -m cli blend … (or evaluate …): `run.py` calls it with the Python of the ComfyUI in COMFYUI_DIR."""

import signal
import sys

from . import blend, evaluate

COMMANDS = {"blend": blend.main, "evaluate": evaluate.main}


def stop(*_) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl+C does: what was started ends too
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be none in this console's letters
    try:
        sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", flush=True)
        sys.exit(130)
