"""Workflow files as the editor saves them, from a few lines of Python: nodes, links, subgraphs and groups."""

import uuid
from dataclasses import dataclass, field
from functools import cached_property

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SLOT, WIDGET, TITLE, GAP = 24, 32, 50, 60  # heights in pixels, large enough for both ways of drawing nodes
MARGIN, WINDOW = (66, 84), (1162, 668)  # in pixels: what the editor's own bars leave free
COLUMN = 420  # width of a column of nodes in a subgraph
INPUTS, OUTPUTS = -10, -20  # ids of a subgraph's own two ends, set by the editor


@dataclass(frozen=True)
class Output:
    """What a link starts from."""

    node: int
    slot: int
    kind: str


@dataclass
class Node:
    data: dict

    def __getitem__(self, slot: int) -> Output:
        return Output(self.data["id"], slot, self.data["outputs"][slot]["type"])


@dataclass
class Graph:
    """The nodes of one level. `info`: the host's description of a node, by its type."""

    info: dict
    nodes: list[dict] = field(default_factory=list)
    links: list[tuple[Output, int, int]] = field(default_factory=list)  # from, node, input
    groups: list[dict] = field(default_factory=list)
    first_id: int = 1

    def add(self, kind: str, title: str = "", at=None, size=None, properties=None, **values) -> Node:
        """A node. Of its inputs, `values` gives Outputs to be linked and widgets' values; the rest are defaults."""
        inputs, widgets = [], []
        for name, (declared, options) in declared_inputs(self.info[kind]).items():
            entry = {"name": name, "type": declared, "link": None}
            value = values.pop(name, None)
            if declared in WIDGETS and not options.get("forceInput"):
                entry["widget"] = {"name": name}
                widgets.append(default(declared, options) if value is None or isinstance(value, Output) else value)
                widgets.extend(["fixed"] if options.get("control_after_generate") else [])
            inputs.append(entry)
            if value is not None and isinstance(value, Output):
                values[name] = value
            if options.get("image_upload"):
                inputs.append({"name": "upload", "type": "IMAGEUPLOAD", "link": None, "widget": {"name": "upload"}})
                widgets.append("image")
        outputs = list(zip(self.info[kind]["output_name"], self.info[kind]["output"], strict=True))
        if kind in ("SaveImage", "PreviewImage"):
            outputs = []  # older editors know none
        return self.place(kind, title, inputs, outputs, widgets, values, at, size, properties)

    def place(self, kind, title, inputs, outputs, widgets, values, at, size, properties=None) -> Node:
        number = self.first_id + len(self.nodes)
        node = {"id": number, "type": kind, "pos": at, "size": size, "flags": {}, "order": len(self.nodes), "mode": 0}
        node |= {"inputs": inputs, "outputs": [{"name": n, "type": t, "links": []} for n, t in outputs]}
        node |= {"title": title} if title else {}
        node |= {"properties": {"Node name for S&R": kind} | (properties or {}), "widgets_values": widgets}
        self.nodes.append(node)
        inputs.sort(key=lambda x: "widget" in x)  # as the editor has them
        names = [entry["name"] for entry in inputs]
        for name, value in values.items():
            self.links.append((value, number, names.index(name)))
        return Node(node)

    def add_subgraph(self, subgraph: "Subgraph", at, size, title: str = "", **values) -> Node:
        """A node that stands for a subgraph; of `values`, Outputs are linked, the others are of its widgets.

        title: where several stand for the same one.
        """
        inputs, widgets, linked = [], [], {}
        for name, kind, value in subgraph.inputs:
            entry = {"name": name, "type": kind, "link": None}
            entry |= {"label": LABELS[name]} if name in LABELS else {}
            if value is not None:
                entry["widget"] = {"name": name}
                given = values.get(name)
                widgets.append(value if given is None or isinstance(given, Output) else given)
            if isinstance(values.get(name), Output):
                linked[name] = values[name]
            inputs.append(entry)
        assert values.keys() <= {x["name"] for x in inputs}, values.keys()
        outputs = [(name, output.kind) for name, output in subgraph.outputs]
        return self.place(subgraph.id, title or subgraph.name, inputs, outputs, widgets, linked, at, size)

    def note(self, text: str, at, size) -> None:
        self.place("MarkdownNote", "Read me", [], [], [text], {}, at, size)

    def view(self) -> dict:
        """Where the editor looks when it opens the graph: all of it, in a window of 1280 × 800 pixels."""
        boxes = [(*node["pos"], *node["size"]) for node in self.nodes] + [x["bounding"] for x in self.groups]
        left, top = (min(box[k] for box in boxes) for k in (0, 1))
        width, height = (max(box[k] + box[k + 2] for box in boxes) - x for k, x in ((0, left), (1, top)))
        scale = int(100 * min(WINDOW[0] / width, WINDOW[1] / height, 1)) / 100
        return {"scale": scale, "offset": [round(MARGIN[0] / scale - left), round(MARGIN[1] / scale - top)]}

    def group(self, title: str, color: str, *nodes: Node) -> None:
        """Round the nodes."""
        left, top = (min(node.data["pos"][k] for node in nodes) for k in (0, 1))
        right, bottom = (max(node.data["pos"][k] + node.data["size"][k] for node in nodes) for k in (0, 1))
        box = [left - 10, top - 62, right - left + 20, bottom - top + 72]
        entry = {"id": len(self.groups) + 1, "title": title, "bounding": box, "color": color}
        self.groups.append(entry | {"font_size": 20, "flags": {}})

    def wire(self) -> list[tuple]:
        """(id, from node, slot, to node, slot, type) of each link, which the nodes' slots are told."""
        wired, nodes = [], {node["id"]: node for node in self.nodes}
        for number, (origin, target, slot) in enumerate(self.links, 1):
            if origin.node in nodes:
                nodes[origin.node]["outputs"][origin.slot]["links"].append(number)
            if target in nodes:
                nodes[target]["inputs"][slot]["link"] = number
            wired.append((number, origin.node, origin.slot, target, slot, origin.kind))
        return wired


def declared_inputs(info: dict) -> dict:
    """name → (type, options)"""
    declared = {name: x for group in ("required", "optional") for name, x in info["input"].get(group, {}).items()}
    result = {}
    for name, (kind, *options) in declared.items():
        options = dict(options[0]) if options else {}
        if isinstance(kind, list):
            kind, options = "COMBO", {"options": kind} | options
        result[name] = (kind, options)
    return result


def default(kind: str, options: dict):
    if "default" in options:
        return options["default"]
    return {"COMBO": (options.get("options") or [""])[0], "STRING": "", "BOOLEAN": False}.get(kind, 0)


# What the editor shows for inputs of subgraphs whose names saved graphs and the command line rely on
LABELS = {"picture in its words": "prompt with trigger words", "what it is in the layout": "object in the layout"}


class Subgraph(Graph):
    """`inputs`: (name, type, value), where a value makes it a widget of the node that stands for the subgraph."""

    def __init__(self, info: dict, name: str, number: int):
        """number: of the subgraph in its file, so that no two nodes of the file have the same id."""
        super().__init__(info, first_id=100 * number + 1)
        self.name, self.inputs, self.outputs = name, [], []

    @cached_property
    def id(self) -> str:
        """The same for the same contents; to be asked for when they are complete."""
        inside = [(node["type"], node["widgets_values"]) for node in self.nodes]
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"pnp-mix/{self.name}/{self.inputs}/{inside}"))

    def input(self, name: str, kind: str, value=None) -> Output:
        self.inputs.append((name, kind, value))
        return Output(INPUTS, len(self.inputs) - 1, kind)

    def output(self, name: str, output: Output) -> None:
        self.outputs.append((name, output))

    def definition(self) -> dict:
        for slot, (_, output) in enumerate(self.outputs):
            self.links.append((output, OUTPUTS, slot))
        for origin, target, slot in self.links:  # inside too, a widget shows the value that it starts with
            if origin.node == INPUTS and self.inputs[origin.slot][2] is not None:
                self.set_widget(target, slot, self.inputs[origin.slot][2])
        right = self.lay_out()
        wired = self.wire()
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        ends = {"inputNode": (INPUTS, -220, self.inputs), "outputNode": (OUTPUTS, right, self.outputs)}
        return {
            "id": self.id,
            "version": 1,
            "state": {
                "lastGroupId": len(self.groups),
                "lastNodeId": self.first_id + len(self.nodes) - 1,
                "lastLinkId": len(wired),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            **{
                name: {"id": number, "bounding": [x, 0, 160, 40 + 20 * len(slots)]}
                for name, (number, x, slots) in ends.items()
            },
            "inputs": [
                self.end(name, kind, [x[0] for x in wired if x[1] == INPUTS and x[2] == slot])
                for slot, (name, kind, _) in enumerate(self.inputs)
            ],
            "outputs": [
                self.end(name, output.kind, [x[0] for x in wired if x[3] == OUTPUTS and x[4] == slot])
                for slot, (name, output) in enumerate(self.outputs)
            ],
            "widgets": [],
            "nodes": self.nodes,
            "groups": self.groups,
            "links": [dict(zip(keys, link, strict=True)) for link in wired],
            "extra": {},
        }

    def end(self, name: str, kind: str, links: list[int]) -> dict:
        number = uuid.uuid5(uuid.UUID(self.id), f"{name} {kind}")
        return {"id": str(number), "name": name, "type": kind, "linkIds": links}

    def set_widget(self, node: int, slot: int, value) -> None:
        (data,) = [x for x in self.nodes if x["id"] == node]
        place, values = 0, data["widgets_values"]
        for _ in [x for x in data["inputs"][:slot] if "widget" in x]:
            place += 1 + (values[place + 1 : place + 2] == ["fixed"])
        values[place] = value

    def lay_out(self) -> int:
        """Places the nodes in columns, each right of what it depends on; how far they reach."""
        column, bottom = {}, {}
        for node in self.nodes:  # in the order of the work
            origins = [column.get(origin.node, -1) for origin, target, _ in self.links if target == node["id"]]
            column[node["id"]] = max(origins, default=-1) + 1
        for node in self.nodes:
            at = column[node["id"]]
            slots = sum("widget" not in x for x in node["inputs"])
            height = TITLE + SLOT * max(slots, len(node["outputs"])) + WIDGET * len(node["widgets_values"])
            height += {"CLIPTextEncode": 80, "PnPMixSampler": 420, "PnPMixDDPMInvert": 170}.get(node["type"], 0)
            node["pos"], node["size"] = [COLUMN * at, bottom.get(at, 0)], [COLUMN - 100, height]
            bottom[at] = bottom.get(at, 0) + height + GAP
        return COLUMN * (max(column.values()) + 1)


def workflow(graph: Graph, subgraphs: list[Subgraph], extra: dict | None = None) -> dict:
    """The whole file."""
    definitions = [subgraph.definition() for subgraph in subgraphs]
    links = [list(link) for link in graph.wire()]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, "pnp-mix/" + ",".join(x["type"] for x in graph.nodes))),
        "revision": 0,
        "last_node_id": max(node["id"] for level in (graph, *subgraphs) for node in level.nodes),
        "last_link_id": len(links),
        "nodes": graph.nodes,
        "links": links,
        "groups": graph.groups,
        "definitions": {"subgraphs": definitions},
        "config": {},
        "extra": {"ds": graph.view()} | (extra or {}),
        "version": 0.4,
    }
