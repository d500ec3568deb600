"""The templates of several methods in one graph. Written by write_workflows.py."""

import conductor_workflows as conductor
from conductor_workflows import PICTURE, PROMPT, YOUR, fitted, model_files, square
from graph_files import Graph, Node, Output, Subgraph, workflow
from stand_ins import CONDUCTING, SETTINGS, SMALL
from template_models import BERT, DINO, FILES, RESULT, SAM, SD, SD15, YOURS, add_finding, listed

SCENE, NOUN = 2, "cup"  # the demo's cup with a look of its own
CONDUCTED, THINGS, PLACE = 101, ("cup", "star"), "meadow"  # a scene with things for which there are LoRAs
WORDS = ", ".join((*THINGS, PLACE))
ENDS = ("model", "clip", "vae")


def together_templates(info: dict) -> dict[str, dict]:
    return {
        "Together 1 A learned concept and a photo": learned_template(info),
        "Together 2 A photo into what LoRAs drew": refined_template(info),
        "Together 3 LoRAs in the layout of a blend": layout_template(info),
        "Together 4 Your photo into what your LoRAs drew": own_template(info),
    }


# --- The steps


def add_words(graph: Graph, clip: Output, words, unwanted: str = "") -> list[Output]:
    titles = (("The whole picture", words), ("Not in it", unwanted))
    return [graph.add("CLIPTextEncode", title, text=text, clip=clip)[0] for title, text in titles]


def enlarged(graph: Graph, picture: Output) -> Output:
    return graph.add("ImageScaleBy", "Enlarge", image=picture, upscale_method="nearest-exact", scale_by=8.0)[0]


def photos(
    info: dict, number: int, name: str, count: int, learned: bool = False, into: str = "photo", small: bool = True
) -> Subgraph:
    """PnP-MIX.

    Args:
        number: of the subgraph in its file.
        count: of photos; the first is of the first thing.
        learned: whether the first thing is a learned concept too.
        into: "photo", which comes back whole, or "latent".
        small: for the demo model's pictures of 64 pixels.
    """
    pixels = {kind: SMALL[kind] if small else {} for kind in SMALL}
    graph = Subgraph(info, name, number)
    model, clip, vae = (graph.input(end, end.upper()) for end in ENDS)
    begun = graph.input("background", "IMAGE" if into == "photo" else "LATENT")
    kinds = {"where {} goes": "MASK", "your picture {}": "IMAGE", "your object {}": "MASK"}
    things = [[graph.input(name.format(k), kind) for name, kind in kinds.items()] for k in range(1, count + 1)]
    known = {"learned": graph.input("learned 1", "PNPMIX_LEARNED")} if learned else {}
    words = graph.input("prompt", "STRING", WORDS if small else PROMPT)
    seed = graph.input("seed", "INT", 0)
    background = begun if into == "photo" else graph.add("VAEDecode", "Background", samples=begun, vae=vae)[0]
    scene = begun if into == "latent" else graph.add("VAEEncode", "Background", pixels=begun, vae=vae)[0]
    every = things[0][0]
    for other in things[1:]:
        every = graph.add("MaskComposite", "All things", destination=every, source=other[0], operation="add")[0]
    emptied = graph.add("PnPMixInpaintBackground", image=background, mask=every, **pixels["PnPMixInpaintBackground"])[0]
    around = graph.add("VAEEncode", "Emptied background", pixels=emptied, vae=vae)[0]
    positive, negative = add_words(graph, clip, words, "" if small else "blurry, distorted")
    settings = dict(seed=seed, steps=50, skip_steps=16, cfg=1.0)
    inverted = graph.add(
        "PnPMixDDPMInvert", model=model, positive=positive, negative=negative, latent=scene, **settings
    )[0]
    if learned:
        named = graph.add("PnPMixBlendConcept", "Who thing 1 is", **known)[0]
        blended = graph.add("PnPMixBlend", model=model, clip=clip, text=words, concepts=named, start_percent=0.0)
        model, positive = blended[0], blended[1]
    concepts: dict = {}
    for k, (where, picture, own) in enumerate(things, 1):
        latent = graph.add("VAEEncode", f"Your picture {k}", pixels=picture, vae=vae)[0]
        inputs = dict(latent=latent, mask=where, object_mask=own, seed=k, **concepts)
        concepts = {"concepts": graph.add("PnPMixConcept", f"Your thing {k}", **inputs, **(known if k == 1 else {}))[0]}
    model = graph.add("PnPMixAppearance", model=model, adain=True)[0]
    model = graph.add("PnPMixDilution", model=model, latent=around, **pixels["PnPMixDilution"])[0]
    mixed = graph.add(
        "PnPMixSampler", model=model, inversion=inverted, positive=positive, negative=negative, **concepts
    )
    decoded = graph.add("VAEDecode", "Finished", samples=mixed[0], vae=vae)[0]
    if into == "photo":
        decoded = graph.add(
            "PnPMixPasteBack", original=begun, image=decoded, mask=mixed[2], **pixels["PnPMixPasteBack"]
        )[0]
    graph.output("picture", enlarged(graph, decoded) if small else decoded)
    graph.output("latent", mixed[0])
    return graph


def conduct(info: dict, number: int, refined: bool = True) -> Subgraph:
    """Concept Conductor with the pack's LoRAs: its latent, its masks, and the picture."""
    graph = Subgraph(info, "Conduct", number)
    model, clip, vae = (graph.input(end, end.upper()) for end in ENDS)
    layout = graph.input("layout", "LATENT")
    masks = [graph.input(f"where {k} goes", "MASK") for k in (1, 2)]
    words, seed = graph.input("prompt", "STRING", WORDS), graph.input("seed", "INT", 1)
    positive, negative = add_words(graph, clip, words)
    concepts: dict = {}
    for thing, mask in zip(THINGS, masks, strict=True):
        own, file = ", ".join((thing, thing, PLACE)), f"demo model: {thing}.safetensors"
        settings = dict(lora_name=file, strength=CONDUCTING.strength, text=own)
        lora = graph.add("PnPMixConceptLora", f"LoRA of the {thing}", clip=clip, **settings)
        given = dict(positive=lora[0], negative=lora[1], mask=mask, name=thing)
        conducted = graph.add("PnPMixConductedConcept", f"The {thing}", **given, **concepts)
        concepts = {"concepts": conducted[0]}
    given = dict(model=model, positive=positive, latent=layout)
    target = graph.add("PnPMixLayoutReference", **given, **SETTINGS["PnPMixLayoutReference"])[0]
    model = graph.add("PnPMixLayoutAlignment", model=model, layout=target, **SETTINGS["PnPMixLayoutAlignment"])[0]
    if refined:
        model = graph.add("PnPMixMaskRefinement", model=model, **SETTINGS["PnPMixMaskRefinement"])[0]
    given |= dict(model=model, negative=negative, **SETTINGS["PnPMixConductor"], **concepts) | dict(seed=seed)
    conductor = graph.add("PnPMixConductor", **given)
    decoded = graph.add("VAEDecode", "What the LoRAs drew", samples=conductor[0], vae=vae)[0]
    for name, output in (("latent", conductor[0]), ("masks", conductor[1]), ("picture", enlarged(graph, decoded))):
        graph.output(name, output)
    return graph


def one_of(info: dict, number: int) -> Subgraph:
    """The first mask of a batch."""
    graph = Subgraph(info, "Where the cup came to be", number)
    masks = graph.input("masks", "MASK")
    drawn = graph.add("MaskToImage", "Masks", mask=masks)[0]
    first = graph.add("ImageFromBatch", "Of the first concept", image=drawn, batch_index=0, length=1)[0]
    graph.output("mask", graph.add("ImageToMask", "Its mask", image=first, channel="red")[0])
    return graph


# --- The templates


def add_demo(graph: Graph, seed: int) -> tuple[dict[str, Output], Node]:
    loaded = graph.add("PnPMixDemoModel", "", [350, 0], [230, 110])
    scene = graph.add("PnPMixDemoScene", "", [350, 170], [230, 330], seed=seed, concepts=2)
    graph.group("Comes with the pack", FILES, loaded, scene)
    return {name: loaded[k] for k, name in enumerate(ENDS)}, scene


def add_result(graph: Graph, x: int, picture: Output, other: Output, title: str) -> None:
    save = graph.add("SaveImage", "Finished picture", [x, 0], [300, 350], images=picture, filename_prefix="PnP-MIX")
    shown = graph.add("PreviewImage", title, [x, 400], [300, 270], images=other)
    graph.group("Finished picture", RESULT, save, shown)


def things_of(scene: Node, count: int) -> dict[str, Output]:
    ends = {}
    for k in range(1, count + 1):
        ends |= {f"where {k} goes": scene[3 + k], f"your picture {k}": scene[k], f"your object {k}": scene[7 + k]}
    return ends


def learned_template(info: dict) -> dict:
    graph, mixing = Graph(info), photos(info, 1, "Blend", 2, learned=True)
    graph.note(LEARNED_NOTE, [0, -32], [300, 742])
    ends, scene = add_demo(graph, SCENE)
    taught = graph.add("PnPMixDemoScene", "Five photos of it", [350, 560], [230, 180], seed=SCENE, concepts=2, photos=5)
    learning = graph.add(
        "PnPMixTrainConcept", "", [630, 0], [290, 590], **ends, images=taught[1], noun=NOUN, steps=150,
        learning_rate=4e-3, resolution=64, augment=False, dtype="fp32", checkpointing=False,
    )  # fmt: skip
    graph.group("Learn who the cup is", YOURS, learning)
    given = ends | things_of(scene, 2) | {"background": scene[0], "learned 1": learning[0], "prompt": scene[7]}
    mixed = graph.add_subgraph(mixing, [970, 0], [260, 360], **given)
    graph.group("Blend", YOURS, mixed)
    add_result(graph, 1280, mixed[0], learning[1], "Loss of each step")
    return workflow(graph, [mixing])


def refined_template(info: dict) -> dict:
    graph, conducting, where = Graph(info), conduct(info, 1, refined=False), one_of(info, 2)
    mixing = photos(info, 3, "A photo into it", 1, into="latent")
    graph.note(REFINED_NOTE, [0, -32], [300, 742])
    ends, scene = add_demo(graph, CONDUCTED)
    layout = graph.add("VAEEncode", "Layout", [350, 560], [230, 60], pixels=scene[0], vae=ends["vae"])
    places = {f"where {k} goes": scene[3 + k] for k in (1, 2)}
    drawn = graph.add_subgraph(conducting, [630, 0], [240, 230], layout=layout[0], **ends, **places)
    found = graph.add_subgraph(where, [630, 300], [240, 60], masks=drawn[1])
    graph.group("1 · LoRAs draw a picture", YOURS, drawn, found)
    given = ends | things_of(scene, 1) | {"background": drawn[0], "where 1 goes": found[0]}
    mixed = graph.add_subgraph(mixing, [920, 0], [250, 270], **given)
    graph.group("2 · Your photo", YOURS, mixed)
    add_result(graph, 1220, mixed[0], drawn[2], "What the LoRAs drew")
    return workflow(graph, [conducting, where, mixing])


def layout_template(info: dict) -> dict:
    graph, mixing, conducting = Graph(info), photos(info, 1, "Blend", 2), conduct(info, 2)
    graph.note(LAYOUT_NOTE, [0, -32], [300, 742])
    ends, scene = add_demo(graph, CONDUCTED)
    mixed = graph.add_subgraph(
        mixing, [630, 0], [250, 330], **ends, **things_of(scene, 2), background=scene[0], prompt=scene[7]
    )
    graph.group("1 · Photos into a scene", YOURS, mixed)
    places = {f"where {k} goes": scene[3 + k] for k in (1, 2)}
    drawn = graph.add_subgraph(conducting, [930, 0], [240, 230], layout=mixed[1], **ends, **places)
    graph.group("2 · LoRAs in its layout", YOURS, drawn)
    add_result(graph, 1220, drawn[2], mixed[0], "The blend")
    return workflow(graph, [mixing, conducting])


def own_picture(info: dict, number: int, noun: str) -> Subgraph:
    """A picture in the model's size, and the mask of what it shows."""
    graph = Subgraph(info, f"Your picture of the {noun}", number)
    picture = graph.input("picture", "IMAGE")
    finder = [graph.input("detector", "PNPMIX_DETECTOR"), graph.input("segmenter", "PNPMIX_SEGMENTER")]
    word = graph.input("what it is", "STRING", noun)
    scaled = graph.add("ImageScale", "In the model's size", image=picture, **square(SD))[0]
    (mask,) = add_finding(graph, [("In your picture", scaled)], word, finder)
    graph.output("your picture", scaled)
    graph.output("your object", mask)
    return graph


def own_template(info: dict) -> dict:
    """`refined_template` with a checkpoint, the person's LoRAs and a photo of one of the things."""
    graph, files, sizing, noun = Graph(info), model_files(info), fitted(info, 2, ["layout"], SD), YOUR[0]
    concepts = [conductor.concept(info, 3 + k, word, found=True, first=k == 0) for k, word in enumerate(YOUR)]
    conducting = conductor.conduct(info, 5, SD, PROMPT, into_photo=False, more=True)
    looking = own_picture(info, 6, noun)
    mixing = photos(info, 7, "A photo into it", 1, into="latent", small=False)
    graph.note(OWN_NOTE, [0, -32], [310, 860])
    loaded = graph.add_subgraph(files, [360, 0], [240, 216])
    graph.group("Model files", FILES, loaded)
    layout = graph.add("LoadImage", "Layout: a picture with a dog and a cat", [360, 310], [240, 290], image=PICTURE)
    photo = graph.add("LoadImage", f"Your picture of the {noun}", [360, 650], [240, 290], image=PICTURE)
    graph.group("1 · Your pictures", YOURS, layout, photo)
    scaled = graph.add_subgraph(sizing, [660, 600], [280, 60], layout=layout[0])
    ends = {"clip": loaded[1], "layout": scaled[0], "detector": loaded[3], "segmenter": loaded[4]}
    nodes = conductor.add_chain(graph, [(step, ends) for step in concepts], [660, 0], 300, [280, 240])
    graph.group("2 · Your LoRAs", YOURS, *nodes)
    found = {name: ends[name] for name in ("detector", "segmenter")}
    looked = graph.add_subgraph(looking, [660, 720], [280, 150], picture=photo[0], **found)
    ends = {name: loaded[k] for k, name in enumerate(ENDS)}
    drawn = graph.add_subgraph(conducting, [990, 0], [270, 300], **ends, layout=scaled[0], concepts=nodes[-1][0])
    graph.group("3 · In words", YOURS, drawn)
    thing = {"where 1 goes": drawn[3], "your picture 1": looked[0], "your object 1": looked[1]}
    mixed = graph.add_subgraph(mixing, [990, 390], [270, 290], **ends, **thing, background=drawn[2])
    graph.group("4 · Your photo", YOURS, mixed)
    add_result(graph, 1310, mixed[0], drawn[0], "What the LoRAs drew")
    return workflow(graph, [files, sizing, *concepts, conducting, looking, mixing])


LEARNED_NOTE = """# A learned concept and a photo

Press **Run**: everything comes with the pack, and it takes one to three minutes on a CPU.

**Train Concept** learns from five photos *who* the cup is (LaTexBlend). **Blend** puts it into the scene's cup, and \
takes its *look* from your picture too (PnP-MIX). The other thing has a picture alone; nothing else changes.

Two dials, in **Blend** (open it by the sign in its corner):
- *strength* of **Blend Concept**: how far the word "cup" becomes what was learned. 0: the photo alone.
- *alpha* of **Guided Appearance Attention**, *swap_guidance* of **Mask Noise Mixer**: how far the photo is followed. \
Bypass the first (Ctrl+B): what was learned, alone.

What was learned is wired twice: through **Blend** into the mixer's prompt, and into the cup's **Concept**. So it \
acts in the rows of the cup alone: two identities cannot mix, and no row is added. On the tiny demo model it adds \
little to the photo.

**Your own**
- A checkpoint of SD 1.x, SD 2.x or SDXL, **Load Concept** instead of **Train Concept**, your photos, masks from \
**Grounded Mask**; the prompt must have the concept's noun.
- The prompt of **DDPM Invert** stays plain: the background is not to become the concept.
"""
REFINED_NOTE = """# A photo into what LoRAs drew

Press **Run**: everything comes with the pack, and it takes two to four minutes on a CPU.

**1** Concept Conductor draws a new picture in the layout of a scene: a cup and a star, each with a LoRA of its own.

**2** PnP-MIX takes that picture as its background, as it is, without a trip through the VAE. The masks that Concept \
Conductor gives say where the cup came to be, and your picture gives it its look. The star stays the LoRA's.

When a LoRA has the kind of a thing right and its details wrong, one photo of it does.

- The mask misses the cup: paint one over **What the LoRAs drew**, or find it by words with **Grounded Mask**.
- Both things: a second **Concept** in **A photo into it**, with the second mask of the batch.
- With a real checkpoint put **Mask Refinement** behind **Layout Alignment**, inside **Conduct**: then the same output \
gives the refined masks. In the demo model's attention things cannot be told apart well enough, and here the masks are \
those of the layout.
"""
LAYOUT_NOTE = """# LoRAs in the layout of a blend

Press **Run**: everything comes with the pack, and it takes two to four minutes on a CPU.

**1** PnP-MIX gives the things of a scene the look of your pictures.

**2** Concept Conductor draws a new picture in the layout of that result: the blend is its layout picture, and what \
its LoRAs know takes the places. Move or swap the masks, and another LoRA gets the place.

The blend's latent goes straight in, without a trip through the VAE.

- Less of the layout: lower *weight* or *end* of **Layout Alignment** in **Conduct**.
- The demo model is tiny, and Concept Conductor is at its limit with it.
"""
OWN_NOTE = f"""# Your photo into what your LoRAs drew

Concept Conductor draws a new picture in the layout of another one, each thing by a LoRA of its own; then PnP-MIX \
gives the first of them the look of your photo. When a LoRA has the kind of a thing right and its details wrong, one \
photo of it does.

**Files**, once:
{listed(SD15, DINO, SAM)}
{BERT}

**Then**
1. **Layout**: any picture with such things; **Your picture**: your own dog.
2. In each **Your …**: your LoRA, what the thing is called in the layout, and the picture in the words that the LoRA \
was taught, such as *a sks dog*.
3. The picture in plain words, in both steps.

**Run.** *What the LoRAs drew* shows the first step; the masks that it refined are the targets of the second.

- The mask misses the thing: paint one over **What the LoRAs drew**, or find it by words with **Grounded Mask**.
- Both things: a second **Concept** in **A photo into it**, with the second mask of the batch.
- More of the photo: *alpha* of **Guided Appearance Attention**, *swap_guidance* of **Mask Noise Mixer**.

Nobody has run this template with trained weights yet; its values are those of the two methods' own templates.
"""
