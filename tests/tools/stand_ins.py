"""The demo model and Demo Scene in the place of people's files, in graphs of Concept Conductor and LaTexBlend.

As `workflow_files.with_demo_model` does for PnP-MIX; the rest of the graph is the template's own.
"""

# isort: off
from workflow_files import needed  # makes the next one known
from demo.conducting import ConductorSettings
from cli.graphs import SMALL

# isort: on
CONDUCTED, LEARNED = 101, 2  # seeds of scenes with things that there are LoRAs for, or with looks that are learned well
KEPT, KEPT_SEED = ["cup", "fish"], 9  # of demo/concepts; a seed, of sixteen, with which both get their looks
PLACE = "meadow"
DEMO, SCENE = "demo model", "demo scene"
CONDUCTING = ConductorSettings()
REFINING = ("start", "end", "updates", "threshold", "restarts")
# What the demo model takes, in the templates without downloads too
SETTINGS = {
    "PnPMixLayoutReference": {"steps": CONDUCTING.inversion_steps},
    "PnPMixLayoutAlignment": {"weight": CONDUCTING.weight, "end": CONDUCTING.align_end},
    "PnPMixMaskRefinement": {name: getattr(CONDUCTING, name) for name in REFINING},
    "PnPMixConductor": {"steps": CONDUCTING.steps, "cfg": CONDUCTING.cfg, "seed": 1},
    "PnPMixTrainConcept": {
        "steps": 300, "learning_rate": 2e-3, "resolution": 64, "augment": False, "dtype": "fp32",
        "checkpointing": False,
    },
    "PnPMixBlend": {"start_percent": 0.0},
    "KSampler": {"steps": 20, "cfg": 3.0, "seed": 1},
    **{kind: SMALL[kind] for kind in ("ImageScale", "PnPMixPasteBack", "PnPMixInpaintBackground", "PnPMixDilution")},
}  # fmt: skip


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": None}}


def conducted_with_demo_model(prompt: dict) -> dict:
    """Concept Conductor: the demo's LoRAs of cup and star."""
    loras = [x for x in prompt.values() if x["class_type"] == "PnPMixConceptLora"]
    things = ["cup", "star"]
    words = ", ".join((*things, PLACE))
    for lora, thing in zip(loras, things, strict=True):
        text = ", ".join((thing, thing, PLACE))
        own = {"lora_name": f"demo model: {thing}.safetensors", "text": text, "negative_text": ""}
        own["strength"] = CONDUCTING.strength
        lora["inputs"] |= own
    masks, stands_in = iter((4, 5)), {}
    for node_id, x in prompt.items():
        if x["class_type"] == "LoadImage":
            stands_in[node_id, 0] = [SCENE, 0]
        elif x["class_type"] == "PnPMixGroundedMask":
            stands_in[node_id, 0] = [SCENE, next(masks)]
        elif x["class_type"] == "EmptyLatentImage":
            stands_in[node_id, 0] = ["size", 0]
        elif x["class_type"] == "CLIPTextEncode":
            x["inputs"]["text"] = words if x["_meta"]["title"] == "The whole picture" else ""
    added = {"size": node("VAEEncode", pixels=[SCENE, 0], vae=[DEMO, 2])}
    return stood_in(prompt, added, stands_in, CONDUCTED)


def learned_with_demo_model(prompt: dict) -> dict:
    """LaTexBlend: a scene's cup is learned from four photos, or the pack's own files are in the place of people's."""
    stands_in, added = {}, {}
    learns = any(x["class_type"] == "PnPMixTrainConcept" for x in prompt.values())
    loaded = painted = 0
    for node_id, x in prompt.items():
        if x["class_type"] == "LoadImage" and learns:
            added[f"photo {loaded}"] = node("ImageFromBatch", image=[SCENE, 1], batch_index=loaded, length=1)
            stands_in[node_id, 0] = [f"photo {loaded}", 0]
            loaded += 1
        elif x["class_type"] == "LoadImage":
            added |= half(painted)
            stands_in[node_id, 1] = [f"half {painted}", 0]
            painted += 1
        elif x["class_type"] == "PnPMixTrainConcept":
            x["inputs"]["noun"] = KEPT[0]
        elif x["class_type"] == "PnPMixSaveConcept":
            stands_in[node_id, 0] = x["inputs"]["learned"]
        elif x["class_type"] == "PnPMixLoadConcept":
            x["inputs"]["file"] = f"demo model: {KEPT[loaded]}.safetensors"
            loaded += 1
        elif x["class_type"] == "PnPMixBlend":
            x["inputs"]["text"] = ", ".join((*(KEPT[:1] if learns else KEPT), PLACE))
        elif x["class_type"] == "CLIPTextEncode":
            x["inputs"]["text"] = ""
        elif x["class_type"] == "EmptyLatentImage":
            stands_in[node_id, 0] = ["size", 0]
    encoded = node("VAEEncode", pixels=[SCENE, 0], vae=[DEMO, 2])
    added |= {"scene": encoded, "size": node("LatentMultiply", samples=["scene", 0], multiplier=0.0)}
    prompt = stood_in(prompt, added, stands_in, LEARNED, concepts=1, photos=5)
    for x in prompt.values():
        if x["class_type"] == "KSampler" and not learns:
            x["inputs"]["seed"] = KEPT_SEED
    return prompt


def half(k: int) -> dict:
    """Nodes of a mask of the left or the right half."""
    own = node("SolidMask", value=1.0, width=32, height=64)
    empty = node("SolidMask", value=0.0, width=64, height=64)
    ends = dict(destination=[f"empty {k}", 0], source=[f"side {k}", 0], x=32 * k, y=0, operation="add")
    return {f"side {k}": own, f"empty {k}": empty, f"half {k}": node("MaskComposite", **ends)}


def stood_in(prompt: dict, added: dict, stands_in: dict, seed: int, concepts: int = 2, photos: int = 1) -> dict:
    for node_id, x in prompt.items():
        x["inputs"] |= SETTINGS.get(x["class_type"], {})
        if x["class_type"] == "CheckpointLoaderSimple":
            stands_in |= {(node_id, output): [DEMO, output] for output in range(3)}
    own = {DEMO: node("PnPMixDemoModel"), SCENE: node("PnPMixDemoScene", seed=seed, concepts=concepts, photos=photos)}
    prompt = prompt | added | own
    for x in prompt.values():
        for key, value in x["inputs"].items():
            while isinstance(value, list) and tuple(value) in stands_in:
                value = x["inputs"][key] = stands_in[tuple(value)]
    return {node_id: prompt[node_id] for node_id in needed(prompt)}
