"""One thing of a file at a time is made into what nobody expects there; with Hypothesis, which chooses."""

import copy
import io
import json
import math
import struct
from collections.abc import Callable

import safetensors.torch
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

quick = settings(
    max_examples=100,
    derandomize=True,  # the same examples each time
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXTS = [
    "",
    " ",
    "\x00",
    "a\nb",
    "n" * 30_000,
    "<img src=x onerror=alert(1)>",
    "{0.__class__}",
    "../../x",
    "가🐶",
    "9" * 5000,
]
HALF = "\ud800"  # half of a character
VALUES = [
    None,
    True,
    0,
    -1,
    10**6,
    2**70,
    1.5,
    math.nan,
    math.inf,
    [],
    {},
    [[[0]]],
    {"a": {"b": 1}},
    [1, "x"],
    *TEXTS,
    HALF,
]
TENSORS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x.flatten()[0],
    lambda x: x.flatten(),
    lambda x: x[None],
    lambda x: x[:0],
    lambda x: x[..., :0],
    lambda x: x[:1],
    lambda x: torch.cat([x, x]),
    lambda x: torch.cat([x.flatten(), x.flatten()]),
    lambda x: x.long(),
    lambda x: x.bool(),
    lambda x: x.to(torch.complex64),
    lambda x: x.double() * 1e300,
    lambda x: x * torch.nan,
    lambda x: x + torch.inf,
    lambda x: x.to(torch.float8_e4m3fn),
    lambda x: x.to(torch.bfloat16),
    lambda x: torch.zeros(2, 0, 3),
    lambda x: torch.arange(5),
    lambda x: torch.zeros(1, 1, 1, 1, 1, 1),
]
ONLY_PICKLES = [lambda x: torch.zeros(1).expand(10**5, 10**5), lambda x: x.to_sparse(), lambda x: x.to("meta")]


def paths(content, before=()) -> list[tuple]:
    """The way to each entry of nested dictionaries and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path for key, x in items for path in [(*before, key), *paths(x, (*before, key))]]


def place(content, path: tuple):
    for key in path[:-1]:
        content = content[key]
    return content, path[-1]


def mutated(data, content: dict, tensors=TENSORS, values=VALUES, texts=TEXTS):
    """A copy with one entry changed, taken out, put in or called otherwise."""
    content = copy.deepcopy(content)
    owner, key = place(content, data.draw(st.sampled_from(paths(content)), label="entry"))
    kind = data.draw(st.sampled_from(["tensor", "value", "drop", "add", "name"]), label="kind")
    if kind == "tensor" and isinstance(owner[key], torch.Tensor):
        change = tensors[data.draw(st.integers(0, len(tensors) - 1), label="tensor")]
        owner[key] = change(owner[key] if owner[key].ndim else owner[key][None])
    elif kind == "drop":
        del owner[key]
    elif kind == "add" and isinstance(owner, list):
        owner.append(copy.copy(owner[key]))
    elif kind in ("add", "name") and isinstance(owner, dict):
        beginning = str(key) if data.draw(st.booleans()) else ""
        name = data.draw(st.sampled_from([*texts, ".k", ".alpha", ".lora_mid.weight", ".dora_scale"]), label="name")
        owner[beginning + name] = copy.copy(owner[key]) if kind == "add" else owner.pop(key)
    else:
        owner[key] = data.draw(st.sampled_from(values), label="value")
    return content


def damaged(data, content: bytes) -> bytes:
    """Cut short, longer, or with other bytes in it."""
    at = data.draw(st.integers(0, len(content) - 1), label="at")
    kind = data.draw(st.sampled_from(["cut", "longer", "byte", "header"]), label="damage")
    if kind == "cut":
        return content[:at]
    if kind == "longer":
        return content[:at] + bytes(data.draw(st.integers(1, 64))) + content[at:]
    at %= 400 if kind == "header" else len(content)
    return content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]


def safetensors_bytes(tensors: dict, metadata=None) -> bytes:
    """As the package writes it, but with metadata and names of any kind."""
    plain = {f"{k}": x.contiguous().clone() for k, x in enumerate(tensors.values())}
    content = safetensors.torch.save(plain)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header = {name: header[f"{k}"] for k, name in enumerate(tensors)}
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def mutated_safetensors(data, tensors: dict, metadata=None, texts=(*TEXTS, HALF)) -> bytes:
    """A file with one thing changed: a tensor, what is said of it, the metadata, or bytes of it."""
    kind = data.draw(st.sampled_from(["tensors", "tensors", "metadata", "header", "bytes"]), label="part")
    if kind == "tensors":
        tensors = mutated(data, tensors, values=[torch.zeros(3, 3)], texts=list(texts))
        tensors = {name: x for name, x in tensors.items() if isinstance(x, torch.Tensor)}
    if kind == "metadata" and metadata is not None:
        metadata = mutated(data, {"m": metadata})
        metadata = metadata.get("m")
    content = safetensors_bytes(tensors, metadata)
    if kind == "header":
        (length,) = struct.unpack("<Q", content[:8])
        header = mutated(data, json.loads(content[8 : 8 + length]))
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + content[8 + length :]
    return damaged(data, content) if kind == "bytes" else content


def pickle_bytes(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def mutated_pickle(data, content: dict) -> bytes:
    if data.draw(st.booleans(), label="in content"):
        return pickle_bytes(mutated(data, content, [*TENSORS, *ONLY_PICKLES], texts=[*TEXTS, HALF]))
    return damaged(data, pickle_bytes(content))


def mutated_json(data, content) -> bytes:
    if data.draw(st.booleans(), label="in content"):
        return json.dumps(mutated(data, {"x": content}).get("x")).encode()
    return damaged(data, json.dumps(content).encode())
