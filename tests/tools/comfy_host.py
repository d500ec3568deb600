"""The real ComfyUI inside the test process: its loader, validation and executor run the pack's graphs."""

import asyncio
import contextlib
import importlib
import itertools
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
COMFYUI: Path | None = runpy.run_path(str(PACK / "run.py"))["find_comfyui"]()

# of ComfyUI, in its process and as a server; TESTS_ON_GPU=1 leaves the choice of the device to it
DEVICE = () if os.environ.get("TESTS_ON_GPU") else ("--cpu",)


def boot(base_directory: Path, *options: str) -> None:
    """Imports ComfyUI, with models, input and output below `base_directory`, and loads the pack."""
    sys.argv = ["main.py", "--base-directory", str(base_directory), *options]
    sys.path.insert(0, str(COMFYUI))
    os.chdir(base_directory)
    for name in ("models", "input", "output", "custom_nodes", "user"):
        (base_directory / name).mkdir(exist_ok=True)

    import comfy.options

    comfy.options.enable_args_parsing()
    # before `nodes`, which puts the folder comfy/ with its utils.py on the path
    importlib.import_module("utils.extra_config")
    import nodes
    import server

    server.PromptServer(asyncio.new_event_loop())
    asyncio.run(nodes.init_builtin_extra_nodes())
    assert asyncio.run(nodes.load_custom_node(str(PACK))), "ComfyUI could not load the pack"
    nodes.NODE_CLASS_MAPPINGS |= {"TestGiven": Given, "TestCapture": Capture}


class AnyType(str):
    def __ne__(self, other):
        return False


ANY = AnyType("*")


class Given:
    """Brings an object of the test into a graph."""

    values: dict[str, object] = {}
    RETURN_TYPES, FUNCTION, CATEGORY = (ANY,), "give", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"key": ("STRING", {})}}

    def give(self, key):
        return (self.values[key],)


class Capture:
    """Hands a result of a graph to the test."""

    values: dict[str, object] = {}
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "capture", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY, {}), "key": ("STRING", {})}}

    def capture(self, value, key):
        self.values[key] = value
        return {}


class GraphError(Exception):
    """What ComfyUI reports of a graph that is not valid or stopped."""


class Graph:
    """A graph in API form, put together by the test and run by ComfyUI's own executor."""

    def __init__(self):
        self.prompt, self.ids = {}, itertools.count(1)
        Given.values, Capture.values = {}, {}

    def add(self, class_type: str, **inputs) -> list:
        """Adds a node and returns its first output. Objects that are no links or widget values are given."""
        inputs = {name: self.given(value) for name, value in inputs.items() if value is not None}
        node_id = str(next(self.ids))
        self.prompt[node_id] = {"class_type": class_type, "inputs": inputs}
        return [node_id, 0]

    def given(self, value):
        is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
        if is_link or isinstance(value, str | int | float | bool):
            return value
        key = f"given {len(Given.values)}"
        Given.values[key] = value
        return self.add("TestGiven", key=key)

    def run(self, **outputs: list) -> dict:
        """Runs the graph afresh and returns the named outputs.

        Raises:
            GraphError: the graph is not valid, or a node raised.
        """
        import execution
        import server
        from comfy.cli_args import args

        prompt = dict(self.prompt)
        for key, link in outputs.items():
            prompt[f"capture {key}"] = {"class_type": "TestCapture", "inputs": {"value": link, "key": key}}
        valid, error, targets, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
        if not valid:
            raise GraphError(f"{error} {node_errors}")
        executor = execution.PromptExecutor(server.PromptServer.instance, execution.CacheType.CLASSIC)
        executor.cache_args = {"ram": 0, "ram_inactive": 0}  # newer hosts read it whatever the type of cache
        executor.execute(prompt, "test", {"preview_method": args.preview_method.value}, targets)
        if not executor.success:
            raise GraphError(executor.status_messages[-1][1].get("exception_message", executor.status_messages[-1]))
        return dict(Capture.values)


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    """The graph that is run inside stops with a message that has all these words."""
    with pytest.raises(GraphError) as error:
        yield
    for word in words:
        assert word in str(error.value), str(error.value)


def output(link: list, index: int) -> list:
    """Another output of the same node."""
    return [link[0], index]


def pack_module(name: str):
    """A module of the pack as ComfyUI loaded it, such as "common.checks" of nodes/."""
    import nodes

    beginning = nodes.NODE_CLASS_MAPPINGS["PnPMixSampler"].__module__.removesuffix("mixer.mixing")
    return sys.modules[beginning + name]
