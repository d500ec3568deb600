"""Whether saved graphs still run: compares the nodes of this checkout with those of an older one.

python tests/tools/compare_nodes.py OLDER_CHECKOUT NODE_DIFF_CHECKOUT, with the Python of a ComfyUI that COMFYUI_DIR
names.

Nodes and outputs are compared by the registry's own Comfy-Org/node-diff, inputs here. As an action, node-diff imports a
pack where there is no ComfyUI, takes NODE_CLASS_MAPPINGS alone, which a pack with an entry point does not have, and
leaves inputs out; so its comparison is called instead.
"""

import asyncio
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from comfy_host import boot

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")  # their values are saved in order, without names


class Input(NamedTuple):
    kind: str
    default: object
    choices: frozenset
    required: bool


def inputs_of(input_types: dict) -> dict[str, Input]:
    """The inputs that INPUT_TYPES() tells, required ones first, as the editor orders them."""
    inputs = {}
    for category in ("required", "optional"):
        for name, (kind, *options) in input_types.get(category, {}).items():
            settings = options[0] if options else {}
            choices = kind if isinstance(kind, list) else settings.get("options", ())
            kind = "COMBO" if isinstance(kind, list) else kind
            inputs[name] = Input(kind, settings.get("default"), frozenset(choices), category == "required")
    return inputs


def broken_inputs(old: dict[str, Input], new: dict[str, Input]) -> Iterator[str]:
    """What a graph that was saved with the old inputs misses in the new ones."""
    for name, was in old.items():
        if name not in new:
            yield f"input '{name}' was removed"
            continue
        now = new[name]
        if now.kind != was.kind:
            yield f"input '{name}' takes {now.kind} instead of {was.kind}"
        if now.default != was.default:
            yield f"the default of '{name}' is {now.default!r} instead of {was.default!r}"
        if not was.choices <= now.choices:
            yield f"'{name}' no longer offers {', '.join(sorted(map(str, was.choices - now.choices)))}"
        if now.required and not was.required:
            yield f"input '{name}' was optional"
    widgets_before, widgets = ([x for x in inputs if inputs[x].kind in WIDGETS] for inputs in (old, new))
    if widgets[: len(widgets_before)] != widgets_before:
        yield f"values are saved in the order {', '.join(widgets_before)}, which is now {', '.join(widgets)}"
    for name in new.keys() - old.keys():
        if new[name].required and new[name].default is None:
            yield f"the new input '{name}' is required and has no default"


def nodes_of_the_pack() -> dict[str, type]:
    import nodes

    return {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("PnPMix")}


def load(checkout: Path) -> dict[str, type]:
    """The nodes of another checkout, in the place of those that ComfyUI has of the pack."""
    import nodes

    for name in nodes_of_the_pack():
        del nodes.NODE_CLASS_MAPPINGS[name]
    assert asyncio.run(nodes.load_custom_node(str(checkout))), f"ComfyUI could not load {checkout}"
    return nodes_of_the_pack()


def main(older: Path, node_diff: Path) -> int:
    """1 if a saved graph would break, else 0."""
    boot(Path(tempfile.mkdtemp()), "--cpu")
    new, old = nodes_of_the_pack(), load(older)
    registry = runpy.run_path(str(node_diff / "src" / "validate_nodes.py"))
    breaking = registry["compare_nodes"](old, new)
    print(registry["format_breaking_changes"](breaking))
    broken = [
        f"{name}: {fault}"
        for name in old.keys() & new.keys()
        for fault in broken_inputs(inputs_of(old[name].INPUT_TYPES()), inputs_of(new[name].INPUT_TYPES()))
    ]
    print("\n".join(sorted(broken)) or f"The inputs of {len(old)} nodes are as they were, or have more at the end.")
    return int(bool(breaking or broken))


if __name__ == "__main__":
    sys.exit(main(*(Path(x).resolve() for x in sys.argv[1:])))
