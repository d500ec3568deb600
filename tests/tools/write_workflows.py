"""Writes the templates and the blueprints: workflows/*.json and subgraphs/*.json.

python tests/tools/write_workflows.py, with the Python of the newest ComfyUI, which COMFYUI_DIR names.
"""

import json
import tempfile
from pathlib import Path

import write_score_workflows
from comfy_host import boot
from conductor_workflows import conductor_templates
from graph_files import Graph, Output, Subgraph, workflow
from template_models import (
    BERT,
    CHECKPOINTS,
    DINO,
    FILES,
    FINDERS,
    PLAIN,
    RESULT,
    SAM,
    SD,
    SDXL,
    YOURS,
    Kind,
    add_finding,
    add_loaders,
    add_places,
    loaders,
)
from workflow_files import FOLDER, LIBRARY, SIDE
from write_few_steps_workflows import FEW_STEPS_KINDS
from write_flow_workflows import FLOW_KINDS, flow_demo, flow_note
from write_learn_workflows import learn_templates
from write_together_workflows import together_templates

WORDS, PICTURE = ["dog", "cat", "cup"], "example.png"  # which every ComfyUI has, until people choose their own
ROW = 356
DEMO_SEED = 18  # its picture is among the best of 50 seeds


# --- What the steps are made of: each adds its nodes to a graph or subgraph


def add_part_of_photo(graph: Graph, photo: Output, masks: list[Output], side: int | Output):
    """Adds the crop around all masks; returns its image, the masks in it, all of them as one, and the crop box."""
    size = graph.add("PrimitiveInt", SIDE, value=side)[0]
    margin = graph.add("PrimitiveInt", "Margin around the objects, %", value=20)[0]
    settings = {"width": size, "height": size, "margin": margin, "mode": "around the object"}
    every = masks[0]
    for mask in masks[1:]:
        every = graph.add("MaskComposite", "All target masks", destination=every, source=mask, operation="add")[0]
    part = graph.add("PnPMixFitPicture", "Crop of your photo", image=photo, mask=every, **settings)
    if len(masks) == 1:
        return part[0], [part[1]], part[1], part[2]
    own = []
    for k, mask in enumerate(masks, 1):  # the same frame cuts each mask as if it were a picture
        drawn = graph.add("MaskToImage", f"Mask {k}", mask=mask)[0]
        cut = graph.add("PnPMixFitPicture", f"Target mask {k}", image=drawn, mask=every, **settings)[0]
        own.append(graph.add("ImageToMask", f"Mask {k}", image=cut, channel="red")[0])
    return part[0], own, part[1], part[2]


def add_blend(graph: Graph, model, clip, vae, photo, things, prompt, seed, side, kind=PLAIN) -> tuple[Output, Output]:
    """From pictures and masks to the finished picture, and to the pictures on the way there.

    Args:
        things: (where it goes, picture, where the object is in it) of each.
        side: of the part that the model works on; None: all is in the demo model's size already.
        kind: what this kind of model needs that others do not.
    """
    wheres, pictures, objects = ([thing[k] for thing in things] for k in range(3))
    expand, feather, wide = (3, 1, 4) if side is None else (8, 4, 16)
    if side is None:
        part, place = photo, {}
        every = wheres[0]
        for mask in wheres[1:]:
            every = graph.add("MaskComposite", "All target masks", destination=every, source=mask, operation="add")[0]
    else:
        part, wheres, every, origin = add_part_of_photo(graph, photo, wheres, side)
        place = {"place": origin}
        fitted = [
            graph.add(
                "PnPMixFitPicture", f"Your picture {k}", image=picture, mask=mask, like=part, mode="around the object"
            )
            for k, (picture, mask) in enumerate(zip(pictures, objects, strict=True), 1)
        ]
        pictures, objects = [node[0] for node in fitted], [node[1] for node in fitted]

    clean_plate = graph.add("PnPMixInpaintBackground", image=part, mask=every, expand=expand, feather=feather)[0]
    encoded = graph.add("VAEEncode", "Scene", pixels=part, vae=vae)[0]
    positive = graph.add("CLIPTextEncode", "Finished picture", text=prompt, clip=clip)[0]
    negative = graph.add("CLIPTextEncode", "Not in it", text="" if side is None else "blurry, distorted", clip=clip)[0]
    described, positive = add_guidance(graph, positive, kind)
    inversion = graph.add(
        "PnPMixDDPMInvert", model=model, positive=described, negative=negative, latent=encoded, seed=seed,
        **kind.inversion,
    )[0]  # fmt: skip
    around = graph.add("VAEEncode", "Clean plate", pixels=clean_plate, vae=vae)[0]
    model = graph.add("PnPMixAppearance", model=model, adain=True)[0]
    model = graph.add("PnPMixDilution", model=model, latent=around, expand=wide)[0]
    concepts = None
    for k, (where, picture, mask) in enumerate(zip(wheres, pictures, objects, strict=True), 1):
        latent = graph.add("VAEEncode", f"Your picture {k}", pixels=picture, vae=vae)[0]
        chain = {} if concepts is None else {"concepts": concepts}
        title = f"Your thing {k}"
        concepts = graph.add(
            "PnPMixConcept", title, latent=latent, mask=where, object_mask=mask, seed=k, **chain
        )[0]  # fmt: skip
    mixed = graph.add(
        "PnPMixSampler", model=model, inversion=inversion, concepts=concepts, positive=positive, negative=negative
    )
    decoded = graph.add("VAEDecode", samples=mixed[0], vae=vae)[0]
    branches = graph.add("VAEDecode", "Reference latents", samples=mixed[1], vae=vae)[0]
    rim = {"expand": 1, "feather": 1} if side is None else {}
    finished = graph.add("PnPMixPasteBack", original=photo, image=decoded, mask=mixed[2], **rim, **place)[0]
    shown = part
    for picture in (clean_plate, *pictures, branches):
        shown = graph.add("ImageBatch", "Look inside", image1=shown, image2=picture)[0]
    return finished, shown


def add_guidance(graph: Graph, positive: Output, kind: Kind) -> tuple[Output, Output]:
    """The prompt for inverting and for mixing, where a model takes its guidance from the prompt."""
    if kind.guidance is None:
        return positive, positive
    inverting, mixing = (
        graph.add("FluxGuidance", title, conditioning=positive, guidance=guidance)[0]
        for title, guidance in zip(("Guidance of the inversion", "Guidance of the mixer"), kind.guidance, strict=True)
    )
    return inverting, mixing


# --- Subgraphs


def thing(info: dict, k: int, finder: str) -> Subgraph:
    """Your thing k: its mask in the person's own picture, and the word that finds it there and in the photo."""
    graph = Subgraph(info, f"Your thing {k}", k)
    picture = graph.input("your picture", "IMAGE")
    found_by = [graph.input(name, kind) for name, kind in FINDERS[finder]]
    name = graph.input("what it replaces", "STRING", WORDS[k - 1])
    words = graph.add("PrimitiveString", "Object name", value=name)[0]
    graph.output("your object", add_finding(graph, [("In your picture", picture)], words, found_by)[0])
    graph.output("word", words)
    return graph


def blend(
    info: dict, count: int, side: int | None, prompt: str, kind: Kind = PLAIN, finder: str | None = None
) -> Subgraph:
    """finder: of FINDERS, where words say where the things go; None: masks do."""
    graph = Subgraph(info, "Blend", 4)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    photo, things = graph.input("photo", "IMAGE"), []
    found_by = [graph.input(name, sort) for name, sort in FINDERS[finder]] if finder else []
    for k in range(1, count + 1):
        # a text is a widget of the node, also where it comes from outside
        where = (f"word {k}", "STRING", WORDS[k - 1]) if finder else (f"where {k} goes", "MASK")
        names = [where, (f"your picture {k}", "IMAGE"), (f"your object {k}", "MASK")]
        things.append([graph.input(*name) for name in names])
    if finder:
        masks = add_places(graph, photo, [thing[0] for thing in things], found_by)
        things = [[mask, *thing[1:]] for mask, thing in zip(masks, things, strict=True)]
    words, seed = graph.input("prompt", "STRING", prompt), graph.input("seed", "INT", 0)
    if not prompt:  # it comes from outside, and the field of one line shows a name there
        words = graph.add("PrimitiveString", "Prompt", value=words)[0]
    for name, picture in zip(
        ("finished picture", "look inside"),
        add_blend(graph, model, clip, vae, photo, things, words, seed, side, kind),
        strict=True,
    ):
        if side is None:
            picture = graph.add("ImageScaleBy", "Enlarge", image=picture, upscale_method="nearest-exact", scale_by=8)[0]
        graph.output(name, picture)
    return graph


def model_files(info: dict, side: int, finder: str, kind: Kind = PLAIN) -> Subgraph:
    """All loaders in one node."""
    graph = Subgraph(info, "Model files", 5)
    own, finding = kind.load(graph) if kind.load else [], loaders(side, finder)[bool(kind.load) :]
    files = [(*loader, graph.input(label, "COMBO", loader[2]["name"])) for label, loader in finding]
    names = ["model", "clip", "vae", *(name for name, _ in FINDERS[finder])]
    for name, output in zip(names, [*own, *add_loaders(graph, files)], strict=False):  # of SAM 3's checkpoint no VAE
        graph.output(name, output)
    return graph


def candidates(info: dict, prompt: str, side: int) -> Subgraph:
    graph = Subgraph(info, "Candidates for the scene", 6)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    words = graph.add("PrimitiveStringMultiline", "Prompt", value=graph.input("prompt", "STRING", prompt))[0]
    seed = graph.input("seed", "INT", 0)
    empty = graph.add("EmptyLatentImage", "Size and number", width=side, height=side, batch_size=4)[0]
    positive = graph.add("CLIPTextEncode", "Scene", text=words, clip=clip)[0]
    negative = graph.add("CLIPTextEncode", "Not in it", text="blurry, distorted", clip=clip)[0]
    sampled = graph.add(
        "KSampler", model=model, seed=seed, steps=30, cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras",
        positive=positive, negative=negative, latent_image=empty,
    )[0]  # fmt: skip
    graph.output("candidates", graph.add("VAEDecode", samples=sampled, vae=vae)[0])
    graph.output("prompt", words)
    return graph


def whole(info: dict, count: int) -> Subgraph:
    """All steps in one node, for the editor's own library."""
    graph = Subgraph(info, f"{THINGS[count].capitalize()} of yours into a photo with PnP-MIX", 1)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    photo, things = graph.input("photo", "IMAGE"), []
    pictures = [graph.input(f"your picture {k}", "IMAGE") for k in range(1, count + 1)]
    words = [graph.input(f"picture {k} replaces", "STRING", WORDS[k - 1]) for k in range(1, count + 1)]
    prompt, seed = graph.input("prompt", "STRING", prompt_for(count)), graph.input("seed", "INT", 0)
    _, *finding = loaders(SD, "words")
    files = [(*loader, graph.input(label, "COMBO", loader[2]["name"])) for label, loader in finding]
    side = graph.input("working size (px)", "INT", SD)
    found_by = add_loaders(graph, files)
    wheres = add_places(graph, photo, words, found_by)
    for k, (where, picture, word) in enumerate(zip(wheres, pictures, words, strict=True), 1):
        things.append([where, picture, add_finding(graph, [(f"Your object {k}", picture)], word, found_by)[0]])
    finished, shown = add_blend(graph, model, clip, vae, photo, things, prompt, seed, side)
    graph.output("finished picture", finished)
    graph.output("look inside", shown)
    return graph


# --- Templates

NOTE, FILES_AT, PICTURE_AT, THING_AT, BLEND_AT, RESULT_AT = 0, 310, 570, 810, 1060, 1330  # columns
THINGS = ["", "one thing", "two things", "three things"]


def photo_template(
    info: dict, count: int, side: int = SD, finder: str = "words", sampled=False, app=False, kind: Kind = PLAIN
) -> dict:
    """Your photo and pictures on the left, blending in the middle, the finished picture on the right.

    finder: of FINDERS. sampled: the scene is one of the candidates that the checkpoint makes.
    app: it opens as an app in editors that know them. kind: a model that is no plain checkpoint.
    """
    graph, prompt = Graph(info), prompt_for(count)
    files, mixing = (
        model_files(info, side, finder, kind),
        blend(info, count, side, "" if sampled else prompt, kind, finder),
    )
    steps = [thing(info, k, finder) for k in range(1, count + 1)]
    subgraphs = [files, *steps, mixing]
    graph.note(photo_note(count, side, finder, sampled, kind), [NOTE, -32], [280, 840])
    more = 32 * max(len(files.inputs) - 3, 0)  # files than a checkpoint and the finders
    loaded = graph.add_subgraph(files, [FILES_AT, 0], [230, 216 + more])
    graph.group("Model files", FILES, loaded)
    model, clip, vae, *found_by = (loaded[k] for k in range(len(files.outputs)))
    ends = {"model": model, "clip": clip, "vae": vae}
    if sampled:
        sampling = candidates(info, prompt, side)
        subgraphs.append(sampling)
        made = graph.add_subgraph(sampling, [FILES_AT, 310], [230, 210], **ends)
        photo = graph.add("PnPMixBackgroundPicker", "Choose the scene", [FILES_AT, 566], [230, 300], images=made[0])
        graph.group("1 · The scene", YOURS, made, photo)
        ends["prompt"] = made[1]
    else:
        photo = graph.add("LoadImage", "Your photo", [FILES_AT, 310 + more], [230, 314], image=PICTURE)
        graph.group("1 · Your photo", YOURS, photo)
    finders = dict(zip([name for name, _ in FINDERS[finder]], found_by, strict=True))
    ends |= {"photo": photo[0]} | finders
    rows = []
    for k, step in enumerate(steps, 1):
        picture_at, thing_at = [PICTURE_AT, ROW * (k - 1)], [THING_AT, ROW * (k - 1)]
        if count == 3:  # a third row would not fit on the screen
            thing_at[1] = 192 * (k - 1)
            picture_at = [THING_AT, 576] if k == 3 else picture_at
        picture = graph.add("LoadImage", f"Your picture {k}", picture_at, [220, 314], image=PICTURE)
        found = graph.add_subgraph(step, thing_at, [210, 130], **{"your picture": picture[0]}, **finders)
        (word,) = [entry for entry in found.data["inputs"] if entry["name"] == "what it replaces"]
        word["label"] = "replaces"  # what a narrow node has room for
        ends |= {f"word {k}": found[1], f"your picture {k}": picture[0], f"your object {k}": found[0]}
        rows += [picture, found]
    graph.group("2 · Your objects", YOURS, *rows)
    mixed = graph.add_subgraph(mixing, [BLEND_AT, 0], [230, 480], **ends)
    graph.group("3 · Prompt" if not sampled else "3 · Blend", YOURS, mixed)
    save = add_results(graph, mixed, RESULT_AT, wide=230)
    inputs = [(photo, "image"), *((x, "image") for x in rows[::2]), *((x, "what it replaces") for x in rows[1::2])]
    inputs += [(mixed, "prompt"), (mixed, "seed")]
    return workflow(graph, subgraphs, linear(inputs, save) if app else None)


def linear(inputs: list, save) -> dict:
    """What an app shows: the widgets of (node, name), and what a node saves."""
    for node, name in inputs:
        for entry in node.data["inputs"]:
            if entry["name"] == name and name in ("image", "what it replaces"):
                entry["label"] = f"{node.data['title']}: {name}" if name != "image" else node.data["title"]
    shown = [[node.data["id"], name] for node, name in inputs]
    return {"linearMode": True, "linearData": {"inputs": shown, "outputs": [save.data["id"]]}}


def painted_template(info: dict) -> dict:
    """Masks from the mask editor; no file but a checkpoint."""
    graph, mixing = Graph(info), blend(info, 1, SD, prompt_for(1))
    graph.note(painted_note(), [NOTE, -32], [270, 742])
    properties = {"models": [CHECKPOINTS[SD]]}
    name = CHECKPOINTS[SD]["name"]
    loaded = graph.add("CheckpointLoaderSimple", "", [310, 0], [270, 110], properties, ckpt_name=name)
    graph.group("Model file", FILES, loaded)
    photo = graph.add("LoadImage", "Your photo: paint the object to replace", [310, 210], [270, 314], image=PICTURE)
    graph.group("1 · Your photo", YOURS, photo)
    picture = graph.add("LoadImage", "Your picture: paint your object", [620, 0], [270, 314], image=PICTURE)
    graph.group("2 · Your picture", YOURS, picture)
    ends = {name: loaded[k] for k, name in enumerate(("model", "clip", "vae"))} | {"photo": photo[0]}
    ends |= {"where 1 goes": photo[1], "your picture 1": picture[0], "your object 1": picture[1]}
    mixed = graph.add_subgraph(mixing, [930, 0], [270, 400], **ends)
    graph.group("3 · Prompt", YOURS, mixed)
    add_results(graph, mixed, 1240)
    return workflow(graph, [mixing])


def demo_template(info: dict) -> dict:
    graph, mixing = Graph(info), blend(info, 2, None, "")
    graph.note(demo_note(), [NOTE, -32], [300, 742])
    loaded = graph.add("PnPMixDemoModel", "", [350, 0], [250, 110])
    scene = graph.add("PnPMixDemoScene", "", [350, 170], [250, 330], seed=DEMO_SEED, concepts=2)
    graph.group("Included in the pack", FILES, loaded, scene)
    ends = {name: loaded[k] for k, name in enumerate(("model", "clip", "vae"))}
    for k in (1, 2):
        ends |= {f"where {k} goes": scene[3 + k], f"your picture {k}": scene[k], f"your object {k}": scene[7 + k]}
    mixed = graph.add_subgraph(mixing, [650, 0], [270, 470], photo=scene[0], prompt=scene[7], **ends)
    graph.group("PnP-MIX", YOURS, mixed)
    add_results(graph, mixed, 970, wide=360)
    return workflow(graph, [mixing])


def add_results(graph: Graph, mixed, x: int, wide: int = 240):
    save = graph.add("SaveImage", "Finished picture", [x, 0], [wide, 360], images=mixed[0], filename_prefix="PnP-MIX")
    shown = graph.add("PreviewImage", "Look inside", [x, 410], [wide, 300], images=mixed[1])
    graph.group("Finished picture", RESULT, save, shown)
    return save


def blueprint(info: dict, count: int) -> dict:
    """A file of subgraphs/: one node, and what the editor's search knows of it."""
    graph, step = Graph(info), whole(info, count)
    graph.add_subgraph(step, [0, 0], [320, 500])
    extra = {
        "BlueprintDescription": f"{THINGS[count].capitalize()} of yours into a photo; the rest is unchanged.",
    }
    return workflow(graph, [step], extra)


# --- Notes


def prompt_for(count: int) -> str:
    things = [f"a {word}" for word in WORDS[:count]]
    listed = things[0] if count == 1 else ", ".join(things[:-1]) + " and " + things[-1]
    return f"a photo of {listed} on a " + ("table" if count == 3 else "street")


def file_list(side: int, finder: str, kind: Kind = PLAIN) -> str:
    lines = [kind.listed] if kind.listed else []
    for _, (_, _, file) in loaders(side, finder)[bool(kind.load) :]:
        extra = f"; any {'SDXL' if side == SDXL else 'SD 1.x or 2.x'} checkpoint works" * (file == CHECKPOINTS[side])
        extra += "; ViT-L and ViT-H give finer outlines" * (file == SAM)
        lines.append(f"- **{file['name']}** in models/{file['directory']}: [download]({file['url']}){extra}")
        if file == DINO:
            lines.append(BERT)
    return "\n".join(lines)


LOOKS = """- The look is too weak: raise *swap_guidance* of **Mask Noise Mixer** or *alpha* of **Guided Appearance \
Attention**.
- Shapes are lost: raise *skip_steps* of **DDPM Invert**, or set *layers* of **Guided Appearance Attention** to \
decoder.
- Concepts mix: raise *beta* or lower *expand* of **Background Dilution++**.
- The clean plate is smeared: connect **Load Inpaint Model** with \
[big-lama.pt](https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt) in models/inpaint to \
**Inpaint Background**."""
HINTS = f"""{LOOKS}
- Settings of the paper: *steps* 100, *skip_steps* 32 and *cfg* 3.5 in **DDPM Invert**, *adain* off in **Guided \
Appearance Attention**, and *object_mask* of each **Concept** not connected. This takes longer."""
OPEN = "with the icon in its top-right corner (Nodes 2.0: Enter subgraph)"
INSIDE = f"**To change more**, open a subgraph {OPEN}. In **Blend**:"
SIZES = """The model works on a crop of the photo around all objects, at {side} × {side} pixels. The result has the \
size of the photo; pixels outside the expanded masks are unchanged."""


def photo_note(count: int, side: int, finder: str, sampled: bool, kind: Kind = PLAIN) -> str:
    things = prompt_for(count).removeprefix("a photo of ").rsplit(" on a ", 1)[0]
    scene = "The scene" if sampled else "Your photo"
    drawn = f"{'The dog is' if count == 1 else 'They are'} redrawn to look like yours"
    where = "a scene that you choose" if sampled else "your photo"
    title = f"# {THINGS[count].capitalize()} of yours in {where}{kind.name}"
    first = (
        "1. **Candidates for the scene**: a prompt for the scene. Select **Finished picture** and **Look inside**, "
        "mute them (Ctrl+M) and run to get four candidates. Click one in **Choose the scene**, unmute, and run again."
        if sampled
        else f"1. **Your photo**: any size, with {things} in it."
    )
    last = "" if sampled else "\n4. **Blend**: a prompt for the result."
    found = "*threshold* of **SAM3_Detect**" if finder == "sam3" else "*box_threshold*"
    return f"""{title}

{scene} contains {things}. {drawn}; nothing else changes.

**Fill in the nodes in the green groups**
{first}
2. **Your picture**: one picture per object, any size.
3. **Your thing**: the name of the object in the scene to replace, such as dog.{last}

Then **Run**. **Look inside** shows the crop, the crop with the objects removed (clean plate), your pictures after \
cropping, and each object's reference latent.

**Files to download once**
{file_list(side, finder, kind)}

{SIZES.format(side=side)}

- Not found, or the wrong object: be more specific, such as dog on the left, or lower {found} in **Blend**.
- Two objects of a kind: use the same name in both **Your thing** nodes. The two best detections are used, from left \
to right.

{INSIDE}
{kind.hints}{HINTS if kind == PLAIN else LOOKS}
"""


def painted_note() -> str:
    return f"""# One thing of yours in your photo, masks by hand

You paint the masks yourself, so this needs only a checkpoint.

**Fill in the nodes in the green groups**
1. **Your photo**: load it, right-click, **Open in MaskEditor**, and paint over the object to replace.
2. **Your picture**: load it, and paint over your object in the same way.
3. **Blend**: a prompt for the result.

Then **Run**. For a second object, load the result as your photo.

**File to download once**
- **{CHECKPOINTS[SD]["name"]}** in models/checkpoints: [download]({CHECKPOINTS[SD]["url"]}); any SD 1.x or 2.x \
checkpoint works

{SIZES.format(side=SD)}

{INSIDE}
{HINTS}
"""


def demo_note() -> str:
    return """# Try it without downloads

Press **Run**. Everything is included in the pack, and it takes less than a minute, also on a CPU.

**Demo Scene** draws a scene with two objects, and a concept image for each. **Blend** redraws the objects of the \
scene to look like the concepts; nothing else changes. **Look inside** shows the scene, the clean plate, the two \
concept images, and the reference latents.

- Change *seed* in **Demo Scene** for another scene. Not every seed gives a result as good as this one.
- Open **Blend** with the icon in its top-right corner (Nodes 2.0: Enter subgraph). While it runs, **Mask Noise \
Mixer** shows the target masks. Bypass (Ctrl+B) **Guided Appearance Attention** or **Background Dilution++** to see \
its effect.
- Settings of the paper: *steps* 100, *skip_steps* 32 and *cfg* 3.5 in **DDPM Invert**, *adain* off in **Guided \
Appearance Attention**, and *object_mask* of each **Concept** not connected.

**Load Demo Model** is a tiny diffusion model for drawings of 64 × 64 pixels; the images here are enlarged. It knows \
the shapes ball, box, cup, fish, heart, star; the patterns striped, checkered, dotted in red, orange, yellow, \
green, blue, purple, white, black; the places meadow, desert, sea, dusk, snow, room.

For your own photos use the templates **2** to **9**.
"""


def write_all(info: dict) -> None:
    templates = {
        "1 Try it without downloads": demo_template(info),
        "2 One thing, masks painted by hand": painted_template(info),
        "3 One thing": photo_template(info, 1),
        "4 Two things": photo_template(info, 2),
        "5 Three things": photo_template(info, 3),
        "6 Two things with SDXL": photo_template(info, 2, SDXL),
        "7 Two things with SAM 3": photo_template(info, 2, finder="sam3"),
        "8 Two things in a scene you choose": photo_template(info, 2, SDXL, sampled=True),
        "9 Two things as an app.app": photo_template(info, 2, app=True),
        "Flow 1 Without downloads": flow_demo(demo_template(info), flow_note()),
    }
    templates |= {name: template(info) for name, template in write_score_workflows.TEMPLATES.items()}
    templates |= conductor_templates(info)
    templates |= learn_templates(info) | together_templates(info)
    for kinds in (FLOW_KINDS, FEW_STEPS_KINDS):
        templates |= {name: photo_template(info, 2, kind.side, kind=kind) for name, kind in kinds.items()}
    for name, data in templates.items():
        write(FOLDER / f"{name}.json", data)
    for count in (1, 2, 3):
        write(LIBRARY / f"{THINGS[count].capitalize()} of yours into a photo with PnP-MIX.json", blueprint(info, count))


def write(path: Path, data: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
