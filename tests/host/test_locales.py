"""The editor's texts in each language are those of the nodes."""

import json

import pytest

from comfy_host import PACK
from write_locale import ENGLISH, english


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def names(texts: dict) -> dict:
    """Everything but the wording."""
    return {
        node: (list(parts["inputs"]), list(parts["outputs"]), [list(x) for x in parts["inputs"].values()])
        for node, parts in texts.items()
    }


def wordings(value) -> list[str]:
    return [value] if isinstance(value, str) else [word for x in value.values() for word in wordings(x)]


def test_english_is_what_the_nodes_say():
    assert read(ENGLISH) == english(), "python tests/write_locale.py writes it"


@pytest.mark.parametrize("language", sorted(path.parent.name for path in ENGLISH.parents[1].glob("*/nodeDefs.json")))
def test_language_has_every_node_input_and_output(language):
    texts = read(PACK / "locales" / language / "nodeDefs.json")
    assert names(texts) == names(english())
    assert all(wordings(texts))
    assert not any(set("{}@|") & set(x) for x in wordings(texts)), "signs with a meaning of their own for the editor"
