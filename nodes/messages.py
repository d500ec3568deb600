"""What a node tells about its last run, in the log and on the node itself."""

import logging

from server import PromptServer


def show(node: str, unique_id: str, messages: list[str]) -> None:
    """Replaces what the node showed before. Lines that start with "Warning" are logged as such."""
    for message in messages:
        logging.log(logging.WARNING if message.startswith("Warning") else logging.INFO, "%s: %s", node, message)
    PromptServer.instance.send_progress_text("\n".join(messages), unique_id)
