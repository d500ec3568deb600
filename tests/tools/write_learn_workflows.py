"""The templates of LaTexBlend, for write_workflows.py."""

from graph_files import Graph, Output, Subgraph, workflow
from template_models import CHECKPOINTS, FILES, RESULT, SD, YOURS, listed

PICTURE = "example.png"  # which every ComfyUI has, until people choose their own
SCENE, NOUN, PLACE = 2, "cup", "meadow"  # the demo's cup with a look of its own
OTHER, OTHER_FILE = "fish", "demo model: fish.safetensors"  # which comes with the pack
NOUNS = ["dog", "cat"]
FILE = "{}_00001_.safetensors"  # as Save Concept writes the first of a name
PROMPT = "a photo of a dog and a cat on a beach"


def learn_templates(info: dict) -> dict[str, dict]:
    return {
        "Learn 1 Without downloads": demo_template(info),
        "Learn 2 Learn a concept": learn_template(info),
        "Learn 3 Blend two concepts": blend_template(info, regions=False),
        "Learn 4 Blend two, each in its region": blend_template(info, regions=True),
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
    blended = graph.add("PnPMixBlend", model=model, clip=clip, text=text, **concepts, **settings)
    return blended[0], blended[1]


def blend(info: dict, count: int, regions: bool, prompt: str, number: int = 2) -> Subgraph:
    """From learned concepts to the finished picture."""
    graph = Subgraph(info, "Blend", number)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    learned = [graph.input(f"concept {k}", "PNPMIX_LEARNED") for k in range(1, count + 1)]
    masks = [graph.input(f"where {k} goes", "MASK") for k in range(1, count + 1)] if regions else []
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
    graph = Subgraph(info, "With it and without it", 1)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    size, learned = graph.input("picture of the size", "IMAGE"), graph.input("learned", "PNPMIX_LEARNED")
    other = graph.input("another", "PNPMIX_LEARNED")
    text, seed = graph.input("prompt", "STRING", f"{NOUN}, {PLACE}"), graph.input("seed", "INT", 1)
    text_both = graph.input("prompt for both", "STRING", f"{NOUN}, {OTHER}, {PLACE}")
    # this model settles what things look like in the first steps
    patched, positive = add_blended(graph, model, clip, [learned], [], text, start_percent=0.0)
    patched_both, both = add_blended(graph, model, clip, [learned, other], [], text_both, start_percent=0.0)
    plain = graph.add("CLIPTextEncode", "The plain words", text=text, clip=clip)[0]
    negative = graph.add("CLIPTextEncode", "Not in it", text="", clip=clip)[0]
    encoded = graph.add("VAEEncode", "Size", pixels=size, vae=vae)[0]
    empty = graph.add("LatentMultiply", "Empty", samples=encoded, multiplier=0.0)[0]
    settings = dict(steps=20, cfg=3.0, scheduler="normal")
    pictures = {"with it": (patched, positive), "without it": (model, plain), "with both": (patched_both, both)}
    for name, (own, words) in pictures.items():
        picture = add_picture(graph, own, words, negative, empty, vae, seed, name.capitalize(), **settings)
        larger = graph.add("ImageScaleBy", "Enlarge", image=picture, upscale_method="nearest-exact", scale_by=8)[0]
        graph.output(name, larger)
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
    graph.note(DEMO_NOTE, [0, -32], [310, 742])
    loaded = graph.add("PnPMixDemoModel", "", [360, 0], [250, 110])
    scene = graph.add("PnPMixDemoScene", "", [360, 170], [250, 360], seed=SCENE, concepts=1, photos=5)
    other = graph.add("PnPMixLoadConcept", "Another, learned before", [360, 600], [250, 90], file=OTHER_FILE)
    graph.group("Comes with the pack", FILES, loaded, scene, other)
    model, clip, vae = (loaded[k] for k in range(3))
    learning = graph.add(
        "PnPMixTrainConcept", "", [660, 0], [300, 590], model=model, clip=clip, vae=vae, images=scene[1], noun=NOUN,
        steps=300, learning_rate=2e-3, resolution=64, augment=False, dtype="fp32", checkpointing=False,
    )  # fmt: skip
    graph.group("Learn", YOURS, learning)
    ends = {"model": model, "clip": clip, "vae": vae, "learned": learning[0], "picture of the size": scene[0]}
    ends |= {"another": other[0]}
    tried = graph.add_subgraph(trying, [1010, 0], [250, 300], **ends)
    graph.group("Blend", YOURS, tried)
    losses = graph.add("PreviewImage", "Loss of each step", [1010, 380], [250, 290], images=learning[1])
    save = graph.add("SaveImage", "With what was learned", [1310, 0], [300, 230], images=tried[0])
    both = graph.add("PreviewImage", "With both", [1310, 280], [300, 210], images=tried[2])
    plain = graph.add("PreviewImage", "The plain words", [1310, 540], [300, 210], images=tried[1])
    graph.group("Finished pictures", RESULT, save, plain, both)
    del losses
    return workflow(graph, [trying])


def add_checkpoint(graph: Graph, at: list[int]) -> list[Output]:
    file = CHECKPOINTS[SD]
    loaded = graph.add("CheckpointLoaderSimple", "", at, [270, 110], {"models": [file]}, ckpt_name=file["name"])
    graph.group("Model file", FILES, loaded)
    return [loaded[k] for k in range(3)]


def learn_template(info: dict) -> dict:
    graph, batch, mixing = Graph(info), photos(info), blend(info, 1, False, "a photo of a dog on a beach")
    graph.note(LEARN_NOTE, [0, -32], [310, 800])
    model, clip, vae = add_checkpoint(graph, [360, 0])
    own = [
        graph.add("LoadImage", f"Photo {k + 1}", [360 + 240 * (k % 2), 200 + 300 * (k // 2)], [220, 270], image=PICTURE)
        for k in range(4)
    ]
    graph.group("1 · Your photos", YOURS, *own)
    together = graph.add_subgraph(
        batch, [660, 0], [180, 110], **{f"photo {k}": photo[0] for k, photo in enumerate(own, 1)}
    )
    learning = graph.add(
        "PnPMixTrainConcept", "", [870, 0], [300, 600], model=model, clip=clip, vae=vae, images=together[0], noun="dog"
    )
    graph.group("2 · What it is", YOURS, learning)
    saved = graph.add("PnPMixSaveConcept", "", [1220, 0], [260, 90], learned=learning[0], filename_prefix="dog")
    ends = {"model": model, "clip": clip, "vae": vae, "concept 1": saved[0]}
    mixed = graph.add_subgraph(mixing, [1220, 160], [260, 190], **ends)
    losses = graph.add("PreviewImage", "Loss of each step", [1220, 410], [260, 290], images=learning[1])
    graph.group("3 · Keep it, try it", YOURS, saved, mixed, losses)
    save = graph.add("SaveImage", "With what was learned", [1530, 0], [300, 360], images=mixed[0])
    graph.group("Finished picture", RESULT, save)
    return workflow(graph, [batch, mixing])


def blend_template(info: dict, regions: bool) -> dict:
    graph, mixing = Graph(info), blend(info, len(NOUNS), regions, PROMPT, 1)
    graph.note(REGION_NOTE if regions else BLEND_NOTE, [0, -32], [310, 690])
    model, clip, vae = add_checkpoint(graph, [360, 0])
    ends, nodes = {"model": model, "clip": clip, "vae": vae}, []
    for k, noun in enumerate(NOUNS, 1):
        at = [360, 210 + 150 * (k - 1)]
        loaded = graph.add("PnPMixLoadConcept", f"Your {noun}", at, [270, 90], file=FILE.format(noun))
        ends[f"concept {k}"] = loaded[0]
        nodes.append(loaded)
    graph.group("1 · Your concepts", YOURS, *nodes)
    right = 680
    if regions:
        painted = [
            graph.add("LoadImage", f"Paint where the {noun} goes", [right, 350 * k], [250, 300], image=PICTURE)
            for k, noun in enumerate(NOUNS)
        ]
        graph.group("2 · Where they go", YOURS, *painted)
        ends |= {f"where {k} goes": node[1] for k, node in enumerate(painted, 1)}
        right += 300
    mixed = graph.add_subgraph(mixing, [right, 0], [280, 250], **ends)
    graph.group(f"{3 if regions else 2} · In words", YOURS, mixed)
    save = graph.add("SaveImage", "Finished picture", [right + 330, 0], [420, 490], images=mixed[0])
    graph.group("Finished picture", RESULT, save)
    return workflow(graph, [mixing])


# --- Notes

DEMO_NOTE = f"""# Learn a concept, without downloads

Press **Run**: everything comes with the pack, and it takes one to two minutes on a CPU.

**Demo Scene** draws five photos of a cup with a look of its own. **Train Concept** learns it under the word {NOUN}, \
without touching the model; the node shows the loss and a sample on the way. **Blend** then puts it into a new \
picture: *{NOUN}, {PLACE}*. Below is what the plain words give, and beside it the cup together with a {OTHER} that was \
learned before and comes with the pack as a file of 10 kB.

- Another *prompt* in **With it and without it**: the word {NOUN} and one of meadow, desert, sea, dusk, snow, room.
- *steps* and *learning_rate* of **Train Concept**, and *start_percent* 0 inside **With it and without it**, are for \
the tiny demo model. With a real checkpoint the defaults are the method's: 3000, 0.00002 and 0.1.
- **Load Concept** also offers a ball and another cup.
- **Save Concept** behind **Train Concept** keeps what was learned for any later graph.

Then with your own photos: **Learn 2**, and **Learn 3** for two concepts in one picture.
"""

FILE_LINE = listed(CHECKPOINTS[SD], v2="; any SD 1.x, SD 2.x or SDXL checkpoint does")

LEARN_NOTE = f"""# Learn a concept from your photos

Learned once, it is kept in a file of less than a megabyte, and any prompt can have it. The checkpoint stays as it is.

**What is green is yours to fill in**
1. **Your photos**: 3 to 5 of the same thing, in different places. They are cropped to the first one's shape here; \
leave the others out by bypassing (Ctrl+B).
2. **Train Concept**: *noun*, the word for it, such as dog.
3. **Save Concept**: a name for the file. **Blend**: a prompt with the noun, to try it.

Then **Run**. While it learns, the node shows the loss and samples.

**File, once**
{FILE_LINE}

- With SDXL: *resolution* 1024 where memory allows, and 1024 in **Size and number** inside **Blend**.
- Too little memory: *rank* 16, lower *resolution*.
- Too little like the photos: more *steps*. Too much, also in pose and place: fewer.
- *class_images*, pictures of other dogs, keep the word's own meaning; blending does not need them.

Then **Learn 3**: two concepts in one picture.
"""

BLEND_NOTE = f"""# Two learned concepts in one picture

No further learning, and no more time than a plain picture takes.

**What is green is yours to fill in**
1. **Your concepts**: files that **Learn 2** made; press R to refresh the lists. All of the checkpoint that is loaded.
2. **Blend**: a prompt with the noun of each, and a seed.

Then **Run**.

**File, once**
{FILE_LINE}

- One is missing or both look alike: another *seed*; or **Blending Guidance** inside **Blend**, between **Blend** and \
the sampler. Or say where each goes: **Learn 4**.
- The layout is poor: raise *start_percent* of **Blend**, so that plain words decide for longer.
- Too much like the photos: lower *strength* of **Concept 1** or **Concept 2**.
- A third: one more **Load Concept** and **Blend Concept**.
"""

REGION_NOTE = f"""# Two learned concepts, each in its region

As **Learn 3**, and you paint where each may act.

**What is green is yours to fill in**
1. **Your concepts**: files that **Learn 2** made; press R to refresh the lists.
2. **Where they go**: load any square picture in both, right-click, **Open in MaskEditor**, and paint the place.
3. **Blend**: a prompt with the noun of each, and a seed.

Then **Run**.

**File, once**
{FILE_LINE}

- A concept reaches beyond its place: the plain word does, not the concept. Say where it is in the prompt too.
- Freer: lower *region* of **Blend**.
- Places may be larger than the things; they are where a concept is allowed, not its outline.
"""
