"""Writes the templates and the blueprints: workflows/*.json and subgraphs/*.json.

python tests/tools/write_workflows.py, with the Python of the newest ComfyUI, which COMFYUI_DIR names.
"""

import json
import tempfile
from pathlib import Path

from comfy_host import boot
from conductor_workflows import conductor_templates
from graph_files import Graph, Output, Subgraph, workflow
from template_models import (
    DEMO_SEED,
    FILES,
    FINDERS,
    FLUX,
    LIGHTNING,
    PICTURE,
    PLAIN,
    SAM,
    SD,
    SDXL,
    YOURS,
    Kind,
    add_finding,
    add_loaders,
    add_results,
    enlarged,
    loaders,
    model_files,
)
from workflow_files import FOLDER, LIBRARY, graphs
from write_all_methods_workflow import all_methods_template
from write_latexblend_workflows import latexblend_templates
from write_score_workflow import compare_template

WORDS = ["dog", "cat"]
SCENE, OBJECT, REPLACE = graphs.SCENE, graphs.OBJECT, graphs.REPLACE  # titles of the subgraphs
PROMPT = "a photo of a dog and a cat on a street"


# --- What the steps are made of: each adds its nodes to a graph or subgraph


def add_crop(graph: Graph, photo: Output, masks: Output, side: int) -> tuple[Output, Output, Output]:
    """Adds the crop around all masks; returns its image, the masks in it, and the crop box."""
    size = graph.add("PrimitiveInt", graphs.SIDE, value=side)[0]
    crop = graph.add(
        "PnPMixFitPicture", "Crop of your photo", image=photo, mask=masks, width=size, height=size,
        mode="around the object",
    )  # fmt: skip
    return crop[0], crop[1], crop[2]


def add_concept(graph: Graph, picture, mask, vae, target_masks, concepts, crop: Output | None, title="") -> Output:
    """Adds a concept image, fitted to the crop, and what it replaces; returns the chain of concepts."""
    if crop is not None:
        fitted = graph.add(
            "PnPMixFitPicture", graphs.PICTURE, image=picture, mask=mask, like=crop, mode="around the object"
        )
        picture, mask = fitted[0], fitted[1]
    latent = graph.add("VAEEncode", graphs.PICTURE, pixels=picture, vae=vae)[0]
    chain = {} if concepts is None else {"concepts": concepts}
    return graph.add("PnPMixConcept", title, latent=latent, mask=target_masks, object_mask=mask, **chain)[0]


def add_replacing(
    graph: Graph, ends: dict[str, Output], target_masks: Output, dials: dict, kind: Kind = PLAIN
) -> tuple[Output, Output]:
    """Adds all from the crop and the concepts to the finished picture, and to the pictures on the way there.

    Args:
        ends: model, clip, vae, photo, concepts, prompt; crop and place, where the photo is not as large as the model's.
        dials: inputs of nodes, by the nodes' types.
    """
    small, photo, vae = "crop" not in ends, ends["photo"], ends["vae"]
    crop = photo if small else ends["crop"]
    pixels = graphs.SMALL if small else {}
    clean_plate = graph.add(
        "PnPMixInpaintBackground", image=crop, mask=target_masks, **pixels.get("PnPMixInpaintBackground", {})
    )[0]
    encoded = graph.add("VAEEncode", "Scene", pixels=crop, vae=vae)[0]
    positive = graph.add("CLIPTextEncode", "Finished picture", text=ends["prompt"], clip=ends["clip"])[0]
    unwanted = "" if small else "blurry, distorted"
    negative = graph.add("CLIPTextEncode", graphs.NEGATIVE, text=unwanted, clip=ends["clip"])[0]
    described, positive = add_guidance(graph, positive, kind)
    inversion = graph.add(
        "PnPMixDDPMInvert", model=ends["model"], positive=described, negative=negative, latent=encoded,
        **kind.inversion | dials["PnPMixDDPMInvert"],
    )[0]  # fmt: skip
    around = graph.add("VAEEncode", "Clean plate", pixels=clean_plate, vae=vae)[0]
    model = graph.add("PnPMixAppearance", model=ends["model"], **dials["PnPMixAppearance"])[0]
    model = graph.add(
        "PnPMixDilution", model=model, latent=around, **pixels.get("PnPMixDilution", {}), **dials["PnPMixDilution"]
    )[0]
    mixed = graph.add(
        "PnPMixSampler", model=model, inversion=inversion, concepts=ends["concepts"], positive=positive,
        negative=negative, **dials["PnPMixSampler"],
    )  # fmt: skip
    decoded = graph.add("VAEDecode", samples=mixed[0], vae=vae)[0]
    references = graph.add("VAEDecode", "Reference latents", samples=mixed[1], vae=vae)[0]
    place = {"place": ends["place"]} if "place" in ends else pixels["PnPMixPasteBack"]
    finished = graph.add("PnPMixPasteBack", original=photo, image=decoded, mask=mixed[2], **place)[0]
    shown = graph.add("ImageBatch", "Look inside", image1=crop, image2=clean_plate)[0]
    return finished, graph.add("ImageBatch", "Look inside", image1=shown, image2=references)[0]


def add_guidance(graph: Graph, positive: Output, kind: Kind) -> tuple[Output, Output]:
    """Returns the prompt for inverting and for mixing, where a model takes its guidance from the prompt."""
    if kind.guidance is None:
        return positive, positive
    inverting, mixing = (
        graph.add("FluxGuidance", title, conditioning=positive, guidance=guidance)[0]
        for title, guidance in zip(("Guidance of the inversion", "Guidance of the mixer"), kind.guidance, strict=True)
    )
    return inverting, mixing


# --- Subgraphs


def scene(info: dict, side: int, finder: str | None) -> Subgraph:
    """Finds the objects in the photo, and crops it around them. finder: of FINDERS; None: a mask comes in."""
    graph = Subgraph(info, SCENE, 1)
    photo = graph.input("photo", "IMAGE")
    if finder is None:
        masks = graph.input("target masks", "MASK")
    else:
        found_by = [graph.input(name, kind) for name, kind in FINDERS[finder]]
        between = graphs.BETWEEN_WORDS[finder]
        words = graph.input("objects to replace", "STRING", between.join(WORDS))
        masks = add_finding(graph, graphs.IN_SCENE, photo, words, found_by, several=True)
    for name, output in zip(("crop", "target masks", "place"), add_crop(graph, photo, masks, side), strict=True):
        graph.output(name, output)
    return graph


def one_object(info: dict, finder: str | None, small: bool = False) -> Subgraph:
    """A concept: the person's picture of the object, and the object's mask in it.

    Args:
        finder: of FINDERS, where a word says what the picture shows; None: its mask comes in.
        small: all pictures have the model's size.
    """
    graph = Subgraph(info, OBJECT, 2)
    picture, vae = graph.input("your picture", "IMAGE"), graph.input("vae", "VAE")
    concepts = graph.input("concepts", "PNPMIX_CONCEPTS")
    target_masks = graph.input("target masks", "MASK")
    crop = None if small else graph.input("crop", "IMAGE")
    if finder is None:
        mask = graph.input("object mask", "MASK")
    else:
        found_by = [graph.input(name, kind) for name, kind in FINDERS[finder]]
        word = graph.input("what your picture shows", "STRING", WORDS[0])
        mask = add_finding(graph, graphs.IN_PICTURE, picture, word, found_by)
    graph.output("concepts", add_concept(graph, picture, mask, vae, target_masks, concepts, crop))
    return graph


def replacing(info: dict, prompt: str = PROMPT, small: bool = False, kind: Kind = PLAIN, masks: int = 1) -> Subgraph:
    """From the crop and the concepts to the finished picture, with the dials that people turn most."""
    graph = Subgraph(info, REPLACE, 3)
    wanted = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "photo": "IMAGE"}
    wanted |= {} if small else {"crop": "IMAGE", "place": "PNPMIX_PLACE"}
    ends = {name: graph.input(name, sort) for name, sort in wanted.items()}
    target_masks = [graph.input(f"target mask {k}" if small else "target masks", "MASK") for k in range(1, masks + 1)]
    ends["concepts"] = graph.input("concepts", "PNPMIX_CONCEPTS")
    ends["prompt"] = graph.input("prompt", "STRING", prompt)
    seed = graph.input("seed", "INT", 0)
    dials = {
        "PnPMixAppearance": {
            "alpha": graph.input("appearance strength", "FLOAT", 0.15), "adain": graph.input("AdaIN", "BOOLEAN", True),
        },
        "PnPMixSampler": {"swap_guidance": graph.input("swap guidance", "FLOAT", 3.5)},
        "PnPMixDDPMInvert": {
            "skip_steps": graph.input("skipped steps", "INT", kind.inversion["skip_steps"]), "seed": seed,
        },
        "PnPMixDilution": {"beta": graph.input("dilution strength", "FLOAT", 0.8)},
    }  # fmt: skip
    if not prompt:  # it comes from outside, and the field of one line shows a name there
        ends["prompt"] = graph.add("PrimitiveString", "Prompt", value=ends["prompt"])[0]
    every = target_masks[0]
    for mask in target_masks[1:]:
        every = graph.add("MaskComposite", "All target masks", destination=every, source=mask, operation="add")[0]
    for name, picture in zip(
        ("finished picture", "look inside"), add_replacing(graph, ends, every, dials, kind), strict=True
    ):
        if small:
            picture = enlarged(graph, picture)
        graph.output(name, picture)
    return graph


def whole(info: dict, count: int) -> Subgraph:
    """All steps in one node, for the editor's own library."""
    graph = Subgraph(info, f"Replace {COUNTED[count]} with PnP-MIX", 1)
    ends = {name: graph.input(name, name.upper()) for name in ("model", "clip", "vae")}
    ends["photo"] = graph.input("photo", "IMAGE")
    pictures = [graph.input(f"your picture {k}", "IMAGE") for k in range(1, count + 1)]
    words = graph.input("objects to replace", "STRING", " . ".join(WORDS[:count]))
    shown = [graph.input(f"what picture {k} shows", "STRING", WORDS[k - 1]) for k in range(1, count + 1)]
    ends["prompt"], seed = graph.input("prompt", "STRING", PROMPT if count > 1 else ONE), graph.input("seed", "INT", 0)
    _, *finding = loaders(SD, "words")
    found_by = add_loaders(graph, finding)
    side = graph.input("working size (px)", "INT", SD)
    masks = add_finding(graph, graphs.IN_SCENE, ends["photo"], words, found_by, several=True)
    ends["crop"], masks, ends["place"] = add_crop(graph, ends["photo"], masks, side)
    concepts = None
    for k, (picture, word) in enumerate(zip(pictures, shown, strict=True), 1):
        mask = add_finding(graph, graphs.IN_PICTURE, picture, word, found_by)
        concepts = add_concept(graph, picture, mask, ends["vae"], masks, concepts, ends["crop"], f"{OBJECT} {k}")
    dials = {"PnPMixAppearance": {"adain": True}, "PnPMixDilution": {}, "PnPMixSampler": {}}
    dials["PnPMixDDPMInvert"] = {"seed": seed}
    finished, looked = add_replacing(graph, ends | {"concepts": concepts}, masks, dials)
    graph.output("finished picture", finished)
    graph.output("look inside", looked)
    return graph


# --- Templates

NOTE, PHOTO_AT, PICTURE_AT, OBJECT_AT, REPLACE_AT, RESULT_AT = 0, 275, 570, 820, 1097, 1352  # columns
ROW = 360  # an image is 314 pixels high, and its title 30
COUNTED, ONE = ["", "one object", "two objects"], "a photo of a dog on a street"


def photo_template(info: dict, side: int = SD, finder: str = "words", app: bool = False, kind: Kind = PLAIN) -> dict:
    """Your photo and pictures on the left, replacing in the middle, the finished picture on the right.

    Args:
        finder: of FINDERS.
        app: whether it opens as an app in editors that know them.
        kind: of a model that is no plain checkpoint.
    """
    graph, files = Graph(info), model_files(info, 5, side, finder, kind)
    finding, own, mixing = scene(info, side, finder), one_object(info, finder), replacing(info, kind=kind)
    graph.note(photo_note(side, finder, kind), [NOTE, -32], [250, 900])
    top = 215 + 28 * len(files.inputs)
    loaded = graph.add_subgraph(files, [PHOTO_AT, 0], [270, top - 90])
    graph.group("Model files", FILES, loaded)
    ends = {name: loaded[k] for k, (name, _) in enumerate(files.outputs)}
    finders = {name: ends.pop(name) for name, _ in FINDERS[finder]}
    photo = graph.add("LoadImage", "Your photo", [PHOTO_AT, top], [270, 314], image=PICTURE)
    crop = graph.add_subgraph(finding, [PHOTO_AT, top + ROW], [270, 130], photo=photo[0], **finders)
    graph.group("1 · Your photo", YOURS, photo, crop)
    cropped = {name: crop[k] for k, (name, _) in enumerate(finding.outputs)}
    rows, chain = [], {}
    for k, word in enumerate(WORDS, 1):
        picture = graph.add(
            "LoadImage", f"{graphs.PICTURE} {k}", [PICTURE_AT, ROW * (k - 1)], [230, 314], image=PICTURE
        )
        given = {"your picture": picture[0], "vae": ends["vae"], "what your picture shows": word} | finders | chain
        given |= {name: cropped[name] for name in ("crop", "target masks")}
        node = graph.add_subgraph(own, [OBJECT_AT, ROW * (k - 1)], [252, 210], f"{OBJECT} {k}", **given)
        chain = {"concepts": node[0]}
        rows += [picture, node]
    graph.group("2 · Your objects", YOURS, *rows)
    mixed = graph.add_subgraph(mixing, [REPLACE_AT, 0], [230, 440], **ends, photo=photo[0], **cropped, **chain)
    graph.group("3 · Prompt", YOURS, mixed)
    save = add_results(graph, mixed, RESULT_AT, wide=225)
    inputs = [(photo, "image"), *((x, "image") for x in rows[::2]), (crop, "objects to replace")]
    inputs += [*((x, "what your picture shows") for x in rows[1::2]), (mixed, "prompt"), (mixed, "seed")]
    return workflow(graph, [files, finding, own, mixing], linear(inputs, save) if app else None)


def linear(inputs: list, save) -> dict:
    """What an app shows: the widgets of (node, name), and what a node saves."""
    for node, name in inputs:
        for entry in node.data["inputs"]:
            if entry["name"] == name and name in ("image", "what your picture shows"):
                entry["label"] = node.data["title"]
    shown = [[node.data["id"], name] for node, name in inputs]
    return {"linearMode": True, "linearData": {"inputs": shown, "outputs": [save.data["id"]]}}


def painted_template(info: dict) -> dict:
    """Masks from the mask editor; no file but a checkpoint."""
    graph, finding, own, mixing = Graph(info), scene(info, SD, None), one_object(info, None), replacing(info, ONE)
    graph.note(painted_note(), [NOTE, -32], [270, 742])
    ((_, (kind, name, file)), *_) = loaders(SD, "words")
    properties = {"models": [file]}
    loaded = graph.add(kind, "", [300, 0], [330, 110], properties, **{name: file["name"]})
    graph.group("Model file", FILES, loaded)
    photo = graph.add("LoadImage", "Your photo: paint the object", [300, 210], [330, 314], image=PICTURE)
    graph.group("1 · Your photo", YOURS, photo)
    picture = graph.add("LoadImage", "Your picture: paint your object", [670, 0], [260, 314], image=PICTURE)
    crop = graph.add_subgraph(finding, [670, 610], [260, 90], photo=photo[0], **{"target masks": photo[1]})
    cropped = {name: crop[k] for k, (name, _) in enumerate(finding.outputs)}
    given = {"your picture": picture[0], "object mask": picture[1], "vae": loaded[2]}
    given |= {name: cropped[name] for name in ("crop", "target masks")}
    node = graph.add_subgraph(own, [670, 390], [260, 150], **given)
    graph.group("2 · Your picture", YOURS, picture, node, crop)
    ends = {name: loaded[k] for k, name in enumerate(("model", "clip", "vae"))} | {"photo": photo[0]}
    mixed = graph.add_subgraph(mixing, [970, 0], [260, 440], **ends, **cropped, concepts=node[0])
    graph.group("3 · Prompt", YOURS, mixed)
    add_results(graph, mixed, 1270, wide=240)
    return workflow(graph, [finding, own, mixing])


def demo_template(info: dict) -> dict:
    graph, own, mixing = Graph(info), one_object(info, None, small=True), replacing(info, "", small=True, masks=2)
    graph.note(demo_note(), [NOTE, -32], [300, 802])
    loaded = graph.add("PnPMixDemoModel", "", [340, 0], [240, 110])
    drawn = graph.add("PnPMixDemoScene", "", [340, 170], [240, 560], seed=DEMO_SEED, concepts=2)
    graph.group("Included in the pack", FILES, loaded, drawn)
    rows, chain = [], {}
    for k in (1, 2):
        given = {"your picture": drawn[k], "target masks": drawn[3 + k], "object mask": drawn[7 + k], **chain}
        node = graph.add_subgraph(own, [620, 220 * (k - 1)], [230, 150], f"{OBJECT} {k}", vae=loaded[2], **given)
        chain = {"concepts": node[0]}
        rows.append(node)
    graph.group("Objects", YOURS, *rows)
    ends = {name: loaded[k] for k, name in enumerate(("model", "clip", "vae"))}
    ends |= {"photo": drawn[0], "prompt": drawn[7], "target mask 1": drawn[4], "target mask 2": drawn[5]} | chain
    mixed = graph.add_subgraph(mixing, [890, 0], [250, 440], **ends)
    graph.group("PnP-MIX", YOURS, mixed)
    add_results(graph, mixed, 1180, wide=360)
    return workflow(graph, [own, mixing])


def blueprint(info: dict, count: int) -> dict:
    """A file of subgraphs/: one node, and what the editor's search knows of it."""
    graph, step = Graph(info), whole(info, count)
    graph.add_subgraph(step, [0, 0], [320, 500])
    extra = {
        "BlueprintDescription": f"Replaces {COUNTED[count]} of a photo by your own; the rest is unchanged.",
    }
    return workflow(graph, [step], extra)


# --- Notes


def file_list(side: int, finder: str, kind: Kind = PLAIN) -> str:
    lines = [kind.listed] if kind.listed else []
    for _, (_, _, file) in loaders(side, finder)[bool(kind.load) :]:
        extra = f"; any {'SDXL' if side == SDXL else 'SD 1.x or 2.x'} checkpoint works"
        extra *= file["directory"] == "checkpoints" and "sam" not in file["name"]
        extra += "; ViT-L and ViT-H give finer outlines" * (file == SAM)
        lines.append(f"- **{file['name']}** in models/{file['directory']}: [download]({file['url']}){extra}")
    return "\n".join(lines)


LOOKS = """- The look is too weak: raise *swap guidance* or *appearance strength* of **Replace objects**.
- Shapes are lost: raise *skipped steps*, or set *layers* of **Guided Appearance Attention** to decoder.
- Concepts mix: raise *dilution strength*, or lower *expand* of **Background Dilution++**.
- The clean plate is smeared: connect **Load Inpaint Model** with \
[big-lama.pt](https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt) in models/inpaint to \
**Inpaint Background**."""
HINTS = f"""{LOOKS}
- Settings of the paper: *steps* 100, *skip_steps* 32 and *cfg* 3.5 in **DDPM Invert**, *adain* off in **Guided \
Appearance Attention**, and *object_mask* of each **Concept** not connected. This takes longer."""
OPEN = "with the icon in its top-right corner (Nodes 2.0: Enter subgraph)"
INSIDE = f"**To change more**, open the subgraph **Replace objects** {OPEN}."
SIZES = """The model works on a crop of the photo around all objects, at {side} × {side} pixels. The result has the \
size of the photo; pixels outside the expanded masks are unchanged."""
THIRD = """**A third object**: write its word into **Objects in your photo** too. Select **Your picture 2** and **Your \
object 2**, copy (Ctrl+C) and paste with the links (Ctrl+Shift+V), and connect *concepts*: **Your object 2** to the \
copy, and the copy to **Replace objects**. For one object delete **Your object 2** and connect **Your object 1**."""


def photo_note(side: int, finder: str, kind: Kind) -> str:
    found = "*threshold* of **SAM3_Detect**" if finder == "sam3" else "*box_threshold*"
    between = {"sam3": "a comma", "words": "a period"}[finder]
    two = {"sam3": "dog:2", "words": "dog . dog"}[finder]
    return f"""# Replace two objects of your photo{kind.name}

Your photo contains a dog and a cat. They are redrawn to look like yours; nothing else changes.

**Fill in the nodes in the green groups**
1. **Your photo**: any size. **Objects in your photo**: their names, with {between} between them.
2. **Your picture**: one picture per object, any size, in the same order. **Your object**: the name of what it shows.
3. **Replace objects**: a prompt for the result.

Then **Run**. **Look inside** shows the crop, the crop with the objects removed (clean plate), and each object's \
reference latent.

**Files to download once**
{file_list(side, finder, kind)}

{SIZES.format(side=side)}

{THIRD}

- Not found, or the wrong object: be more specific, such as dog on the left, or lower {found}.
- Two objects of a kind: {two} takes the two best detections{", from left to right" * (finder == "words")}.

{INSIDE}
{kind.hints or HINTS}
"""


def painted_note() -> str:
    _, (_, _, file) = loaders(SD, "words")[0]
    return f"""# Replace one object, masks painted by hand

You paint the masks yourself, so this needs only a checkpoint.

**Fill in the nodes in the green groups**
1. **Your photo**: load it, right-click, **Open in MaskEditor**, and paint over the object to replace.
2. **Your picture**: load it, and paint over your object in the same way.
3. **Replace objects**: a prompt for the result.

Then **Run**. For a second object, load the result as your photo.

**File to download once**
- **{file["name"]}** in models/checkpoints: [download]({file["url"]}); any SD 1.x or 2.x checkpoint works

{SIZES.format(side=SD)}

{INSIDE}
{HINTS}
"""


def demo_note() -> str:
    return """# START HERE

Press **Run**. Everything is included in the pack, and it takes less than a minute, also on a CPU.

**Demo Scene** draws a scene with two objects, and a concept image for each. **Replace objects** redraws the objects \
of the scene to look like the concepts; nothing else changes. **Look inside** shows the scene, the clean plate, and \
the reference latents.

- Change *seed* in **Demo Scene** for another scene. Not every seed gives a result as good as this one.
- Open **Replace objects** with the icon in its top-right corner (Nodes 2.0: Enter subgraph). While it runs, **Mask \
Noise Mixer** shows the target masks. Bypass (Ctrl+B) **Guided Appearance Attention** or **Background Dilution++** to \
see its effect.
- Settings of the paper: *steps* 100, *skip_steps* 32 and *cfg* 3.5 in **DDPM Invert**, *adain* off in **Guided \
Appearance Attention**, and *object_mask* of each **Concept** not connected.
- A transformer like Flux instead of the UNet: *network* flow in **Load Demo Model**, and in **DDPM Invert** *steps* \
16, *skip_steps* 5 and the *scheduler* simple. It was trained less, so shapes and patterns are rougher.

**Load Demo Model** is a tiny diffusion model for drawings of 64 × 64 pixels; the images here are enlarged. It knows \
the shapes ball, box, cup, fish, heart, star; the patterns striped, checkered, dotted in red, orange, yellow, \
green, blue, purple, white, black; the places meadow, desert, sea, dusk, snow, room.

For your own photos use **Replace two objects**.
"""


def write_all(info: dict) -> None:
    templates = {
        "START HERE - two objects, no downloads": demo_template(info),
        "Replace one object, masks painted by hand": painted_template(info),
        "Replace two objects": photo_template(info, finder="sam3"),
        "Replace two objects with Grounding DINO": photo_template(info),
        "Replace two objects with SDXL": photo_template(info, SDXL),
        "Replace two objects with a transformer": photo_template(info, SDXL, kind=FLUX),
        "Replace two objects in 4 steps": photo_template(info, SDXL, kind=LIGHTNING),
        "Replace two objects as an app.app": photo_template(info, app=True),
        "All methods together, no downloads": all_methods_template(info),
        "Compare settings, no downloads": compare_template(info),
    }
    for name, data in {**templates, **conductor_templates(info), **latexblend_templates(info)}.items():
        write(FOLDER / f"{name}.json", data)
    for count in (1, 2):
        write(LIBRARY / f"Replace {COUNTED[count]} with PnP-MIX.json", blueprint(info, count))


def write(path: Path, data: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(lines(data) + "\n", encoding="utf-8")


def lines(data, depth: int = 0) -> str:
    """JSON with a line for each node, link and group, so that a change of one shows as a change of one line."""
    if isinstance(data, dict) and any(name in data for name in ("nodes", "subgraphs")):
        parts = [f"{json.dumps(name)}: {lines(x, depth + 1)}" for name, x in data.items()]
        ends = "{}"
    elif isinstance(data, list) and data and isinstance(data[0], dict | list):
        parts, ends = [lines(x, depth + 1) for x in data], "[]"
    else:
        return json.dumps(data, ensure_ascii=False)
    space = "\n" + " " * depth
    return f"{ends[0]}{space} " + f",{space} ".join(parts) + space + ends[1]


def node_info() -> dict:
    """What ComfyUI's server says of each node, as far as it is needed here."""
    import nodes

    return {
        name: {
            "input": node.INPUT_TYPES(),
            "output": node.RETURN_TYPES,
            "output_name": getattr(node, "RETURN_NAMES", None) or node.RETURN_TYPES,
        }
        for name, node in nodes.NODE_CLASS_MAPPINGS.items()
    }


if __name__ == "__main__":
    boot(Path(tempfile.mkdtemp()), "--cpu")
    write_all(node_info())
