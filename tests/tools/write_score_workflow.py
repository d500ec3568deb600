"""The template of the scores: variants of one blend side by side, without downloads. Written by write_workflows.py."""

from graph_files import Graph, Output, Subgraph, workflow
from template_models import DEMO_SEED, FILES, RESULT, YOURS, enlarged

VARIANTS = ["All parts", "Without Guided Appearance", "Without Background Dilution++"]
PARTS = ["inversion", "concepts", "positive", "negative", "clean plate"]  # what every variant takes
KINDS = ["PNPMIX_INVERSION", "PNPMIX_CONCEPTS", "CONDITIONING", "CONDITIONING", "LATENT"]
THINGS = [("target mask {}", "MASK"), ("your picture {}", "IMAGE"), ("object mask {}", "MASK")]


def prepare(info: dict) -> Subgraph:
    """What all variants share: the inversion, the concepts, the clean plate."""
    graph = Subgraph(info, "Prepare once", 1)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    photo = graph.input("photo", "IMAGE")
    things = [[graph.input(name.format(k), kind) for name, kind in THINGS] for k in (1, 2)]
    prompt, seed = graph.input("prompt", "STRING", ""), graph.input("seed", "INT", 0)
    words = graph.add("PrimitiveString", "Prompt", value=prompt)[0]
    both = dict(destination=things[0][0], source=things[1][0])
    every = graph.add("MaskComposite", "All target masks", **both, operation="add")[0]
    clean_plate = graph.add("PnPMixInpaintBackground", image=photo, mask=every, expand=3, feather=1)[0]
    positive = graph.add("CLIPTextEncode", "Finished picture", text=words, clip=clip)[0]
    negative = graph.add("CLIPTextEncode", "Not in it", text="", clip=clip)[0]
    scene = graph.add("VAEEncode", "Scene", pixels=photo, vae=vae)[0]
    settings = dict(seed=seed, steps=50, skip_steps=16, cfg=1.0)
    inverted = graph.add(
        "PnPMixDDPMInvert", model=model, positive=positive, negative=negative, latent=scene, **settings
    )[0]
    concepts = None
    for k, (where, picture, mask) in enumerate(things, 1):
        latent = graph.add("VAEEncode", f"Your picture {k}", pixels=picture, vae=vae)[0]
        chain = {} if concepts is None else {"concepts": concepts}
        inputs = dict(latent=latent, mask=where, object_mask=mask, seed=k)
        concepts = graph.add("PnPMixConcept", f"Your object {k}", **inputs, **chain)[0]
    around = graph.add("VAEEncode", "Clean plate", pixels=clean_plate, vae=vae)[0]
    for name, output in zip(PARTS, (inverted, concepts, positive, negative, around), strict=True):
        graph.output(name, output)
    return graph


def variant(info: dict, number: int, name: str) -> Subgraph:
    """One blend; a variant leaves out the patch that its name says."""
    graph = Subgraph(info, name, number)
    model, vae = graph.input("model", "MODEL"), graph.input("vae", "VAE")
    inversion, concepts, positive, negative, clean_plate = map(graph.input, PARTS, KINDS)
    if "Appearance" not in name:
        model = graph.add("PnPMixAppearance", model=model, adain=True)[0]
    if "Dilution" not in name:
        model = graph.add("PnPMixDilution", model=model, latent=clean_plate, expand=4)[0]
    inputs = dict(inversion=inversion, concepts=concepts, positive=positive, negative=negative)
    mixed = graph.add("PnPMixSampler", model=model, **inputs)
    graph.output("picture", graph.add("VAEDecode", samples=mixed[0], vae=vae)[0])
    return graph


def scores(info: dict) -> Subgraph:
    """All variants as one batch, which every measure then takes."""
    graph = Subgraph(info, "Scores", 5)
    photo = graph.input("photo", "IMAGE")
    things = [[graph.input(name.format(k), kind) for name, kind in THINGS] for k in (1, 2)]
    batch, *others = (graph.input(f"picture {k}", "IMAGE") for k in range(1, len(VARIANTS) + 1))
    for picture in others:
        batch = graph.add("ImageBatch", "All variants", image1=batch, image2=picture)[0]
    shown = enlarged(graph, batch, 4)
    measured: list[Output] = []
    for k, (where, picture, own) in enumerate(things, 1):
        inputs = dict(images=batch, references=picture, mask=where, reference_mask=own)
        measured.append(graph.add("PnPMixImageSimilarity", f"Look of object {k}", **inputs)[2])
    both = dict(destination=things[0][0], source=things[1][0])
    every = graph.add("MaskComposite", "All target masks", **both, operation="add")[0]
    grown = graph.add("GrowMask", "With their borders", mask=every, expand=2, tapered_corners=False)[0]
    measured.append(graph.add("PnPMixBackgroundKept", images=batch, original=photo, mask=grown)[3])
    for name, output in zip(("pictures", "look 1", "look 2", "background"), (shown, *measured), strict=True):
        graph.output(name, output)
    return graph


def compare_template(info: dict) -> dict:
    graph, preparing, scoring = Graph(info), prepare(info), scores(info)
    blends = [variant(info, number, name) for number, name in enumerate(VARIANTS, 2)]
    graph.note(NOTE, [0, -32], [260, 802])
    loaded = graph.add("PnPMixDemoModel", "", [290, 0], [220, 110])
    scene = graph.add("PnPMixDemoScene", "", [290, 170], [220, 560], seed=DEMO_SEED, concepts=2)
    graph.group("Included in the pack", FILES, loaded, scene)
    model, clip, vae = (loaded[k] for k in range(3))
    things = {}
    for k in (1, 2):
        things |= {f"target mask {k}": scene[3 + k], f"your picture {k}": scene[k], f"object mask {k}": scene[7 + k]}
    ends = dict(model=model, clip=clip, vae=vae, photo=scene[0], prompt=scene[7], **things)
    ready = graph.add_subgraph(preparing, [540, 0], [210, 330], **ends)
    shared = {name: ready[k] for k, name in enumerate(PARTS)} | dict(model=model, vae=vae)
    mixed = [graph.add_subgraph(blend, [780, 225 * k], [230, 160], **shared) for k, blend in enumerate(blends)]
    graph.group("Prepare", YOURS, ready)
    graph.group("Variants", YOURS, *mixed)
    pictures = {f"picture {k}": node[0] for k, node in enumerate(mixed, 1)}
    scored = graph.add_subgraph(scoring, [1065, 0], [200, 230], photo=scene[0], **things, **pictures)
    shown = graph.add("PreviewImage", "The variants", [1065, 290], [200, 320], images=scored[0])
    graph.group("Measure", RESULT, scored, shown)
    inputs = dict(scores=scored[1], names="\n".join(VARIANTS), scores_2=scored[2], scores_3=scored[3])
    plot = graph.add("PnPMixScorePlot", "", [1290, 0], [290, 610], **inputs)
    graph.group("Side by side", RESULT, plot)
    return workflow(graph, [preparing, *blends, scoring])


NOTE = """# Compare settings

Press **Run**. Everything is included in the pack, and it takes one to three minutes on a CPU.

One scene is blended three times: with all parts of PnP-MIX, without **Guided Appearance Attention**, and without \
**Background Dilution++**. The shared steps run once.

**Score Plot** shows the mean of each variant:
- *Colours 1*, *Colours 2*: color similarity of each object to its concept image. The demo needs no encoder; for your \
own photos connect **Load CLIP Vision** to **Image Similarity** in **Scores** to measure CLIP-I or DINO.
- *PSNR*, *SSIM*: how much of the scene is unchanged, 2 pixels and more away from the objects. 100 dB and 1 mean \
identical, as PnP-MIX guarantees for every variant.

**Your own comparison**
- Open a variant with the icon in its top-right corner (Nodes 2.0: Enter subgraph), and change a setting or bypass a \
node (Ctrl+B).
- Write the names into **Score Plot**, one line each, in the order of the batch in **Scores**.
- A single image is not statistically meaningful. With several images of each variant, one variant after another in \
the batch, the points are means with 95 % confidence intervals. If two intervals overlap widely, measure more images.
- *Text Similarity* and *SegSim* work in the same plot.

Values of different encoders, scenes or papers are not comparable.
"""
