"""The templates of Concept Conductor, for write_workflows.py."""

from graph_files import Graph, workflow

FILES, YOURS, RESULT = "#5b7083", "#3f8f5f", "#8a6d3b"
SEED = 101  # of a scene with a cup and a star, for which there are LoRAs
THINGS, PLACE = ("cup", "star"), "meadow"


def conductor_templates(info: dict) -> dict[str, dict]:
    return {"Conductor 1 Without downloads": demo_template(info)}


def demo_template(info: dict) -> dict:
    graph = Graph(info)
    graph.note(NOTE, [-340, 0], [310, 560])
    loaded = graph.add("PnPMixDemoModel", "", [0, 0], [250, 80])
    scene = graph.add("PnPMixDemoScene", "The layout", [0, 140], [250, 330], seed=SEED, concepts=2)
    graph.group("Comes with the pack", FILES, loaded, scene)
    model, clip, vae = (loaded[k] for k in range(3))

    words = ", ".join((*THINGS, PLACE))
    positive = graph.add("CLIPTextEncode", "The whole picture", [290, 0], [300, 110], text=words, clip=clip)
    negative = graph.add("CLIPTextEncode", "Not in it", [290, 170], [300, 80], text="", clip=clip)
    layout = graph.add("VAEEncode", "Layout", [290, 310], [300, 60], pixels=scene[0], vae=vae)
    concepts, nodes = {}, []
    for k, thing in enumerate(THINGS):
        lora = graph.add(
            "PnPMixConceptLora",
            f"Your {thing}",
            [630, 430 * k],
            [300, 230],
            clip=clip,
            lora_name=f"demo model: {thing}.safetensors",
            strength=1.0,
            text=", ".join((thing, thing, PLACE)),
        )
        concept = graph.add(
            "PnPMixConductedConcept",
            f"Where your {thing} goes",
            [630, 430 * k + 270],
            [300, 110],
            positive=lora[0],
            negative=lora[1],
            mask=scene[4 + k],
            name=thing,
            **concepts,
        )
        concepts = {"concepts": concept[0]}
        nodes += [lora, concept]
    graph.group("Concepts", YOURS, *nodes)

    reference = graph.add(
        "PnPMixLayoutReference", "", [970, 0], [270, 160], model=model, positive=positive[0], latent=layout[0], steps=40
    )
    patched = graph.add(
        "PnPMixLayoutAlignment", "", [970, 220], [270, 130], model=model, layout=reference[0], weight=20.0
    )
    patched = graph.add("PnPMixMaskRefinement", "", [970, 410], [270, 180], model=patched[0], threshold=0.5)
    conductor = graph.add(
        "PnPMixConductor",
        "",
        [1280, 0],
        [290, 480],
        model=patched[0],
        positive=positive[0],
        negative=negative[0],
        latent=layout[0],
        seed=1,
        steps=40,
        cfg=3.0,
        **concepts,
    )
    graph.group("Concept Conductor", YOURS, conductor)
    decoded = graph.add("VAEDecode", "", [1610, 0], [240, 60], samples=conductor[0], vae=vae)
    larger = graph.add(
        "ImageScaleBy", "", [1610, 120], [240, 90], image=decoded[0], upscale_method="nearest-exact", scale_by=8.0
    )
    save = graph.add("SaveImage", "Finished picture", [1610, 270], [240, 320], images=larger[0])
    graph.group("Finished picture", RESULT, decoded, larger, save)
    return workflow(graph, [])


NOTE = """# Several LoRA concepts in one new picture

Press **Run**: everything comes with the pack, and it takes a minute or two, on a CPU too.

**Demo Scene** draws the layout: an ordinary cup and an ordinary star. Each **Concept LoRA** has weights that give its \
thing a look that no word of the demo model means: a cup brown above and lime below, a magenta star, teal inside. \
**Conductor** draws a new picture: the layout's things in their places, in the LoRAs' looks.

- Another *seed* in **Conductor**: another picture with the same layout. Not every seed comes out well.
- Ctrl+B on **Layout Alignment** or **Mask Refinement** shows what it does.
- In each **Concept LoRA** every similar thing is named by the concept's word: "cup, cup, meadow".
- With a real checkpoint the defaults are the paper's: *steps* 200, *cfg* 7.5, *weight* 0.
"""
