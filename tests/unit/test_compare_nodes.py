"""A change of the nodes that breaks saved graphs is found before it is merged."""

import pytest

from compare_nodes import broken_inputs, inputs_of

OLD = {
    "required": {
        "model": ("MODEL", {}),
        "mode": (["one", "two"], {"default": "one"}),
        "steps": ("INT", {"default": 5}),
    },
    "optional": {"mask": ("MASK",)},
}


def faults(required: dict, optional: dict = OLD["optional"]) -> list[str]:
    return list(broken_inputs(inputs_of(OLD), inputs_of({"required": required, "optional": optional})))


def test_nodes_may_gain_inputs_at_the_end_and_choices():
    more = OLD["required"] | {"mode": ("COMBO", {"options": ["two", "three", "one"], "default": "one"})}
    assert faults(more | {"cfg": ("FLOAT", {"default": 1.0})}, OLD["optional"] | {"clip": ("CLIP", {})}) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"steps": ("FLOAT", {"default": 5})}, "takes FLOAT instead of INT"),
        ({"steps": ("INT", {"default": 6})}, "default of 'steps' is 6 instead of 5"),
        ({"mode": (["one"], {"default": "one"})}, "no longer offers two"),
        ({"clip": ("CLIP", {})}, "'clip' is required and has no default"),
    ],
)
def test_a_changed_or_added_input_that_breaks_graphs_is_named(change, fault):
    (found,) = faults(OLD["required"] | change)
    assert fault in found


def test_widgets_keep_their_order_and_nothing_goes_or_becomes_required():
    (found,) = faults({"cfg": ("FLOAT", {"default": 1.0})} | OLD["required"])
    assert "mode, steps, which is now cfg, mode, steps" in found
    assert faults(OLD["required"], {}) == ["input 'mask' was removed"]
    assert faults(OLD["required"] | OLD["optional"], {})[0] == "input 'mask' was optional"
