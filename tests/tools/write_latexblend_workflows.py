"""The templates of LaTexBlend, for write_workflows.py."""

from graph_files import Graph, Output, Subgraph, workflow
from template_models import CHECKPOINTS, FILES, PICTURE, RESULT, SD, YOURS, enlarged, listed

SCENE, NOUN, PLACE = 2, "cup", "meadow"  # the demo's cup with a look of its own
OTHER, OTHER_FILE = "fish", "demo model: fish.safetensors"  # which comes with the pack
NOUNS = ["dog", "cat"]
FILE = "{}_00001_.safetensors"  # as Save Concept writes the first of a name
PROMPT = "a photo of a dog and a cat on a beach"


def latexblend_templates(info: dict) -> dict[str, dict]:
    return {
        "Blend trained concepts, no downloads": demo_template(info),
        "Train a concept": train_template(info),
        "Blend trained concepts": blend_template(info),
    }


# --- What the steps are made of


def add_picture(graph: Graph, model, positive, negative, latent, vae, seed, title: str, **settings) -> Output:
    sampled = graph.add(
        "KSampler", title, model=model, positive=positive, negative=negative, latent_image=latent, seed=seed,
        sampler_name="euler", **settings,
    )[0]  # fmt: skip
    return graph.add("VAEDecode", title, samples=sampled, vae=vae)[0]


def add_blended(
    graph: Graph, model, clip, learned: list[Output], masks: list[Output], text, **settings
) -> tuple[Output, Output]:
    """MODEL and the prompt with concepts in their words' places."""
    concepts: dict = {}
    for k, concept in enumerate(learned):
        where = {"mask": masks[k]} if masks else {}
        concepts = {
            "concepts": graph.add("PnPMixBlendConcept", f"Concept {k + 1}", learned=concept, **where, **concepts)[0]
        }
    blended = graph.add(
        "PnPMixBlend", "Prompt with concepts", model=model, clip=clip, text=text, **concepts, **settings
    )
    return blended[0], blended[1]


def generate(info: dict, count: int, regions: bool, prompt: str, number: int = 2) -> Subgraph:
    """From trained concepts to the finished picture. regions: whether each has a mask."""
    graph = Subgraph(info, "Generate", number)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    learned = [graph.input(f"concept {k}", "PNPMIX_LEARNED") for k in range(1, count + 1)]
    masks = [graph.input(f"target mask {k}", "MASK") for k in range(1, count + 1)] if regions else []
    text, seed = graph.input("prompt", "STRING", prompt), graph.input("seed", "INT", 0)
    patched, positive = add_blended(graph, model, clip, learned, masks, text)
    negative = graph.add("CLIPTextEncode", "Not in it", text="blurry, distorted", clip=clip)[0]
    empty = graph.add("EmptyLatentImage", "Size and number", width=SD, height=SD)[0]
    settings = dict(steps=50, cfg=6.0, scheduler="normal")
    picture = add_picture(graph, patched, positive, negative, empty, vae, seed, "Picture", **settings)
    graph.output("finished picture", picture)
    return graph


def try_it(info: dict) -> Subgraph:
    """The demo model's picture with the concept, and with the plain word."""
    graph = Subgraph(info, "With and without the concept", 1)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    size, learned = graph.input("picture of the size", "IMAGE"), graph.input("learned", "PNPMIX_LEARNED")
    other = graph.input("another", "PNPMIX_LEARNED")
    text, seed = graph.input("prompt", "STRING", f"{NOUN}, {PLACE}"), graph.input("seed", "INT", 1)
    text_both = graph.input("prompt for both", "STRING", f"{NOUN}, {OTHER}, {PLACE}")
    # this model settles what things look like in the first steps
    patched, positive = add_blended(graph, model, clip, [learned], [], text, start_percent=0.0)
    patched_both, both = add_blended(graph, model, clip, [learned, other], [], text_both, start_percent=0.0)
    plain = graph.add("CLIPTextEncode", "Plain prompt", text=text, clip=clip)[0]
    negative = graph.add("CLIPTextEncode", "Not in it", text="", clip=clip)[0]
    encoded = graph.add("VAEEncode", "Size", pixels=size, vae=vae)[0]
    empty = graph.add("LatentMultiply", "Empty", samples=encoded, multiplier=0.0)[0]
    settings = dict(steps=20, cfg=3.0, scheduler="normal")
    pictures = {"with it": (patched, positive), "without it": (model, plain), "with both": (patched_both, both)}
    for name, (own, words) in pictures.items():
        picture = add_picture(graph, own, words, negative, empty, vae, seed, name.capitalize(), **settings)
        graph.output(name, enlarged(graph, picture))
    return graph


def photos(info: dict) -> Subgraph:
    """Four photos as one batch."""
    graph = Subgraph(info, "All photos", 1)
    batch, *others = (graph.input(f"photo {k}", "IMAGE") for k in range(1, 5))
    for photo in others:
        batch = graph.add("ImageBatch", "All photos", image1=batch, image2=photo)[0]
    graph.output("photos", batch)
    return graph


# --- Templates


def demo_template(info: dict) -> dict:
    graph, trying = Graph(info), try_it(info)
    graph.note(DEMO_NOTE, [0, -32], [280, 802])
    loaded = graph.add("PnPMixDemoModel", "", [310, 0], [260, 110])
    scene = graph.add("PnPMixDemoScene", "", [310, 170], [260, 560], seed=SCENE, concepts=1, photos=5)
    other = graph.add("PnPMixLoadConcept", "Another trained concept", [310, 790], [260, 90], file=OTHER_FILE)
    graph.group("Included in the pack", FILES, loaded, scene, other)
    model, clip, vae = (loaded[k] for k in range(3))
    learning = graph.add(
        "PnPMixTrainConcept", "", [610, 0], [290, 820], model=model, clip=clip, vae=vae, images=scene[1], noun=NOUN,
        steps=300, learning_rate=2e-3, resolution=64, augment=False, dtype="fp32", checkpointing=False,
    )  # fmt: skip
    graph.group("Train", YOURS, learning)
    ends = {"model": model, "clip": clip, "vae": vae, "learned": learning[0], "picture of the size": scene[0]}
    ends |= {"another": other[0]}
    tried = graph.add_subgraph(trying, [940, 0], [280, 300], **ends)
    graph.group("Blend", YOURS, tried)
    losses = graph.add("PreviewImage", "Loss of each step", [940, 420], [280, 290], images=learning[1])
    save = graph.add("SaveImage", "With the trained concept", [1260, 0], [300, 230], images=tried[0])
    both = graph.add("PreviewImage", "With both", [1260, 290], [300, 210], images=tried[2])
    plain = graph.add("PreviewImage", "Plain prompt", [1260, 560], [300, 210], images=tried[1])
    graph.group("Finished pictures", RESULT, save, plain, both)
    del losses
    return workflow(graph, [trying])


def add_checkpoint(graph: Graph, at: list[int]) -> list[Output]:
    file = CHECKPOINTS[SD]
    loaded = graph.add("CheckpointLoaderSimple", "", at, [330, 110], {"models": [file]}, ckpt_name=file["name"])
    graph.group("Model file", FILES, loaded)
    return [loaded[k] for k in range(3)]


def train_template(info: dict) -> dict:
    graph, batch, mixing = Graph(info), photos(info), generate(info, 1, False, "a photo of a dog on a beach")
    graph.note(TRAIN_NOTE, [0, -32], [280, 800])
    model, clip, vae = add_checkpoint(graph, [310, 0])
    own = [
        graph.add("LoadImage", f"Photo {k + 1}", [310 + 240 * (k % 2), 200 + 360 * (k // 2)], [230, 314], image=PICTURE)
        for k in range(4)
    ]
    graph.group("1 · Your photos", YOURS, *own)
    together = graph.add_subgraph(
        batch, [805, 740], [270, 110], **{f"photo {k}": photo[0] for k, photo in enumerate(own, 1)}
    )
    learning = graph.add(
        "PnPMixTrainConcept", "", [805, 0], [270, 660], model=model, clip=clip, vae=vae, images=together[0], noun="dog"
    )
    graph.group("2 · Train", YOURS, learning)
    saved = graph.add("PnPMixSaveConcept", "", [1100, 0], [230, 90], learned=learning[0], filename_prefix="dog")
    ends = {"model": model, "clip": clip, "vae": vae, "concept 1": saved[0]}
    mixed = graph.add_subgraph(mixing, [1100, 160], [230, 190], **ends)
    losses = graph.add("PreviewImage", "Loss of each step", [1100, 430], [230, 290], images=learning[1])
    graph.group("3 · Save and test", YOURS, saved, mixed, losses)
    save = graph.add("SaveImage", "With the trained concept", [1355, 0], [214, 300], images=mixed[0])
    graph.group("Finished picture", RESULT, save)
    return workflow(graph, [batch, mixing])


def blend_template(info: dict) -> dict:
    graph, mixing = Graph(info), generate(info, len(NOUNS), True, PROMPT, 1)
    graph.note(BLEND_NOTE, [0, -32], [280, 802])
    model, clip, vae = add_checkpoint(graph, [310, 0])
    ends, loaded, painted = {"model": model, "clip": clip, "vae": vae}, [], []
    for k, noun in enumerate(NOUNS, 1):
        at, file = [310, 210 + 150 * (k - 1)], FILE.format(noun)
        loaded.append(graph.add("PnPMixLoadConcept", f"Your {noun}", at, [330, 90], file=file))
        at, title = [680, 360 * (k - 1)], f"Paint the place of the {noun}"
        painted.append(graph.add("LoadImage", title, at, [230, 314], image=PICTURE))
        ends |= {f"concept {k}": loaded[-1][0], f"target mask {k}": painted[-1][1]}
    graph.group("1 · Your concepts", YOURS, *loaded)
    graph.group("2 · Target masks", YOURS, *painted)
    mixed = graph.add_subgraph(mixing, [950, 0], [260, 250], **ends)
    graph.group("3 · Prompt", YOURS, mixed)
    save = graph.add("SaveImage", "Finished picture", [1250, 0], [320, 400], images=mixed[0])
    graph.group("Finished picture", RESULT, save)
    return workflow(graph, [mixing])


# --- Notes

DEMO_NOTE = f"""# Train a concept, without downloads

Press **Run**. Everything is included in the pack, and it takes one to two minutes on a CPU.

**Demo Scene** draws five photos of a cup with a look of its own. **Train Concept** trains it for the word {NOUN}, \
without changing the model; the node shows the loss and samples. **With and without the concept** then generates \
*{NOUN}, {PLACE}* with the concept, with the plain prompt, and the cup together with a {OTHER}, a trained concept \
that is included in the pack (10 kB).

- Change *prompt* in **With and without the concept**: the word {NOUN} and one of meadow, desert, sea, dusk, snow, room.
- *steps* and *learning_rate* of **Train Concept**, and *start_percent* 0 inside **With and without the concept**, \
are for the tiny demo model. With a real checkpoint use the defaults: 3000, 0.00002 and 0.1.
- **Load Concept** also lists a ball and another cup.
- Add **Save Concept** after **Train Concept** to use the concept in other graphs.

For your own photos use **Train a concept**, and **Blend trained concepts** for two in one image.
"""

FILE_LINE = listed(CHECKPOINTS[SD], v1="; any SD 1.x, SD 2.x or SDXL checkpoint works")

TRAIN_NOTE = f"""# Train a concept from your photos

A trained concept is a file of less than 1 MB, which any prompt can use. The checkpoint is not changed.

**Fill in the nodes in the green groups**
1. **Your photos**: 3 to 5 of the same object in different places. They are cropped to the shape of the first one. \
Bypass (Ctrl+B) the nodes that you do not need.
2. **Train Concept**: *noun*, the word for the object, such as dog.
3. **Save Concept**: a file name. **Generate**: a prompt with the noun, to test the concept.

Then **Run**. During training the node shows the loss and samples.

**File to download once**
{FILE_LINE}

- SDXL: set *resolution* to 1024 if memory allows, and **Size and number** inside **Generate** to 1024.
- Out of memory: set *rank* to 16, or lower *resolution*.
- Not enough like the photos: raise *steps*. Overfitted (same pose and place): lower *steps*.
- *class_images*, pictures of other dogs, preserve the word's original meaning. Blending does not need them.

Continue with **Blend trained concepts**: two concepts in one image.
"""

BLEND_NOTE = f"""# Blend trained concepts

Two trained concepts in one image, each in its region. No further training, and sampling takes as long as with a plain \
prompt.

**Fill in the nodes in the green groups**
1. **Your concepts**: files from **Train a concept**; press R to refresh the lists. All of them must have been trained \
on this checkpoint.
2. **Target masks**: load any square picture in both nodes, right-click, **Open in MaskEditor**, and paint the area. \
Without regions disconnect *mask* of both **Blend Concept** nodes inside **Generate**.
3. **Generate**: a prompt with the noun of each concept, and a seed.

Then **Run**.

**File to download once**
{FILE_LINE}

- A concept is missing, or both look alike: try another *seed*. Or open the subgraph **Generate** and add **Blending \
Guidance** between **Prompt with concepts** and the sampler.
- The layout is poor: raise *start_percent* of **Prompt with concepts**, so that the plain words decide for longer.
- Too much like the photos: lower *strength* of **Concept 1** or **Concept 2**.
- An object extends beyond its mask: this is the plain word, not the concept. Describe its position in the prompt too.
- For more freedom lower *region* of **Prompt with concepts**.
- A mask may be larger than the object: it limits the concept, but does not set its outline.
- For a third concept add a **Load Concept** and a **Blend Concept**.
"""
