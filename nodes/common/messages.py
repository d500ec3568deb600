"""What a node reports about its last run, in the log and on the node itself."""

import contextlib
import logging
from collections.abc import Iterator
from html import escape

import comfy.utils
from comfy_api.latest import ui
from server import PromptServer
from torch import Tensor

from ...pnpmix.files.texts import printable
from .checks import BadInput


def show(node: str, unique_id: str, messages: list[str]) -> dict[str, list[str]]:
    """Replaces what the node showed before. Lines that start with "Warning" are logged as such.

    Returns:
        for the node's `ui`: what programs read of it in the server's history.
    """
    messages = list(map(printable, messages))
    for message in messages:
        logging.log(logging.WARNING if message.startswith("Warning") else logging.INFO, "%s: %s", node, message)
    show_text("\n".join(messages), unique_id)
    return {"messages": [f"{node}: {message}" for message in messages]}


def show_text(text: str, unique_id: str) -> None:
    """Shows a text on the node, replacing what it showed before.

    The editor takes it for HTML and makes links of [[words|address]], while names and entries of files may be either.
    """
    shown = escape(printable(text), quote=False).replace("[[", "&#91;&#91;")
    PromptServer.instance.send_progress_text(shown, unique_id)


@contextlib.contextmanager
def at_fault(node_id: str | None) -> Iterator[None]:
    """Tells the editor of a bad input found inside that it is that node's, though another one stops for it."""
    try:
        yield
    except BadInput:
        server = PromptServer.instance
        server.send_sync("pnpmix.fault", {"node": node_id}, server.client_id)
        raise


def thumbnails(images: Tensor, longest: int = 256) -> list[dict]:
    """Copies of at most `longest` pixels in ComfyUI's temporary folder, as the editor asks the server for them."""
    height, width = images.shape[1:3]
    scale = min(1, longest / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = comfy.utils.common_upscale(images.movedim(-1, 1), *size, "area", "disabled").movedim(1, -1)
    return ui.PreviewImage(small).values
