"""The shipped workflows: reading them, and turning them into the form that ComfyUI's server runs."""

import json

from comfy_host import PACK

FOLDER = PACK / "workflows"
WORKFLOWS = sorted(path.stem for path in FOLDER.glob("*.json"))
CONTROLS = {"fixed", "increment", "decrement", "randomize"}  # of the widget that the editor adds behind a seed


def widget_values(node: dict) -> dict:
    """The widgets' values by name; the file lists them in the order of the inputs that they belong to."""
    values, names = list(node.get("widgets_values", [])), [i["name"] for i in node["inputs"] if "widget" in i]
    result = {}
    for name in names:
        result[name] = values.pop(0)
        if name in ("seed", "noise_seed") and values and values[0] in CONTROLS:
            values.pop(0)
    assert not values, f"{node['type']}: {values} belong to no input"
    return result


def to_api(workflow: dict) -> dict:
    """What the editor sends when the workflow is queued."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs = widget_values(node)
        inputs |= {i["name"]: links[i["link"]] for i in node["inputs"] if i.get("link") is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node.get("title")}}
    return prompt


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
