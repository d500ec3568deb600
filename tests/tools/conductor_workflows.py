"""The templates of Concept Conductor, for write_workflows.py."""

from graph_files import Graph, Node, Output, Subgraph, workflow
from stand_ins import CONDUCTING, SETTINGS
from template_models import (
    FILES,
    PICTURE,
    RESULT,
    SD,
    YOURS,
    add_finding,
    add_results,
    enlarged,
    listed,
    loaders,
    model_files,
)

SEED = 101  # of a scene with a cup and a star, for which there are LoRAs
THINGS, PLACE = ("cup", "star"), "meadow"


def conductor_templates(info: dict) -> dict[str, dict]:
    return {
        "Two LoRAs in one picture, no downloads": demo_template(info),
        "Two LoRAs in one picture": layout_template(info),
    }


def demo_template(info: dict) -> dict:
    graph = Graph(info)
    wording, larger = words_and_layout(info), enlarge(info)
    concepts = [demo_concept(info, 2 + k, thing) for k, thing in enumerate(THINGS)]
    graph.note(NOTE, [-280, -32], [250, 860])
    loaded = graph.add("PnPMixDemoModel", "", [0, 0], [220, 110])
    scene = graph.add("PnPMixDemoScene", "The layout", [0, 170], [220, 560], seed=SEED, concepts=2)
    graph.group("Included in the pack", FILES, loaded, scene)
    model, clip, vae = (loaded[k] for k in range(3))
    worded = graph.add_subgraph(wording, [250, 0], [220, 130], clip=clip, vae=vae, layout=scene[0])
    steps = [(step, {"clip": clip, "target mask": scene[4 + k]}) for k, step in enumerate(concepts)]
    nodes = add_chain(graph, steps, [250, 200], 220, [220, 150])
    chain = {"concepts": nodes[-1][0]}
    graph.group("Prompt and concepts", YOURS, worded, *nodes)
    positive, negative, layout = (worded[k] for k in range(3))
    reference = graph.add(
        "PnPMixLayoutReference", "", [540, 0], [230, 180], model=model, positive=positive, latent=layout,
        **SETTINGS["PnPMixLayoutReference"],
    )  # fmt: skip
    aligned = graph.add(
        "PnPMixLayoutAlignment", "", [540, 240], [230, 160], model=model, layout=reference[0],
        **SETTINGS["PnPMixLayoutAlignment"],
    )  # fmt: skip
    refined = graph.add(
        "PnPMixMaskRefinement", "", [540, 460], [230, 200], model=aligned[0], **SETTINGS["PnPMixMaskRefinement"],
    )  # fmt: skip
    graph.group("Layout", YOURS, reference, aligned, refined)
    conductor = graph.add(
        "PnPMixConductor", "", [795, 0], [250, 660], model=refined[0], positive=positive, negative=negative,
        latent=layout, **SETTINGS["PnPMixConductor"], **chain,
    )  # fmt: skip
    graph.group("Concept Conductor", YOURS, conductor)
    shown = graph.add_subgraph(larger, [1070, 0], [230, 60], latent=conductor[0], vae=vae)
    save = graph.add("SaveImage", "Finished picture", [1070, 140], [230, 320], images=shown[0])
    graph.group("Finished picture", RESULT, shown, save)
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
    clip, mask = graph.input("clip", "CLIP"), graph.input("target mask", "MASK")
    chain = {} if thing == THINGS[0] else {"concepts": graph.input("concepts", "PNPMIX_CONDUCTED")}
    words = graph.input("picture in its words", "STRING", ", ".join((thing, thing, PLACE)))
    graph.output("concepts", add_demo_concept(graph, thing, clip, mask, words, **chain))
    return graph


def add_demo_concept(
    graph: Graph, thing: str, clip: Output, mask: Output, words, titles: tuple[str, str] = ("", ""), **chain: Output
) -> Output:
    """Adds a concept of the pack's own LoRA; returns the chain of concepts. titles: of its two nodes."""
    file = f"demo model: {thing}.safetensors"
    lora = graph.add(
        "PnPMixConceptLora", titles[0], clip=clip, lora_name=file, strength=CONDUCTING.strength, text=words
    )
    own = dict(positive=lora[0], negative=lora[1], mask=mask, name=thing)
    return graph.add("PnPMixConductedConcept", titles[1], **own, **chain)[0]


def enlarge(info: dict) -> Subgraph:
    graph = Subgraph(info, "Enlarge", 4)
    latent, vae = graph.input("latent", "LATENT"), graph.input("vae", "VAE")
    decoded = graph.add("VAEDecode", samples=latent, vae=vae)[0]
    graph.output("picture", enlarged(graph, decoded))
    return graph


# --- With your own LoRAs

YOUR = ["dog", "cat"]
PROMPT = "a photo of a dog and a cat on a beach"
SQUARE = dict(upscale_method="lanczos", width=SD, height=SD, crop="center")


def concept(info: dict, number: int, noun: str, first: bool) -> Subgraph:
    """Your concept: its weights and words, and the object of the layout that a word finds. first: of the chain."""
    graph = Subgraph(info, f"Your {noun}", number)
    clip = graph.input("clip", "CLIP")
    chain = {} if first else {"concepts": graph.input("concepts", "PNPMIX_CONDUCTED")}
    layout = graph.input("layout", "IMAGE")
    finder = [graph.input("detector", "PNPMIX_DETECTOR"), graph.input("segmenter", "PNPMIX_SEGMENTER")]
    word = graph.input("what it is in the layout", "STRING", noun)
    mask = add_finding(graph, "In the layout", layout, word, finder)
    weights = graph.input("LoRA", "COMBO", f"your_{noun}.safetensors")
    # every similar object is named by the concept's own words
    words = graph.input("picture in its words", "STRING", f"a photo of a sks {noun} and a sks {noun} on a beach")
    lora = graph.add("PnPMixConceptLora", clip=clip, lora_name=weights, text=words, negative_text="blurry, distorted")
    conducted = graph.add("PnPMixConductedConcept", positive=lora[0], negative=lora[1], mask=mask, name=noun, **chain)
    graph.output("concepts", conducted[0])
    return graph


def conduct(info: dict, number: int) -> Subgraph:
    """From the layout and the concepts to the finished picture."""
    graph = Subgraph(info, "Conduct", number)
    model, clip, vae = (graph.input(name, name.upper()) for name in ("model", "clip", "vae"))
    layout, concepts = graph.input("layout", "IMAGE"), graph.input("concepts", "PNPMIX_CONDUCTED")
    words, seed = graph.input("prompt", "STRING", PROMPT), graph.input("seed", "INT", 0)
    positive = graph.add("CLIPTextEncode", "The whole picture", text=words, clip=clip)[0]
    negative = graph.add("CLIPTextEncode", "Not in it", text="blurry, distorted", clip=clip)[0]
    reference = graph.add("VAEEncode", "Layout", pixels=layout, vae=vae)[0]
    empty = graph.add("EmptyLatentImage", "Size and number", width=SD, height=SD)[0]
    target = graph.add("PnPMixLayoutReference", model=model, positive=positive, latent=reference)[0]
    patched = graph.add("PnPMixLayoutAlignment", model=model, layout=target)[0]
    patched = graph.add("PnPMixMaskRefinement", model=patched)[0]
    conductor = graph.add(
        "PnPMixConductor", model=patched, positive=positive, negative=negative, concepts=concepts, latent=empty,
        seed=seed,
    )  # fmt: skip
    finished = graph.add("VAEDecode", samples=conductor[0], vae=vae)[0]
    drawn = graph.add("MaskToImage", "Refined masks", mask=conductor[1])[0]
    graph.output("finished picture", finished)
    graph.output("look inside", graph.add("ImageBatch", "Look inside", image1=layout, image2=drawn)[0])
    return graph


def fitted(info: dict, number: int) -> Subgraph:
    """The layout picture, cropped and scaled to the square that the model works on."""
    graph = Subgraph(info, "At the model's size", number)
    layout = graph.input("layout", "IMAGE")
    graph.output("layout", graph.add("ImageScale", "Layout", image=layout, **SQUARE)[0])
    return graph


def layout_template(info: dict) -> dict:
    """The layout's objects are found by words."""
    graph, files, sizing = Graph(info), model_files(info, 1, SD, "words"), fitted(info, 2)
    concepts = [concept(info, 3 + k, noun, first=k == 0) for k, noun in enumerate(YOUR)]
    mixing = conduct(info, 5)
    graph.note(layout_note(), [0, -32], [280, 920])
    loaded = graph.add_subgraph(files, [310, 0], [340, 216])
    graph.group("Model files", FILES, loaded)
    layout = graph.add("LoadImage", "Layout: a picture with a dog and a cat", [310, 310], [340, 314], image=PICTURE)
    scaled = graph.add_subgraph(sizing, [310, 690], [340, 60], layout=layout[0])
    graph.group("1 · Layout", YOURS, layout, scaled)
    ends = {"clip": loaded[1], "layout": scaled[0], "detector": loaded[3], "segmenter": loaded[4]}
    nodes = add_chain(graph, [(step, ends) for step in concepts], [690, 0], 340, [262, 260])
    graph.group("2 · Your concepts", YOURS, *nodes)
    ends = {"model": loaded[0], "clip": loaded[1], "vae": loaded[2], "layout": scaled[0], "concepts": nodes[-1][0]}
    mixed = graph.add_subgraph(mixing, [980, 0], [250, 300], **ends)
    graph.group("3 · Prompt", YOURS, mixed)
    add_results(graph, mixed, 1270, wide=300)
    return workflow(graph, [files, sizing, *concepts, mixing])


# --- Notes


def layout_note() -> str:
    return f"""# Two LoRAs in one picture

The layout image sets the positions of the objects, and your LoRAs set their look. Everything else is generated.

**Fill in the nodes in the green groups**
1. **Layout**: any picture of a dog and a cat. It is cropped to its center square.
2. **Your concepts**: a *LoRA* for each, and a prompt with its trigger words.
3. **Conduct**: a plain prompt, and a seed.

Then **Run**. **Look inside** shows the layout and the refined masks.

**Files to download once**
{listed(*(file for _, (_, _, file) in loaders(SD, "words")), v1="; any SD 1.x checkpoint works")}

- The files *your_…* cannot be downloaded: choose your own LoRAs of the checkpoint's family. ED-LoRAs of the authors' \
code work too.
- In *prompt with trigger words* use the LoRA's trigger words for **every** animal, e.g. a photo of a sks dog and a \
sks dog on a beach.
- **Conduct** uses the settings of the paper: *steps* 200, and 999 steps in **Layout Reference**, whose result is \
reused until the layout changes. For a quick preview set *steps* to 50 and 250.
- SDXL: *end* 0.25 in **Layout Alignment**; *start* 0.3, *updates* 5, *threshold* 0.7 and *restarts* 25 in **Mask \
Refinement**; 1024 pixels in **Size and number** and **At the model's size**.
- Into your own photo: give **Conductor** the encoded photo with **Set Latent Noise Mask** as its *latent*, and paste \
the result back with **Paste Back**. The layout is then your photo with any dog roughly pasted into it.
- Masks painted by hand: connect *mask* of **Load Image** to **Conducted Concept** inside the concept's subgraph.
- Bypass (Ctrl+B) **Layout Alignment** or **Mask Refinement** inside **Conduct** to see its effect.
- Not enough like the LoRA: raise *strength* of **Concept LoRA** inside the concept's subgraph.
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
