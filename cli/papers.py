"""What the papers report, as far as their text holds the numbers. Methods are named as they name them."""

from typing import NamedTuple

REMARK = (
    "Numbers of different papers, and these here, are not comparable: pictures, prompts, references, crops, encoders, "
    "checkpoints and what counts as one picture all differ. Compare rows within one table only. "
    "Concept Conductor's tables 1 (methods) and 2 (ablation) are in arXiv 2408.03632; the text that this list was made "
    "from lacks their numbers."
)


class Table(NamedTuple):
    source: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


TABLES = (
    Table(
        "PnP-MIX (thesis of arXiv 2511.17615), table 4.3: ablation. SD 2.1, 50 pictures",
        ("CLIP-T", "CLIP-I", "DINO"),
        (
            ("(a) only mask-guided noise mixing", "0.3737", "0.8623", "0.6005"),
            ("(b) (a) + guided appearance attention", "0.3733", "0.8711", "0.6232"),
            ("(c) (b) + background dilution", "0.3743", "0.8655", "0.6130"),
            ("(d) (c) + noise mixing on reference noise", "0.3810", "0.8830", "0.6502"),
            ("(e) (d) + background dilution++", "0.3823", "0.8841", "0.6542"),
        ),
    ),
    Table(
        "PnP-MIX, tables 4.1 and 4.2: methods; seconds for training and one picture",
        ("CLIP-T", "CLIP-I", "DINO", "training", "picture"),
        (
            ("Custom Diffusion", "0.3480", "0.8078", "0.4657", "814", "13"),
            ("Perfusion", "0.3044", "0.7616", "0.3267", "7115", "7"),
            ("Mix-of-Show", "0.3206", "0.7920", "0.4262", "1509", "16"),
            ("PnP-MIX", "0.3823", "0.8841", "0.6542", "0", "151"),
        ),
    ),
    Table(
        "LaTexBlend (arXiv 2503.06956): ablation",
        ("CLIP-T", "CLIP-I", "DINO"),
        (
            ("all of it", "0.3684", "0.8052", "0.6564"),
            ("without base flow", "0.3718", "0.5861", "0.4337"),
            ("without prompt variety", "0.3539", "0.7155", "0.5648"),
        ),
    ),
)
