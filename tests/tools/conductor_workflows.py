"""The templates of Concept Conductor, for write_workflows.py."""

from graph_files import Graph, Node, Output, Subgraph, workflow
from stand_ins import CONDUCTING, SETTINGS
from template_models import (
    BERT,
    CHECKPOINTS,
    FILES,
    RESULT,
    SD,
    SD15,
    SDXL,
    YOURS,
    add_finding,
    add_loaders,
    listed,
    loaders,
)

SEED = 101  # of a scene with a cup and a star, for which there are LoRAs
THINGS, PLACE = ("cup", "star"), "meadow"


def conductor_templates(info: dict) -> dict[str, dict]:
    return {
        "Conductor 1 Without downloads": demo_template(info),
        "Conductor 2 Two LoRA concepts from a layout picture": layout_template(info),
        "Conductor 3 Two LoRA concepts with masks drawn by hand": painted_template(info),
        "Conductor 4 A concept added to a photo": added_template(info, SD),
        "Conductor 5 A concept added to a photo with SDXL": added_template(info, SDXL),
        "Conductor 6 Train a LoRA and add it to a photo": trained_template(info),
    }


def demo_template(info: dict) -> dict:
    graph = Graph(info)
    wording, larger = words_and_layout(info), enlarge(info)
    concepts = [demo_concept(info, 2 + k, thing) for k, thing in enumerate(THINGS)]
    graph.note(NOTE, [-340, -32], [310, 700])
    loaded = graph.add("PnPMixDemoModel", "", [0, 0], [250, 110])
    scene = graph.add("PnPMixDemoScene", "The layout", [0, 170], [250, 330], seed=SEED, concepts=2)
    graph.group("Included in the pack", FILES, loaded, scene)
    model, clip, vae = (loaded[k] for k in range(3))
    worded = graph.add_subgraph(wording, [300, 0], [240, 130], clip=clip, vae=vae, layout=scene[0])
    steps = [(step, {"clip": clip, "where it goes": scene[4 + k]}) for k, step in enumerate(concepts)]
    nodes = add_chain(graph, steps, [300, 190], 210, [240, 150])
    chain = {"concepts": nodes[-1][0]}
    graph.group("Prompt and concepts", YOURS, worded, *nodes)
    positive, negative, layout = (worded[k] for k in range(3))
    reference = graph.add(
        "PnPMixLayoutReference", "", [590, 0], [260, 180], model=model, positive=positive, latent=layout,
        **SETTINGS["PnPMixLayoutReference"],
    )  # fmt: skip
    aligned = graph.add(
        "PnPMixLayoutAlignment", "", [590, 240], [260, 160], model=model, layout=reference[0],
        **SETTINGS["PnPMixLayoutAlignment"],
    )  # fmt: skip
    refined = graph.add(
        "PnPMixMaskRefinement", "", [590, 460], [260, 200], model=aligned[0], **SETTINGS["PnPMixMaskRefinement"],
    )  # fmt: skip
    graph.group("Layout", YOURS, reference, aligned, refined)
    conductor = graph.add(
        "PnPMixConductor", "", [900, 0], [290, 480], model=refined[0], positive=positive, negative=negative,
        latent=layout, **SETTINGS["PnPMixConductor"], **chain,
    )  # fmt: skip
    graph.group("Concept Conductor", YOURS, conductor)
    enlarged = graph.add_subgraph(larger, [1240, 0], [260, 60], latent=conductor[0], vae=vae)
    save = graph.add("SaveImage", "Finished picture", [1240, 120], [260, 320], images=enlarged[0])
    graph.group("Finished picture", RESULT, enlarged, save)
    return workflow(graph, [wording, *concepts, larger])


def add_chain(
    graph: Graph, steps: list[tuple[Subgraph, dict[str, Output]]], at: list[int], down: int, size: list[int]
) -> list[Node]:
    """Concepts below each other, from `at` on, each wired to the one before it; with what else comes into them."""
    nodes: list[Node] = []
    for k, (step, ends) in enumerate(steps):
        chain = {"concepts": nodes[-1][0]} if nodes else {}
        nodes.append(graph.add_subgraph(step, [at[0], at[1] + down * k], size, **ends, **chain))
    return nodes


def words_and_layout(info: dict) -> Subgraph:
    graph = Subgraph(info, "Prompt and layout", 1)
    clip, vae, layout = graph.input("clip", "CLIP"), graph.input("vae", "VAE"), graph.input("layout", "IMAGE")
    words = graph.input("prompt", "STRING", ", ".join((*THINGS, PLACE)))
    graph.output("positive", graph.add("CLIPTextEncode", "The whole picture", text=words, clip=clip)[0])
    graph.output("negative", graph.add("CLIPTextEncode", "Not in it", text="", clip=clip)[0])
    graph.output("layout", graph.add("VAEEncode", "Layout", pixels=layout, vae=vae)[0])
    return graph


def demo_concept(info: dict, number: int, thing: str) -> Subgraph:
    graph = Subgraph(info, f"Your {thing}", number)
    clip, mask = graph.input("clip", "CLIP"), graph.input("where it goes", "MASK")
    chain = {} if thing == THINGS[0] else {"concepts": graph.input("concepts", "PNPMIX_CONDUCTED")}
    words = graph.input("picture in its words", "STRING", ", ".join((thing, thing, PLACE)))
    file = f"demo model: {thing}.safetensors"
    lora = graph.add("PnPMixConceptLora", clip=clip, lora_name=file, strength=CONDUCTING.strength, text=words)
    own = dict(positive=lora[0], negative=lora[1], mask=mask, name=thing)
    graph.output("concepts", graph.add("PnPMixConductedConcept", **own, **chain)[0])
    return graph


def enlarge(info: dict) -> Subgraph:
    graph = Subgraph(info, "Enlarge", 4)
    latent, vae = graph.input("latent", "LATENT"), graph.input("vae", "VAE")
    decoded = graph.add("VAEDecode", samples=latent, vae=vae)[0]
    larger = graph.add("ImageScaleBy", "Enlarge", image=decoded, upscale_method="nearest-exact", scale_by=8.0)
    graph.output("picture", larger[0])
    return graph


# --- With your own LoRAs

YOUR = ["dog", "cat"]
PICTURE = "example.png"  # which every ComfyUI has, until people choose their own
PROMPT, ONE = "a photo of a dog and a cat on a beach", "a photo of a dog on a street"
PHOTOS, TRAINED = 3, 500  # what a LoRA is trained on, and the steps
# Of Layout Alignment and Mask Refinement, as the authors' code has them for SDXL; the nodes' defaults are for SD
FOR_SDXL = {"alignment": {"end": 0.25}, "refinement": {"start": 0.3, "updates": 5, "threshold": 0.7, "restarts": 25}}


def model_files(info: dict) -> Subgraph:
    graph = Subgraph(info, "Model files", 1)
    checkpoint = ("checkpoint", ("CheckpointLoaderSimple", "ckpt_name", SD15))
    wanted = [checkpoint, *loaders(SD, "words")[1:]]
    files = [(*loader, graph.input(label, "COMBO", loader[2]["name"])) for label, loader in wanted]
    names = ["model", "clip", "vae", "detector", "segmenter"]
    for name, output in zip(names, add_loaders(graph, files), strict=True):
        graph.output(name, output)
    return graph


def concept(
    info: dict, number: int, noun: str, found: bool, first: bool, alone: bool = False, file: str = "your_{}"
) -> Subgraph:
    """Your concept: its weights and words, and where in the layout it goes.

    Args:
        number: of the subgraph in its file.
        found: by a word; else its mask comes in.
        first: of the chain.
        alone: no other concept is in the picture.
        file: of the LoRA, without its ending.
    """
    graph = Subgraph(info, f"Your {noun}", number)
    clip = graph.input("clip", "CLIP")
    chain = {} if first else {"concepts": graph.input("concepts", "PNPMIX_CONDUCTED")}
    if found:
        layout = graph.input("layout", "IMAGE")
        finder = [graph.input("detector", "PNPMIX_DETECTOR"), graph.input("segmenter", "PNPMIX_SEGMENTER")]
        word = graph.input("what it is in the layout", "STRING", noun)
        (mask,) = add_finding(graph, [("In the layout", layout)], word, finder)
    else:
        mask = graph.input("where it goes", "MASK")
    weights = graph.input("LoRA", "COMBO", f"{file.format(noun)}.safetensors")
    words = graph.input("picture in its words", "STRING", own_words(noun, alone))
    lora = graph.add("PnPMixConceptLora", clip=clip, lora_name=weights, text=words, negative_text="blurry, distorted")
    conducted = graph.add("PnPMixConductedConcept", positive=lora[0], negative=lora[1], mask=mask, name=noun, **chain)
    graph.output("concepts", conducted[0])
    graph.output("where it goes", mask)
    return graph


def own_words(noun: str, alone: bool) -> str:
    """Every similar thing is named by the concept's own words."""
    own = f"a sks {noun}"
    return ONE.replace(f"a {noun}", own) if alone else f"a photo of {own} and {own} on a beach"


def conduct(
    info: dict, number: int, side: int, prompt: str, into_photo: bool, fits: bool = False, more: bool = False
) -> Subgraph:
    """From the layout and the concepts to the finished picture.

    into_photo: the concept comes into a photo, which changes where a mask says alone.
    fits: the pictures are brought to the model's size here.
    more: also the latent, and the first concept's mask in it, for what comes after.
    """
    graph = Subgraph(info, "Conduct", number)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    layout, concepts = graph.input("layout", "IMAGE"), graph.input("concepts", "PNPMIX_CONDUCTED")
    photo, where = (graph.input("photo", "IMAGE"), graph.input("where it goes", "MASK")) if into_photo else (None, None)
    if fits:
        layout, photo = (
            graph.add("ImageScale", "At the model's size", image=x, **square(side))[0] for x in (layout, photo)
        )
    words, seed = graph.input("prompt", "STRING", prompt), graph.input("seed", "INT", 0)
    positive = graph.add("CLIPTextEncode", "The whole picture", text=words, clip=clip)[0]
    negative = graph.add("CLIPTextEncode", "Not in it", text="blurry, distorted", clip=clip)[0]
    reference = graph.add("VAEEncode", "Layout", pixels=layout, vae=vae)[0]
    if into_photo:
        begun = graph.add("VAEEncode", "Your photo", pixels=photo, vae=vae)[0]
        begun = graph.add("SetLatentNoiseMask", "Editable area", samples=begun, mask=where)[0]
    else:
        begun = graph.add("EmptyLatentImage", "Size and number", width=side, height=side)[0]
    own = FOR_SDXL if side == SDXL else {"alignment": {}, "refinement": {}}
    target = graph.add("PnPMixLayoutReference", model=model, positive=positive, latent=reference)[0]
    patched = graph.add("PnPMixLayoutAlignment", model=model, layout=target, **own["alignment"])[0]
    patched = graph.add("PnPMixMaskRefinement", model=patched, **own["refinement"])[0]
    conductor = graph.add(
        "PnPMixConductor", model=patched, positive=positive, negative=negative, concepts=concepts, latent=begun,
        seed=seed,
    )  # fmt: skip
    finished = graph.add("VAEDecode", samples=conductor[0], vae=vae)[0]
    if into_photo:
        finished = graph.add("PnPMixPasteBack", original=photo, image=finished, mask=where)[0]
    drawn = graph.add("MaskToImage", "Refined masks", mask=conductor[1])[0]
    graph.output("finished picture", finished)
    graph.output("look inside", graph.add("ImageBatch", "Look inside", image1=layout, image2=drawn)[0])
    if more:
        graph.output("latent", conductor[0])
        first = graph.add("ImageFromBatch", "First concept", image=drawn, batch_index=0, length=1)[0]
        graph.output("where 1 goes", graph.add("ImageToMask", "Its mask", image=first, channel="red")[0])
    return graph


def fitted(info: dict, number: int, names: list[str], side: int) -> Subgraph:
    """Pictures, cropped and scaled to the square that the model works on; masks beside them likewise."""
    graph = Subgraph(info, "At the model's size", number)
    for name in names:
        picture = graph.input(name, "IMAGE")
        graph.output(name, graph.add("ImageScale", name.capitalize(), image=picture, **square(side))[0])
    return graph


def square(side: int) -> dict:
    return dict(upscale_method="lanczos", width=side, height=side, crop="center")


def add_results(graph: Graph, mixed, x: int) -> None:
    save = graph.add("SaveImage", "Finished picture", [x, 0], [300, 360], images=mixed[0], filename_prefix="PnP-MIX")
    shown = graph.add("PreviewImage", "Look inside", [x, 410], [300, 290], images=mixed[1])
    graph.group("Finished picture", RESULT, save, shown)


def layout_template(info: dict) -> dict:
    """The layout's things are found by words."""
    graph, files, sizing = Graph(info), model_files(info), fitted(info, 2, ["layout"], SD)
    concepts = [concept(info, 3 + k, noun, found=True, first=k == 0) for k, noun in enumerate(YOUR)]
    mixing = conduct(info, 5, SD, PROMPT, into_photo=False)
    graph.note(layout_note(painted=False), [0, -32], [310, 860])
    loaded = graph.add_subgraph(files, [360, 0], [240, 216])
    graph.group("Model files", FILES, loaded)
    layout = graph.add("LoadImage", "Layout: a picture with a dog and a cat", [360, 310], [240, 314], image=PICTURE)
    scaled = graph.add_subgraph(sizing, [360, 690], [240, 60], layout=layout[0])
    graph.group("1 · Layout", YOURS, layout, scaled)
    ends = {"clip": loaded[1], "layout": scaled[0], "detector": loaded[3], "segmenter": loaded[4]}
    nodes = add_chain(graph, [(step, ends) for step in concepts], [660, 0], 330, [280, 260])
    graph.group("2 · Your concepts", YOURS, *nodes)
    given = {"layout": scaled[0], "concepts": nodes[-1][0]}
    return finish(graph, loaded, mixing, [files, sizing, *concepts, mixing], 990, **given)


def finish(graph: Graph, loaded, mixing: Subgraph, subgraphs: list[Subgraph], x: int, **ends: Output) -> dict:
    ends = {"model": loaded[0], "clip": loaded[1], "vae": loaded[2]} | ends
    mixed = graph.add_subgraph(mixing, [x, 0], [270, 300], **ends)
    graph.group("3 · Prompt", YOURS, mixed)
    add_results(graph, mixed, x + 320)
    return workflow(graph, subgraphs)


def add_checkpoint(graph: Graph, side: int):
    file = CHECKPOINTS[SDXL] if side == SDXL else SD15
    loaded = graph.add("CheckpointLoaderSimple", "", [360, 0], [250, 110], {"models": [file]}, ckpt_name=file["name"])
    graph.group("Model file", FILES, loaded)
    return loaded


def painted_template(info: dict) -> dict:
    """Masks from the mask editor; no file but a checkpoint and the LoRAs."""
    graph, sizing = Graph(info), fitted(info, 2, ["layout"], SD)
    concepts = [concept(info, 3 + k, noun, found=False, first=k == 0) for k, noun in enumerate(YOUR)]
    mixing = conduct(info, 5, SD, PROMPT, into_photo=False)
    graph.note(layout_note(painted=True), [0, -32], [310, 800])
    loaded = add_checkpoint(graph, SD)
    painted = [
        graph.add("LoadImage", f"Layout: paint the {noun}", [360, 200 + 300 * k], [250, 270], image=PICTURE)
        for k, noun in enumerate(YOUR)
    ]
    graph.group("1 · Layout, the same in both", YOURS, *painted)
    scaled = graph.add_subgraph(sizing, [660, 490], [280, 60], layout=painted[0][0])
    steps = [(step, {"clip": loaded[1], "where it goes": painted[k][1]}) for k, step in enumerate(concepts)]
    nodes = add_chain(graph, steps, [660, 0], 220, [280, 160])
    graph.group("2 · Your concepts", YOURS, *nodes)
    given = {"layout": scaled[0], "concepts": nodes[-1][0]}
    return finish(graph, loaded, mixing, [sizing, *concepts, mixing], 990, **given)


def added_template(info: dict, side: int) -> dict:
    """The layout is the photo with any dog pasted onto it; the photo itself changes inside the mask alone."""
    noun = YOUR[0]
    graph, sizing = Graph(info), fitted(info, 2, ["photo", "layout"], side)
    own, mixing = (
        concept(info, 3, noun, found=False, first=True, alone=True),
        conduct(info, 4, side, ONE, into_photo=True),
    )
    graph.note(added_note(side), [0, -32], [310, 800])
    loaded = add_checkpoint(graph, side)
    photo = graph.add("LoadImage", "Your photo", [360, 200], [250, 270], image=PICTURE)
    layout = graph.add("LoadImage", f"Photo with a pasted {noun}: paint it", [360, 500], [250, 270], image=PICTURE)
    graph.group("1 · Your photo, and the layout", YOURS, photo, layout)
    scaled = graph.add_subgraph(sizing, [660, 300], [280, 80], photo=photo[0], layout=layout[0])
    node = graph.add_subgraph(own, [660, 0], [280, 160], clip=loaded[1], **{"where it goes": layout[1]})
    graph.group("2 · Your concept", YOURS, node)
    ends = {"layout": scaled[1], "concepts": node[0], "photo": scaled[0], "where it goes": layout[1]}
    return finish(graph, loaded, mixing, [sizing, own, mixing], 990, **ends)


def training(info: dict, number: int, noun: str) -> Subgraph:
    """Photos of your thing → a LoRA in output/loras, where ComfyUI looks for LoRAs too."""
    graph = Subgraph(info, "Train", number)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    photos = [graph.input(f"photo {k}", "IMAGE") for k in range(1, PHOTOS + 1)]
    words = graph.input("what the photos show", "STRING", f"a photo of a sks {noun}")
    batch = graph.add("ImageScale", "Photo 1", image=photos[0], **square(SD))[0]
    for photo in photos[1:]:
        batch = graph.add("ImageBatch", "All photos", image1=batch, image2=photo)[0]
    latents = graph.add("VAEEncode", "All photos", pixels=batch, vae=vae)[0]
    positive = graph.add("CLIPTextEncode", "What the photos show", text=words, clip=clip)[0]
    trained = graph.add("TrainLoraNode", model=model, latents=latents, positive=positive, steps=TRAINED, rank=16)
    graph.add("SaveLoRA", lora=trained[0], prefix=f"loras/your_{noun}", steps=trained[2])
    graph.output("losses", trained[1])
    return graph


def trained_template(info: dict) -> dict:
    """As `added_template`, with a LoRA that the same graph trains first."""
    noun, graph = YOUR[0], Graph(info)
    learning = training(info, 1, noun)
    own = concept(info, 2, noun, found=False, first=True, alone=True, file=f"your_{{}}_{TRAINED}_steps_00001_")
    mixing = conduct(info, 3, SD, ONE, into_photo=True, fits=True)
    graph.note(TRAINED_NOTE, [0, -32], [310, 960])
    loaded = add_checkpoint(graph, SD)
    ends = {"model": loaded[0], "clip": loaded[1], "vae": loaded[2]}
    taught = [
        graph.add("LoadImage", f"Photo {k + 1} of your {noun}", [360 + 220 * k, 200], [210, 330], image=PICTURE)
        for k in range(PHOTOS)
    ]
    wanted = {f"photo {k}": node[0] for k, node in enumerate(taught, 1)}
    graph.group("1 · Your photos", YOURS, *taught)
    photo = graph.add("LoadImage", "Your photo", [360, 620], [315, 330], image=PICTURE)
    layout = graph.add("LoadImage", f"Photo with a pasted {noun}: paint it", [695, 620], [315, 330], image=PICTURE)
    graph.group("2 · Your photo, and the layout", YOURS, photo, layout)
    trained = graph.add_subgraph(learning, [1060, 0], [290, 220], **ends, **wanted)
    graph.group("Train", YOURS, trained)
    where = {"where it goes": layout[1]}
    node = graph.add_subgraph(own, [1060, 310], [290, 190], clip=loaded[1], **where)
    graph.group("3 · Your concept", YOURS, node)
    given = {"layout": layout[0], "photo": photo[0], "concepts": node[0], **where}
    mixed = graph.add_subgraph(mixing, [1060, 590], [290, 310], **ends, **given)
    graph.group("4 · Prompt", YOURS, mixed)
    add_results(graph, mixed, 1400)
    return workflow(graph, [learning, own, mixing])


# --- Notes

ANY = "; any {} checkpoint works"
TRIGGER = """In *prompt with trigger words* use the LoRA's trigger words for **every** animal, e.g. a \
photo of a sks dog and a sks dog on a beach."""
COMMON = f"""- The files *your_…* cannot be downloaded: choose your own LoRAs of the checkpoint's family. ED-LoRAs of \
the authors' code work too.
- {TRIGGER}
- **Conduct** uses the settings of the paper: *steps* 200, and 999 steps in **Layout Reference**, whose result is \
reused until the layout changes. For a quick preview set *steps* to 50 and 250.
- Bypass (Ctrl+B) **Layout Alignment** or **Mask Refinement** inside **Conduct** to see its effect.
- Not enough like the LoRA: raise *strength* of **Concept LoRA** inside the concept's subgraph.
"""


def layout_note(painted: bool) -> str:
    file = listed(SD15) + ANY.format("SD 1.x")
    if painted:
        first = """1. **Layout**: load the same square picture of any dog and any cat in both nodes. Right-click, \
**Open in MaskEditor**, and paint the dog in one and the cat in the other."""
    else:
        first = "1. **Layout**: any picture of a dog and a cat. It is cropped to its center square."
        finders = [file for _, (_, _, file) in loaders(SD, "words")[1:]]
        file = "\n".join([file, listed(finders[0]), BERT, listed(finders[1])])
    return f"""# Two LoRA concepts in one new picture{", masks by hand" if painted else ""}

The layout image sets the positions of the objects, and your LoRAs set their look. Everything else is generated.

**Fill in the nodes in the green groups**
{first}
2. **Your concepts**: a *LoRA* for each, and a prompt with its trigger words.
3. **Conduct**: a plain prompt, and a seed.

Then **Run**. **Look inside** shows the layout and the refined masks.

**Files to download once**
{file}

{COMMON}"""


def added_note(side: int) -> str:
    file, kind = (CHECKPOINTS[SDXL], "SDXL") if side == SDXL else (SD15, "SD 1.x")
    return f"""# A concept added to your photo

Adds an object with the look of your LoRA to a photo. Pixels outside the expanded mask are unchanged.

**Fill in the nodes in the green groups**
1. **Your photo** is cropped to its center square. **Photo with a pasted dog**: the same photo with any dog roughly \
pasted into it. Right-click, **Open in MaskEditor**, and paint the dog. To replace a dog, load your photo in both nodes.
2. **Your concept**: a *LoRA*, and a prompt with its trigger words.
3. **Conduct**: a plain prompt, and a seed.

Then **Run**. **Look inside** shows the layout and the refined mask.

**File to download once**
{listed(file)}{ANY.format(kind)}

{COMMON}"""


TRAINED_NOTE = f"""# A LoRA trained from your photos, added to a photo

ComfyUI's **Train LoRA** trains the LoRA in this graph. It needs a newer ComfyUI than 0.3.64, and a GPU.

**Fill in the nodes in the green groups**
1. **Photos** of your dog, and a caption with a rare trigger word, "sks". Select **Your dog**, **Conduct**, **Finished \
picture** and **Look inside**, mute them (Ctrl+M) and run. The LoRA is saved to *output/loras*, where ComfyUI finds it.
2. **Your photo**, and the same photo with any dog roughly pasted into it. Right-click, **Open in MaskEditor**, and \
paint the dog.
3. **Your dog**: press R, unmute all nodes, and choose the *LoRA*.
4. **Conduct**: a plain prompt, and a seed. Run again; the LoRA is not trained again.

**File to download once**
{listed(SD15)}{ANY.format("SD 1.x")}

- Not enough like the photos: raise *steps* or *learning_rate* in **Train**, or use more photos. These settings are a \
starting point: this template has not been run with a real checkpoint yet.
- {TRIGGER}
- For two LoRAs use **Conductor 2**.
"""

NOTE = """# Several LoRA concepts in one new picture

Press **Run**. Everything is included in the pack, and it takes one to two minutes on a CPU.

**Demo Scene** draws the layout: a plain cup and a plain star. Each **Concept LoRA** gives its object a look that no \
word of the demo model describes: a cup that is brown above and lime below, and a magenta star that is teal inside. \
**Conductor** generates a new image in that layout with the LoRAs' looks. So small a model succeeds only in part: the \
looks are patchy, and sometimes one object too many appears.

- Change *seed* in **Conductor** for another image with the same layout. Not every seed gives a good result.
- Bypass (Ctrl+B) **Layout Alignment** or **Mask Refinement** to see its effect.
- The prompts in **Your cup** and **Your star** use the concept's word for every object: "cup, cup, meadow".
- With a real checkpoint use the defaults, which are the settings of the paper: *steps* 200, *cfg* 7.5, *weight* 0 \
(auto). The demo has few steps, so it needs a larger *weight*, 150.
"""
