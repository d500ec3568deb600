"""The template of all methods in one graph, without downloads, for write_workflows.py."""

from conductor_workflows import PLACE, SEED, THINGS, add_demo_concept
from graph_files import Graph, Output, Subgraph, workflow
from stand_ins import SETTINGS, SMALL
from template_models import FILES, RESULT, YOURS, enlarged

NOUN, *_ = THINGS
WORDS = ", ".join((*THINGS, PLACE))
ENDS = ("model", "clip", "vae")


def add_words(graph: Graph, clip: Output, words: Output) -> list[Output]:
    titles = (("The whole picture", words), ("Not in it", ""))
    return [graph.add("CLIPTextEncode", title, text=text, clip=clip)[0] for title, text in titles]


def conduct(info: dict) -> Subgraph:
    """Concept Conductor with the pack's LoRAs: its latent, the first concept's mask, and the picture."""
    graph = Subgraph(info, "Conduct", 1)
    model, clip, vae = (graph.input(end, end.upper()) for end in ENDS)
    scene = graph.input("layout", "IMAGE")
    masks = [graph.input(f"target mask {k}", "MASK") for k in (1, 2)]
    words, seed = graph.input("prompt", "STRING", WORDS), graph.input("seed", "INT", 1)
    layout = graph.add("VAEEncode", "Layout", pixels=scene, vae=vae)[0]
    positive, negative = add_words(graph, clip, words)
    concepts: dict = {}
    for thing, mask in zip(THINGS, masks, strict=True):
        titles, own = (f"LoRA of the {thing}", f"The {thing}"), ", ".join((thing, thing, PLACE))
        concepts = {"concepts": add_demo_concept(graph, thing, clip, mask, own, titles, **concepts)}
    given = dict(model=model, positive=positive, latent=layout)
    target = graph.add("PnPMixLayoutReference", **given, **SETTINGS["PnPMixLayoutReference"])[0]
    model = graph.add("PnPMixLayoutAlignment", model=model, layout=target, **SETTINGS["PnPMixLayoutAlignment"])[0]
    given |= dict(model=model, negative=negative, **SETTINGS["PnPMixConductor"], **concepts) | dict(seed=seed)
    conductor = graph.add("PnPMixConductor", **given)
    decoded = graph.add("VAEDecode", "What the LoRAs drew", samples=conductor[0], vae=vae)[0]
    drawn = graph.add("MaskToImage", "Masks", mask=conductor[1])[0]
    first = graph.add("ImageFromBatch", "First concept", image=drawn, batch_index=0, length=1)[0]
    graph.output("latent", conductor[0])
    graph.output("mask", graph.add("ImageToMask", "Its mask", image=first, channel="red")[0])
    graph.output("picture", enlarged(graph, decoded))
    return graph


def replace(info: dict) -> Subgraph:
    """PnP-MIX in a latent, for one object that is a trained concept too."""
    graph = Subgraph(info, "Replace object", 2)
    model, clip, vae = (graph.input(end, end.upper()) for end in ENDS)
    scene, mask = graph.input("scene", "LATENT"), graph.input("target mask", "MASK")
    picture, own = graph.input("your picture", "IMAGE"), graph.input("object mask", "MASK")
    known = {"learned": graph.input("trained concept", "PNPMIX_LEARNED")}
    words, seed = graph.input("prompt", "STRING", WORDS), graph.input("seed", "INT", 0)
    decoded = graph.add("VAEDecode", "Scene", samples=scene, vae=vae)[0]
    clean_plate = graph.add("PnPMixInpaintBackground", image=decoded, mask=mask, **SMALL["PnPMixInpaintBackground"])[0]
    around = graph.add("VAEEncode", "Clean plate", pixels=clean_plate, vae=vae)[0]
    positive, negative = add_words(graph, clip, words)
    inverted = graph.add(
        "PnPMixDDPMInvert", model=model, positive=positive, negative=negative, latent=scene, seed=seed, steps=50,
        skip_steps=16, cfg=1.0,
    )[0]  # fmt: skip
    named = graph.add("PnPMixBlendConcept", "Identity of the object", **known)[0]
    blended = graph.add("PnPMixBlend", model=model, clip=clip, text=words, concepts=named, start_percent=0.0)
    latent = graph.add("VAEEncode", "Your picture", pixels=picture, vae=vae)[0]
    concept = graph.add("PnPMixConcept", latent=latent, mask=mask, object_mask=own, **known)[0]
    model = graph.add("PnPMixAppearance", model=blended[0], adain=True)[0]
    model = graph.add("PnPMixDilution", model=model, latent=around, **SMALL["PnPMixDilution"])[0]
    mixed = graph.add(
        "PnPMixSampler", model=model, inversion=inverted, concepts=concept, positive=blended[1], negative=negative
    )
    finished = graph.add("VAEDecode", "Finished", samples=mixed[0], vae=vae)[0]
    graph.output("picture", enlarged(graph, finished))
    return graph


def all_methods_template(info: dict) -> dict:
    graph, conducting, mixing = Graph(info), conduct(info), replace(info)
    graph.note(NOTE, [0, -32], [300, 860])
    loaded = graph.add("PnPMixDemoModel", "", [340, 0], [240, 110])
    scene = graph.add("PnPMixDemoScene", "", [340, 170], [240, 560], seed=SEED, concepts=2)
    taught = graph.add("PnPMixDemoScene", "Five photos of it", [340, 800], [240, 60], seed=SEED, concepts=2, photos=5)
    taught.data["flags"] = {"collapsed": True}
    graph.group("Included in the pack", FILES, loaded, scene, taught)
    ends = {name: loaded[k] for k, name in enumerate(ENDS)}
    places = {f"target mask {k}": scene[3 + k] for k in (1, 2)}
    drawn = graph.add_subgraph(conducting, [630, 0], [270, 230], layout=scene[0], **ends, **places)
    graph.group("1 · LoRAs draw a picture", YOURS, drawn)
    training = graph.add(
        "PnPMixTrainConcept", "", [630, 320], [270, 560], **ends, images=taught[1], noun=NOUN, steps=150,
        learning_rate=4e-3, resolution=64, augment=False, dtype="fp32", checkpointing=False,
    )  # fmt: skip
    graph.group("2 · Train the cup", YOURS, training)
    given = ends | {"scene": drawn[0], "target mask": drawn[1], "your picture": scene[1], "object mask": scene[8]}
    mixed = graph.add_subgraph(mixing, [950, 0], [240, 270], **given, **{"trained concept": training[0]})
    graph.group("3 · Your picture", YOURS, mixed)
    save = graph.add("SaveImage", "Finished picture", [1240, 0], [300, 350], images=mixed[0])
    shown = graph.add("PreviewImage", "What the LoRAs drew", [1240, 400], [300, 290], images=drawn[2])
    graph.group("Finished picture", RESULT, save, shown)
    return workflow(graph, [conducting, mixing])


NOTE = """# All methods together

Press **Run**. Everything is included in the pack, and it takes two to four minutes on a CPU.

**1** Concept Conductor generates a new image in the layout of a scene: a cup and a star, each with its own LoRA.

**2** **Train Concept** trains the identity of the cup from five photos (LaTexBlend).

**3** PnP-MIX redraws the cup to look like your picture, with the trained concept in its prompt. It uses the latent of \
the image as its scene, without passing it through the VAE, and Concept Conductor's mask as its target mask. The star \
is unchanged.

Use this if a LoRA gets the kind of object right but its details wrong; one photo is enough.

- The trained concept is connected twice: through **Blend** to the mixer's prompt, and to the cup's **Concept**. It \
acts only in the cup's branch, so identities do not mix, and it costs no extra time. On the tiny demo model it adds \
little.
- *strength* of **Blend Concept**: strength of the trained concept. 0: only the picture.
- *alpha* of **Guided Appearance Attention**, *swap_guidance* of **Mask Noise Mixer**: strength of the picture. Bypass \
the former (Ctrl+B) to see the trained concept alone.
- The other way round, a latent of PnP-MIX is a layout for **Layout Reference**.
- Keep the plain prompt in **DDPM Invert**: the scene itself must not become the concept.
- With a real checkpoint add **Mask Refinement** after **Layout Alignment** inside **Conduct** to get refined masks. \
The demo model's attention does not separate objects well enough, so the masks of the layout are used here.
"""
