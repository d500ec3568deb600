"""The templates for flow-matching transformers; write_workflows.py writes them with the others."""

SETTINGS = {  # of nodes in the Blend graph, by their widgets' places: steps, skip_steps, cfg and scheduler
    "PnPMixDDPMInvert": {0: 16, 1: 5, 2: 1.0, 5: "simple"},
}


def flow_demo(template: dict, note: str) -> dict:
    """The demo's template with the transformer in the UNet's place."""
    for node in template["nodes"]:
        if node["type"] == "PnPMixDemoModel":
            node["widgets_values"] = ["flow"]
        if node["type"] == "MarkdownNote":
            node["widgets_values"] = [note]
    for graph in template["definitions"]["subgraphs"]:
        for node in graph["nodes"]:
            for place, value in SETTINGS.get(node["type"], {}).items():
                node["widgets_values"][place] = value
    return template


def flow_note() -> str:
    return """# A transformer, without downloads

Press **Run**: the same as **1 Try it without downloads**, with a small transformer in the layout of Flux, which comes \
with the pack, in the place of the UNet.

- **DDPM Invert** takes the *scheduler* simple and fewer *steps*, as flow-matching models need.
- Each **Concept** has its *object_mask*: a transformer knows where it looks, and *position* target of **Guided \
Appearance Attention** shows it your object at the scene's place. Set it to *kept* to see what happens without.

The model has learnt less than the UNet of template 1, so that shapes and patterns come out rougher. It knows the same \
words.
"""
