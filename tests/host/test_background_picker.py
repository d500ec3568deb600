"""Background Picker passes on the candidate of the index."""

import pytest
import torch

from comfy_host import Graph, output, refused


def pick(images: torch.Tensor, index: int) -> dict:
    graph = Graph()
    link = graph.add("PnPMixBackgroundPicker", images=images, index=index)
    return graph.run(image=link, index=output(link, 1))


def test_the_chosen_one_and_its_place():
    images = torch.rand(3, 8, 8, 3)
    for index in range(3):
        picked = pick(images, index)
        assert torch.equal(picked["image"], images[index : index + 1])
        assert picked["index"] == index


def test_index_out_of_range_names_the_size_of_the_batch():
    with refused("Background Picker, input 'index'", "3 is not in the batch of 3", "Choose 0 to 2"):
        pick(torch.rand(3, 8, 8, 3), 3)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 0, 8, 3), (8, 8, 3), (2, 8, 8, 1)])
def test_what_holds_no_color_pictures_is_refused(shape):
    with refused("Background Picker, input 'images'", "Wire"):
        pick(torch.rand(shape), 0)


def test_half_precision_pictures_are_passed_on_as_they_are():
    images = torch.rand(2, 8, 8, 3).half()
    assert torch.equal(pick(images, 1)["image"], images[1:])
