"""Runs a command: `run.py` calls python -m cli blend … (or evaluate …) with the Python of ComfyUI."""

import io
import signal
import sys

from . import blend, evaluate

COMMANDS = {"blend": blend.main, "evaluate": evaluate.main}


def stop(*_) -> None:
    """Ends the command, as Ctrl+C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl+C does: what was started ends too
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be none in this console's letters
    try:
        sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
    except KeyboardInterrupt:
        print("Stopped. The same command resumes here.", flush=True)
        sys.exit(130)
