"""What nodes and templates say in English, of which locales/<language>/main.json has translations: pnpmixSays.

As there, {0}, {1} and so on stand for what differs.
"""

import ast
import re
from collections.abc import Iterator

from comfy_host import PACK
from workflow_files import BLUEPRINTS, TEMPLATES, levels, read, subgraphs

NOT_SAID = {"tooltip", "description"}  # arguments, which locales/<language>/nodeDefs.json has
LOGGED = {"ImportError", "warning", "info"}
# the same in all languages
NAMES = {"AdaIN", "PnP-MIX", "Grounding DINO", "SAM", "SAM 3", "Concept Conductor", "LoRA", "VAE"}


def strings_of_nodes() -> set[str]:
    """All but docstrings, tooltips, descriptions and what goes into the log alone, line by line."""
    rooms = (PACK / "nodes", PACK / "pnpmix" / "vision", PACK / "pnpmix" / "files")
    files = [file for room in rooms for file in room.rglob("*.py")]
    return {
        line
        for path in files
        for text in strings(ast.parse(path.read_text(encoding="utf-8")))
        for line in text.splitlines()
    }


def strings(tree: ast.AST) -> Iterator[str]:
    if isinstance(tree, ast.Constant):
        yield from [tree.value] if isinstance(tree.value, str) else []
    elif isinstance(tree, ast.JoinedStr):
        numbers = iter(range(10))
        parts = (x.value if isinstance(x, ast.Constant) else f"{{{next(numbers)}}}" for x in tree.values)
        yield "".join(map(str, parts))
        for part in tree.values:
            if isinstance(part, ast.FormattedValue):
                yield from strings(part.value)
    elif not is_silent(tree):
        for child in ast.iter_child_nodes(tree):
            yield from strings(child)


def is_silent(tree: ast.AST) -> bool:
    if isinstance(tree, ast.Expr):
        return isinstance(tree.value, ast.Constant)
    if isinstance(tree, ast.keyword):
        return tree.arg in NOT_SAID
    called = tree.func if isinstance(tree, ast.Call) else None
    return getattr(called, "id", getattr(called, "attr", None)) in LOGGED


def said_by_nodes() -> set[str]:
    """The sentences among them."""
    sentences = (x for x in strings_of_nodes() if re.search(r"[a-z]\w* [\w{]", x) and re.search(r"\.$|[a-z]: ", x))
    return {x for x in sentences if "->" not in x}  # shapes, as einops takes them


def said_by_templates() -> set[str]:
    """Titles, the lines of notes, and the names of what goes into subgraphs and comes out of them."""
    return {text for name in (*TEMPLATES, *BLUEPRINTS) for text in texts_of_template(read(name)) if text} - NAMES


def texts_of_template(workflow: dict) -> Iterator[str]:
    for subgraph in subgraphs(workflow).values():
        yield from (end["name"] for end in (*subgraph["inputs"], *subgraph["outputs"]))
    for level in levels(workflow):
        yield from (group["title"] for group in level["groups"])
        for node in level["nodes"]:
            yield node.get("title", "")
            yield from (entry.get("label", "") for entry in node["inputs"])
            if node["type"] == "MarkdownNote":
                yield from node["widgets_values"][0].splitlines()


def fits(saying: str, text: str) -> bool:
    """Whether the text is this saying with something in its places."""
    return re.fullmatch(re.sub(r"\\{\d\\}", ".+", re.escape(saying)), text) is not None
