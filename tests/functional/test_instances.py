import numpy as np
import pytest
import torch

from lsseg.functional import blocks, signed_distance
from lsseg.functional import instances as boxes_module
from lsseg.functional.instances import crop_objects, paste_masks, subpixel_contours


def scene(size=(40, 60)):
    """Two touching discs and a thin bar in one layer, an overlapping square in another."""
    y, x = np.mgrid[: size[0], : size[1]]
    one, two = np.zeros(size, np.int32), np.zeros(size, np.int32)
    one[np.hypot(y - 15, x - 15) < 9] = 1
    one[np.hypot(y - 15, x - 34) < 10] = 2
    one[30:32, 5:50] = 3
    two[10:25, 20:30] = 4
    return torch.from_numpy(np.stack([one, two])), torch.tensor([0, 0, 0, 1])


@pytest.fixture(params=["one by one", "all at once"], autouse=True)
def _way(request, monkeypatch):
    """As on a CPU, and as on other devices."""
    if request.param == "all at once":
        monkeypatch.setattr(blocks, "in_cache", lambda device: False)
        monkeypatch.setattr(boxes_module, "AT_ONCE", 2 * 40 * 60)


def mask_of(layers, layer, k):
    return layers[layer[k]] == k + 1


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.4), (-2.5, 1.2)])
def test_cut_out_and_pasted_back_an_object_stays_where_it_was(shift):
    layers, layer = scene()
    for k in range(4):
        mask = mask_of(layers, layer, k)
        places = mask.nonzero()
        (top, left), (bottom, right) = places.min(0).values.tolist(), (places.max(0).values + 1).tolist()
        box = torch.tensor([[left - 3.0, top - 3.0, right + 3.0, bottom + 3.0]]) + torch.tensor([[*shift, *shift]])
        cover = crop_objects(layers, layer, torch.tensor([k]), box, 112)
        phi = signed_distance(cover >= 0.5, 14.0)
        pasted = paste_masks(phi, box, (40, 60))[0]
        assert (pasted ^ mask).sum() <= 0.02 * mask.sum()  # no pixel, or one on a slanted edge


def test_cover_is_the_share_of_each_cell():
    layers = torch.zeros(1, 6, 8, dtype=torch.int32)
    layers[0, :, 3:] = 1
    box = torch.tensor([[0.0, 0.0, 8.0, 6.0]])
    cover = crop_objects(layers, torch.tensor([0]), torch.tensor([0]), box, 4)[0]
    torch.testing.assert_close(cover, torch.tensor([[0.0, 0.5, 1.0, 1.0]]).expand(4, 4), atol=0.26, rtol=0)
    assert crop_objects(layers, torch.tensor([0]), torch.zeros(0, dtype=torch.long), box[:0], 28).shape == (0, 28, 28)


@pytest.mark.parametrize(
    "box", [(-5.0, -4.0, 4.0, 3.0), (55.0, 30.0, 70.0, 50.0), (7.2, 7.3, 7.4, 7.6), (10.0, 10.0, 10.0, 10.0)]
)
def test_boxes_over_the_edge_and_tiny_ones_are_pasted(box):
    pasted = paste_masks(torch.ones(1, 28, 28), torch.tensor([box]), (40, 60))
    assert pasted.any()
    ys, xs = pasted[0].nonzero(as_tuple=True)
    assert xs.min() >= round(box[0]) - 1
    assert ys.max() <= max(round(box[3]), round(box[1]) + 1)


def test_nothing_to_paste():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)).shape == (0, 5, 6)


def test_contours_lie_on_the_objects_edge():
    x = (np.arange(56) + 0.5) / 56 * 20
    phi = 6 - np.hypot(x[:, None] - 10, x - 10)  # a disc of radius 6 around (10, 10) of a box of 20×20
    (contour,) = subpixel_contours(phi, np.array([30.0, 40.0, 50.0, 60.0]))
    radius = np.hypot(contour[:, 0] - 40, contour[:, 1] - 50)
    assert np.abs(radius - 6).max() < 0.02
    assert (contour[0] == contour[-1]).all()


def test_a_contour_closes_at_the_edge_of_the_box_and_nothing_has_none():
    phi = np.ones((8, 8))
    phi[:, 5:] = -1
    (contour,) = subpixel_contours(phi, np.array([0.0, 0.0, 8.0, 8.0]))
    assert contour.min(0).tolist() == [0.0, 0.0]
    assert contour.max(0).tolist() == [5.0, 8.0]
    assert subpixel_contours(-np.ones((4, 4)), np.array([0.0, 0.0, 4.0, 4.0])) == []


def test_both_ways_paste_the_same(monkeypatch):
    g = torch.Generator().manual_seed(7)
    phi = torch.randn(40, 28, 28, generator=g)
    corners = torch.rand(40, 2, 2, generator=g) * torch.tensor([90.0, 60.0]) - 15
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes[:6] = boxes[:6].round() + 0.5  # edges at pixel centres
    expected = torch.nn.functional.grid_sample
    masks = []
    for cached in (True, False):
        monkeypatch.setattr(blocks, "in_cache", lambda device, cached=cached: cached)
        masks.append(paste_masks(phi, boxes, (40, 60)))
    assert torch.equal(*masks)
    # torch's own bilinear sampling at the centres of the pixels of a box.
    left, top, right, bottom = boxes[20].tolist()
    x, y = torch.arange(60) + 0.5, torch.arange(40) + 0.5
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
    low, high = torch.tensor([left, top]), torch.tensor([right, bottom])
    sampled = expected(
        phi[20][None, None], 2 * (grid - low) / (high - low) - 1, padding_mode="border", align_corners=False
    )[0, 0]
    inside = (x > left) & (x < right) & ((y > top) & (y < bottom))[:, None]
    assert torch.equal(masks[0][20], (sampled > 0) & inside)
