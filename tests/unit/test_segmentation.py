"""Boxes become outlines as Segment Anything's own predictor draws them."""

import numpy as np
import pytest
import skimage
import torch
from pnpmix.vision.segmentation import build_sam, embed_image, masks_in_boxes
from segment_anything import SamPredictor, sam_model_registry

from detection_models import Made, small_sam

BOXES = torch.tensor([[40.0, 20.0, 300.0, 350.0], [200.0, 100.0, 590.0, 390.0]])


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return skimage.data.coffee()  # 400 x 600


def test_mask_in_a_given_box_equals_the_packages_predictor(photo):
    sam = small_sam()
    image = torch.from_numpy(photo).float() / 255
    with torch.inference_mode():
        ours = masks_in_boxes(sam, embed_image(sam, image), BOXES, image.shape[:2])
    predictor = SamPredictor(sam)
    predictor.set_image(photo)
    for mask, box in zip(ours, BOXES, strict=True):
        theirs = predictor.predict(box=box.numpy(), multimask_output=False)[0][0]
        assert mask.shape == theirs.shape == photo.shape[:2]
        assert set(mask.unique().tolist()) == {0, 1}
        assert (mask.numpy() != theirs).mean() < 1e-2  # theirs was resized in 8 bits
    assert not torch.equal(*ours)


@pytest.mark.parametrize("shape", [(64, 64), (50, 333), (333, 50), (1, 1)])
def test_any_size_of_image(shape):
    sam = small_sam()
    with torch.inference_mode():
        masks = masks_in_boxes(sam, embed_image(sam, torch.rand(*shape, 3)), torch.tensor([[0.0, 0, 1, 1]]), shape)
    assert masks.shape == (1, *shape)


def test_embedding_follows_the_precision_of_the_weights():
    sam = small_sam()
    sam.image_encoder.to(torch.bfloat16)
    with torch.inference_mode():
        embedding = embed_image(sam, torch.rand(64, 64, 3))
        assert embedding.dtype == torch.bfloat16
        assert masks_in_boxes(sam, embedding, BOXES / 10, (64, 64)).isfinite().all()


@pytest.mark.parametrize("variant, blocks", [("vit_b", 12), ("vit_l", 24), ("vit_h", 32)])
def test_variant_is_read_from_the_checkpoint(variant, blocks):
    with torch.device("meta"):  # the real architectures, without their gigabytes
        weights = sam_model_registry[variant]().state_dict()
        # what SAM-HQ adds to the same weights
        sam = build_sam(weights | {"mask_decoder.hf_token.weight": torch.empty(1, 256)})
    assert len(sam.image_encoder.blocks) == blocks
    assert not sam.training


def test_weights_are_not_made_up_only_to_be_replaced():
    with torch.device("meta"):
        names = sam_model_registry["vit_b"]().state_dict()
    weights = {name: torch.zeros(1).expand(x.shape) for name, x in names.items()}
    with Made() as made:
        sam = build_sam(weights | {"prompt_encoder.no_mask_embed.weight": torch.ones(1, 256, dtype=torch.float16)})
    assert made.numbers == 0
    assert not any(x.is_meta for x in [*sam.parameters(), *sam.buffers()])
    assert sam.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert torch.equal(sam.prompt_encoder.no_mask_embed.weight, torch.ones(1, 256))
    assert {x.dtype for x in sam.parameters()} == {torch.float32}


def test_wrong_checkpoints_say_what_is_wrong():
    weights = small_sam().state_dict()
    with pytest.raises(ValueError, match="not a Segment Anything model"):
        build_sam({"conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a Segment Anything model"):
        build_sam({"image_encoder.pos_embed": torch.tensor(768.0)})
    with pytest.raises(ValueError, match="not a Segment Anything model"):
        build_sam(weights)  # 32 wide
    with torch.device("meta"):
        weights = sam_model_registry["vit_b"]().state_dict()
        del weights["mask_decoder.iou_token.weight"]
        with pytest.raises(ValueError, match=r"1 weights are missing, such as 'mask_decoder\.iou_token"):
            build_sam(weights)
        weights["image_encoder.neck.0.weight"] = torch.empty(3, 3)
        with pytest.raises(ValueError, match="image_encoder.neck.0.weight"):
            build_sam(weights)
        weights = sam_model_registry["vit_b"]().state_dict()
        weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = torch.empty(2, 3)  # a buffer
        with pytest.raises(ValueError, match="positional_encoding_gaussian_matrix"):
            build_sam(weights)
