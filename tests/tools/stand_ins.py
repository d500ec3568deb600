"""The demo model and Demo Scene in the place of people's files, in graphs of Concept Conductor and LaTexBlend.

As `workflow_files.with_demo_model` does for PnP-MIX; the rest of the graph is the template's own.
"""

from workflow_files import needed

CONDUCTED, LEARNED = 101, 2  # seeds of scenes with things that there are LoRAs for, or with looks that are learned well
PLACE = "meadow"
DEMO, SCENE = "demo model", "demo scene"
# As in Conductor 1 and Learn 1, which say why
SETTINGS = {
    "PnPMixLayoutReference": {"steps": 24},
    "PnPMixLayoutAlignment": {"weight": 150.0, "end": 0.25},
    "PnPMixMaskRefinement": {"start": 0.35, "end": 0.5, "updates": 2, "threshold": 0.5, "restarts": 10},
    "PnPMixConductor": {"steps": 12, "cfg": 4.0, "seed": 1},
    "PnPMixTrainConcept": {
        "steps": 250, "learning_rate": 1e-3, "resolution": 64, "dtype": "fp32", "checkpointing": False,
    },
    "KSampler": {"steps": 20, "cfg": 3.0, "seed": 1},
    "ImageScale": {"width": 64, "height": 64},
    "PnPMixPasteBack": {"expand": 1, "feather": 1},
}  # fmt: skip


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": None}}


def conducted_with_demo_model(prompt: dict) -> dict:
    """Concept Conductor: the demo's LoRAs of cup and star; a photo is the scene without its cup."""
    loras = [x for x in prompt.values() if x["class_type"] == "PnPMixConceptLora"]
    things = ["cup", "star"]
    words = ", ".join((*things, PLACE))
    for lora, thing in zip(loras, things, strict=False):
        text = ", ".join((thing, thing, PLACE)) if len(loras) > 1 else words
        own = {"lora_name": f"demo model: {thing}.safetensors", "strength": 1.5, "text": text, "negative_text": ""}
        lora["inputs"] |= own
    layouts, masks = 0, 0
    stands_in: dict = {}
    for node_id, x in prompt.items():
        if x["class_type"] == "LoadImage":
            photo = x["_meta"]["title"] == "Your photo"
            stands_in[node_id, 0] = ["emptied", 0] if photo else [SCENE, 0]
            stands_in[node_id, 1] = [SCENE, 4 + layouts]
            layouts += not photo
        elif x["class_type"] == "PnPMixGroundedMask":
            stands_in[node_id, 0] = [SCENE, 4 + masks]
            masks += 1
        elif x["class_type"] == "EmptyLatentImage":
            stands_in[node_id, 0] = ["size", 0]
        elif x["class_type"] == "CLIPTextEncode":
            x["inputs"]["text"] = words if x["_meta"]["title"] == "The whole picture" else ""
    added = {
        "emptied": node("PnPMixInpaintBackground", image=[SCENE, 0], mask=[SCENE, 4], expand=3, feather=1),
        "size": node("VAEEncode", pixels=[SCENE, 0], vae=[DEMO, 2]),
    }
    return stood_in(prompt, added, stands_in, CONDUCTED)


def learned_with_demo_model(prompt: dict) -> dict:
    """LaTexBlend: what a scene's cup and ball are to look like is learned, also where a file is loaded."""
    nouns, stands_in, added = ["cup", "ball"], {}, {}
    painted = 0
    for node_id, x in prompt.items():
        if x["class_type"] == "LoadImage":
            stands_in |= {(node_id, 0): [SCENE, 1], (node_id, 1): [SCENE, 4 + painted]}
            painted += 1
        elif x["class_type"] == "PnPMixTrainConcept":
            x["inputs"]["noun"] = nouns[0]
        elif x["class_type"] == "PnPMixSaveConcept":
            stands_in[node_id, 0] = x["inputs"]["learned"]
        elif x["class_type"] == "PnPMixLoadConcept":
            k = len(added)
            added[f"learned {k}"] = learning(nouns[k], k + 1)
            stands_in[node_id, 0] = [f"learned {k}", 0]
        elif x["class_type"] == "PnPMixBlend":
            several = sum(x["class_type"] == "PnPMixBlendConcept" for x in prompt.values()) > 1
            x["inputs"]["text"] = ", ".join((*nouns[: 1 + several], PLACE))
        elif x["class_type"] == "CLIPTextEncode":
            x["inputs"]["text"] = ""
        elif x["class_type"] == "EmptyLatentImage":
            stands_in[node_id, 0] = ["size", 0]
    encoded = node("VAEEncode", pixels=[SCENE, 0], vae=[DEMO, 2])
    added |= {"scene": encoded, "size": node("LatentMultiply", samples=["scene", 0], multiplier=0.0)}
    return stood_in(prompt, added, stands_in, LEARNED)


def learning(noun: str, picture: int) -> dict:
    ends = {name: [DEMO, k] for k, name in enumerate(("model", "clip", "vae"))}
    defaults = {"rank": 0, "seed": 42, "augment": True, "prior_weight": 1.0, "name": ""}
    own = ends | {"images": [SCENE, picture], "noun": noun} | defaults | SETTINGS["PnPMixTrainConcept"]
    return node("PnPMixTrainConcept", **own)


def stood_in(prompt: dict, added: dict, stands_in: dict, seed: int) -> dict:
    for node_id, x in prompt.items():
        x["inputs"] |= SETTINGS.get(x["class_type"], {})
        if x["class_type"] == "CheckpointLoaderSimple":
            stands_in |= {(node_id, output): [DEMO, output] for output in range(3)}
    own = {DEMO: node("PnPMixDemoModel"), SCENE: node("PnPMixDemoScene", seed=seed, concepts=2)}
    prompt = prompt | added | own
    for x in prompt.values():
        for key, value in x["inputs"].items():
            while isinstance(value, list) and tuple(value) in stands_in:
                value = x["inputs"][key] = stands_in[tuple(value)]
    return {node_id: prompt[node_id] for node_id in needed(prompt)}
