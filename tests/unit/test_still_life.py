"""The demo's scenes of 256 pixels: what is true of them is known, and their models can be trained on any machine."""

import numpy as np
import pytest
import torch
from demo.still_life import scenes, train
from demo.still_life.model import END, TOKENS, VOCABULARY, Words, padded, tokenize
from demo.still_life.scenes import CONCEPT_POSES, draw_concepts, draw_scene, random_blend, random_scene


def test_a_seed_gives_the_same_scene_and_another_seed_another():
    one, again, other = (draw_scene(random_blend(seed, 2).scene)[0] for seed in (5, 5, 6))
    assert one.shape == (scenes.SIZE, scenes.SIZE, 3) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_truth_is_known(count):
    """Concepts really in the scene change their objects alone, and each object can be taken away."""
    task = random_blend(3, count)
    (scene, masks), (redrawn, _) = draw_scene(task.scene), draw_scene(task.redrawn())
    pictures, own_masks = draw_concepts(task)
    assert masks.shape == own_masks.shape == (count, scenes.SIZE, scenes.SIZE) and len(pictures) == count
    changed = (redrawn - scene).abs().amax(-1) > 1e-6
    assert not changed[masks.sum(0) == 0].any()
    assert all(changed[mask > 0.5].float().mean() > 0.9 for mask in masks)
    for k, mask in enumerate(masks):
        without = draw_scene(task.scene.without(k))[0]
        assert (without - scene).abs().amax(-1)[mask > 0.5].mean() > 0.05
    assert draw_scene(task.clean_plate())[1].shape[0] == 0


def test_a_concepts_picture_shares_neither_pose_nor_colors_with_the_scene():
    for seed in range(20):
        task = random_blend(seed, 3)
        used = {color for thing in task.scene.objects for color in thing.look.colors}
        for thing, own in zip(task.scene.objects, task.concepts, strict=True):
            (concept,) = own.objects
            assert concept.kind == thing.kind and concept.pose in CONCEPT_POSES and thing.pose not in CONCEPT_POSES
            assert used.isdisjoint(concept.look.colors)


def test_a_noun_tells_of_all_words_of_its_phrase_and_of_no_other():
    words = Words()
    tokens = [padded(tokenize(text)) for text in ("red mug, blue duck", "red mug, green duck", "plain mug, blue duck")]
    encoded = words(torch.tensor(tokens))
    assert encoded.shape == (3, TOKENS, 128)
    assert torch.equal(encoded[0, 2], encoded[1, 2]) and not torch.equal(encoded[0, 2], encoded[2, 2]), "mug"
    assert torch.equal(encoded[0, 4], encoded[2, 4]) and not torch.equal(encoded[0, 4], encoded[1, 4]), "duck"
    assert tokens[0][5:] == [VOCABULARY.index(END)] * (TOKENS - 5)
    with pytest.raises(ValueError, match="does not know the word 'dog'"):
        tokenize("a dog")


def test_the_autoencoder_is_sharp_on_scenes_that_it_was_not_trained_on():
    mean, least = train.psnr(train.load_autoencoder(), count=6)
    assert mean > 33 and least > 29


@pytest.mark.parametrize("name", ["autoencoder", "unet", "flow"])
def test_training_goes_on_where_it_was_and_ends_with_the_same_weights(name, tmp_path):
    rng = np.random.default_rng(0)
    latents = {side: torch.randn(4, 8, side, side).half() for side in (16, 32)}
    drawn = train.Drawn(latents, [[(scene.words(), "mug")] for scene in (random_scene(rng) for _ in range(4))])
    if name == "autoencoder":
        drawn = torch.randint(256, (2, scenes.SIZE, scenes.SIZE, 3), dtype=torch.uint8)
    recipe = train.RECIPES[name]
    short, whole = (
        recipe._replace(stages=(train.Stage(16, 2, 1, 1e-3), *[train.Stage(32, 1, 1, 1e-3)] * more)) for more in (0, 1)
    )
    for folder in ("interrupted", "whole"):
        (tmp_path / folder).mkdir()
    train.train(tmp_path / "interrupted", name, drawn, 0, "cpu", short, torch.float32)
    ends = [
        train.train(tmp_path / folder, name, drawn, 0, "cpu", whole, torch.float32)
        for folder in ("interrupted", "whole")
    ]
    assert len(ends[0][1]) == 2 and ends[0][1][1] == pytest.approx(ends[1][1][1], rel=1e-3)
    with pytest.raises(ValueError, match="seed 0"):
        train.train(tmp_path / "whole", name, drawn, 1, "cpu", whole)
