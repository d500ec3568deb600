"""The editor's texts in each language are those of the nodes."""

import json
import re

import pytest

from comfy_host import PACK
from write_locale import ENGLISH, english

LANGUAGES = sorted(path.parent.name for path in ENGLISH.parents[1].glob("*/nodeDefs.json"))
HELP = PACK / "js" / "docs"


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
    assert read(ENGLISH) == english(), "python tests/tools/write_locale.py writes it"


@pytest.mark.parametrize("language", LANGUAGES)
def test_language_has_every_node_input_and_output(language):
    texts = read(PACK / "locales" / language / "nodeDefs.json")
    assert names(texts) == names(english())
    assert all(wordings(texts))
    assert not any(set("{}@|") & set(x) for x in wordings(texts)), "signs with a meaning of their own for the editor"


@pytest.mark.parametrize("language", LANGUAGES)
def test_language_has_what_js_shows(language):
    ours, written = (read(PACK / "locales" / x / "main.json")["pnpmix"] for x in (language, "en"))
    places = {name: sorted(re.findall(r"{(\w+)}", words)) for name, words in ours.items()}
    assert places == {name: sorted(re.findall(r"{(\w+)}", words)) for name, words in written.items()}
    script = "".join(path.read_text(encoding="utf-8") for path in (PACK / "js").glob("*.js"))
    assert set(ours) == set(re.findall(r'\btext\("(\w+)"', script))


@pytest.mark.parametrize("language", [x for x in LANGUAGES if x != "en"])
def test_help_names_everything_as_the_node_does_in_this_language(language):
    for node, texts in read(PACK / "locales" / language / "nodeDefs.json").items():
        page = (HELP / node / f"{language}.md").read_text(encoding="utf-8")
        assert page.splitlines()[0] == f"# {texts['display_name']}"
        for key, x in texts["inputs"].items():
            assert re.search(rf"\*\*{re.escape(x['name'])}\*\*( \(`{key}`|:)", page), (node, key)
        pictures = re.compile(r"\]\((\w+\.\w+)\)")
        assert pictures.findall(page) == pictures.findall((HELP / f"{node}.md").read_text(encoding="utf-8"))
