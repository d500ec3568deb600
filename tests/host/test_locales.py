"""The editor's texts in each language are those of the nodes."""

import json
import re

import pytest

from comfy_host import PACK
from sayings import fits, said_by_nodes, said_by_templates, strings_of_nodes
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


OTHERS = [x for x in LANGUAGES if x != "en"]
PLACE = re.compile(r"{\d}")


@pytest.mark.parametrize("language", OTHERS)
def test_language_has_what_nodes_and_templates_say(language):
    """Errors, warnings, results, notes and titles; and nothing that nobody says."""
    sayings = read(PACK / "locales" / language / "main.json")["pnpmixSays"]
    whole = {x for x in sayings if PLACE.sub("", x) != ": "}  # which fits everything
    assert not said_by_nodes() - set(sayings)
    templates = said_by_templates()
    assert not {text for text in templates if not any(fits(x, text) for x in whole)}
    words = {"a dog", "a dog and a cat", "a dog, a cat and a cup"}  # in the notes' sentences
    silent = set(sayings) - strings_of_nodes() - words
    assert not {x for x in silent if not any(fits(x, text) for text in templates)}


@pytest.mark.parametrize("language", OTHERS)
def test_translated_sayings_keep_what_differs_and_what_is_set_off(language):
    for english_words, ours in read(PACK / "locales" / language / "main.json")["pnpmixSays"].items():
        assert sorted(PLACE.findall(english_words)) == sorted(PLACE.findall(ours)), ours
        assert english_words.count("**") == ours.count("**"), ours
        for bold, rest in re.findall(r"\*\*(.+?)\*\*(.?)", ours):
            # behind a sign, Markdown ends what is bold only before a space or another sign
            assert re.search(r"\w$", bold) or not re.match(r"\w", rest), ours


@pytest.mark.parametrize("language", OTHERS)
def test_help_names_everything_as_the_node_does_in_this_language(language):
    for node, texts in read(PACK / "locales" / language / "nodeDefs.json").items():
        page = (HELP / node / f"{language}.md").read_text(encoding="utf-8")
        assert page.splitlines()[0] == f"# {texts['display_name']}"
        for key, x in texts["inputs"].items():
            assert re.search(rf"\*\*{re.escape(x['name'])}\*\*( \(`{key}`|:)", page), (node, key)
        pictures = re.compile(r"\]\((\w+\.\w+)\)")
        assert pictures.findall(page) == pictures.findall((HELP / f"{node}.md").read_text(encoding="utf-8"))
