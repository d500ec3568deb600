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
    background = begun if into == "photo" else graph.add("VAEDecode", "Scene", samples=begun, vae=vae)[0]
    scene = begun if into == "latent" else graph.add("VAEEncode", "Scene", pixels=begun, vae=vae)[0]
    every = things[0][0]
    for other in things[1:]:
        every = graph.add("MaskComposite", "All target masks", destination=every, source=other[0], operation="add")[0]
    clean_plate = graph.add(
        "PnPMixInpaintBackground", image=background, mask=every, **pixels["PnPMixInpaintBackground"]
    )[0]
    around = graph.add("VAEEncode", "Clean plate", pixels=clean_plate, vae=vae)[0]
    positive, negative = add_words(graph, clip, words, "" if small else "blurry, distorted")
    settings = dict(seed=seed, steps=50, skip_steps=16, cfg=1.0)
    inverted = graph.add(
        "PnPMixDDPMInvert", model=model, positive=positive, negative=negative, latent=scene, **settings
    )[0]
    if learned:
        named = graph.add("PnPMixBlendConcept", "Identity of object 1", **known)[0]
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
    graph = Subgraph(info, "Mask of the cup", number)
    masks = graph.input("masks", "MASK")
    drawn = graph.add("MaskToImage", "Masks", mask=masks)[0]
    first = graph.add("ImageFromBatch", "First concept", image=drawn, batch_index=0, length=1)[0]
    graph.output("mask", graph.add("ImageToMask", "Its mask", image=first, channel="red")[0])
    return graph


# --- The templates


def add_demo(graph: Graph, seed: int) -> tuple[dict[str, Output], Node]:
    loaded = graph.add("PnPMixDemoModel", "", [350, 0], [230, 110])
    scene = graph.add("PnPMixDemoScene", "", [350, 170], [230, 330], seed=seed, concepts=2)
    graph.group("Included in the pack", FILES, loaded, scene)
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
    graph.group("Train the cup", YOURS, learning)
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
    scaled = graph.add("ImageScale", "At the model's size", image=picture, **square(SD))[0]
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
    graph.group("3 · Prompt", YOURS, drawn)
    thing = {"where 1 goes": drawn[3], "your picture 1": looked[0], "your object 1": looked[1]}
    mixed = graph.add_subgraph(mixing, [990, 390], [270, 290], **ends, **thing, background=drawn[2])
    graph.group("4 · Your photo", YOURS, mixed)
    add_result(graph, 1310, mixed[0], drawn[0], "What the LoRAs drew")
    return workflow(graph, [files, sizing, *concepts, conducting, looking, mixing])


LEARNED_NOTE = """# A trained concept and a photo

Press **Run**. Everything is included in the pack, and it takes one to three minutes on a CPU.

**Train Concept** trains the identity of the cup from five photos (LaTexBlend). **Blend** applies it to the cup in the \
scene, together with the look of your picture (PnP-MIX). The other object has only a picture; nothing else changes.

Two settings inside **Blend** (open it with the icon in its top-right corner; Nodes 2.0: Enter subgraph):
- *strength* of **Blend Concept**: strength of the trained concept. 0: only the picture.
- *alpha* of **Guided Appearance Attention**, *swap_guidance* of **Mask Noise Mixer**: strength of the picture. Bypass \
the former (Ctrl+B) to see the trained concept alone.

The trained concept is connected twice: through **Blend** to the mixer's prompt, and to the cup's **Concept**. It \
acts only in the cup's branch, so identities do not mix, and it costs no extra time. On the tiny demo model it adds \
little.

**Your own**
- Use an SD 1.x, SD 2.x or SDXL checkpoint, **Load Concept** instead of **Train Concept**, your photos, and masks from \
**Grounded Mask**. The prompt must contain the concept's noun.
- Keep the plain prompt in **DDPM Invert**: the scene itself must not become the concept.
"""
REFINED_NOTE = """# A photo into what LoRAs drew

Press **Run**. Everything is included in the pack, and it takes two to four minutes on a CPU.

**1** Concept Conductor generates a new image in the layout of a scene: a cup and a star, each with its own LoRA.

**2** PnP-MIX uses the latent of that image as its scene, without passing it through the VAE. The target mask of the \
cup comes from Concept Conductor, and its look from your picture. The star is unchanged.

Use this if a LoRA gets the kind of object right but its details wrong; one photo is enough.

- The mask misses the cup: paint one over **What the LoRAs drew**, or find it by text with **Grounded Mask**.
- For both objects add a second **Concept** in **A photo into it**, with the second mask of the batch.
- With a real checkpoint add **Mask Refinement** after **Layout Alignment** inside **Conduct** to get refined masks. \
The demo model's attention does not separate objects well enough, so the masks of the layout are used here.
"""
LAYOUT_NOTE = """# LoRAs in the layout of a blend

Press **Run**. Everything is included in the pack, and it takes two to four minutes on a CPU.

**1** PnP-MIX redraws the objects of a scene to look like your pictures.

**2** Concept Conductor generates a new image in the layout of that result, with an object of a LoRA in each mask. \
Move or swap the masks to change the positions.

The latent of the blend is used directly, without passing it through the VAE.

- To follow the layout less, lower *weight* or *end* of **Layout Alignment** in **Conduct**.
- The demo model is tiny, and Concept Conductor reaches its limits with it.
"""
OWN_NOTE = f"""# Your photo into what your LoRAs drew

Concept Conductor generates a new image in the layout of another one, with a LoRA for each object. Then PnP-MIX \
redraws the first object to look like your photo. Use this if a LoRA gets the kind of object right but its details \
wrong; one photo is enough.

**Files to download once**
{listed(SD15, DINO, SAM)}
{BERT}

**Fill in the nodes in the green groups**
1. **Layout**: any picture of a dog and a cat. **Your picture of the dog**: your own dog.
2. **Your dog**, **Your cat**: a *LoRA*, the name of the object in the layout, and a prompt with the LoRA's trigger \
words, such as *a sks dog*.
3. A plain prompt in both steps.

Then **Run**. **What the LoRAs drew** shows the first step; its refined masks are the target masks of the second step.

- The mask misses the object: paint one over **What the LoRAs drew**, or find it by text with **Grounded Mask**.
- For both objects add a second **Concept** in **A photo into it**, with the second mask of the batch.
- For more of the photo raise *alpha* of **Guided Appearance Attention** or *swap_guidance* of **Mask Noise Mixer**.

This template has not been run with a real checkpoint yet; its settings are those of the templates of the two methods.
"""
