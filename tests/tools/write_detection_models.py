"""Writes detection models with random weights: python write_detection_models.py MODELS SAMS.

Grounding DINO (Swin-T, as groundingdino_swint_ogc.pth is laid out, with a small text encoder) and that text encoder's
folder into MODELS as ComfyUI has it, and SAM (ViT-B) into the folder SAMS.
"""

import sys
from pathlib import Path

import torch
from segment_anything import sam_model_registry

from detection_models import randomise, read_bert_folder, write_bert_folder
from published_dino import CONFIGS, PublishedDino


def write(models: Path, sams: Path) -> None:
    bert = write_bert_folder(models / "bert-base-uncased")
    detector = randomise(PublishedDino(CONFIGS[96], *read_bert_folder(bert)), 0)
    for folder in (models / "grounding-dino", sams):
        folder.mkdir(parents=True, exist_ok=True)
    weights = {f"module.{name}": x for name, x in detector.state_dict().items()}
    torch.save({"model": weights}, models / "grounding-dino" / "groundingdino_swint_ogc.pth")
    torch.manual_seed(0)
    torch.save(sam_model_registry["vit_b"]().state_dict(), sams / "sam_vit_b_01ec64.pth")


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
