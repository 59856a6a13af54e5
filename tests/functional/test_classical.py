"""The classical Chan-Vese segmentation against scikit-image's, by the energy that both minimise."""

import numpy as np
import pytest
import torch
from skimage.segmentation import chan_vese

from lsseg.functional import chan_vese_energy, chan_vese_segment


def disc(size, noise, seed=0):
    """A grey disc with noise, in [0, 1]."""
    y, x = np.ogrid[: size[0], : size[1]]
    inside = (y - size[0] / 2) ** 2 + (x - 0.4 * size[1]) ** 2 < (min(size) / 3) ** 2
    values = 0.3 + 0.4 * inside + noise * np.random.default_rng(seed).standard_normal(size)
    return torch.from_numpy(np.clip(values, 0, 1)), torch.from_numpy(inside)


@pytest.mark.parametrize("mu", [0.05, 0.25])
@pytest.mark.parametrize("size", [(64, 64), (37, 90)])
def test_reaches_the_energy_of_scikit_image(size, mu):
    image, _ = disc(size, 0.15)
    theirs = torch.from_numpy(chan_vese(image.numpy(), mu=mu))
    ours = chan_vese_segment(image[None, None], mu=mu)[0] > 0
    energies = [chan_vese_energy(image[None, None], mask[None], mu) for mask in (ours, theirs)]
    assert energies[0] <= 1.001 * energies[1]


def test_the_energy_is_the_printed_one():
    image, inside = disc((20, 15), 0.1)
    other = torch.rand(3, 20, 15, dtype=torch.float64)
    mask = torch.stack([inside, torch.zeros_like(inside), other[0] > 0.5])
    found = chan_vese_energy(torch.stack([image, image, image])[:, None].expand(-1, 2, -1, -1), mask, 0.3, 2.0, 0.5)
    for energy, region in zip(found, mask.numpy(), strict=True):
        expected = 0.0
        for side, weight in ((region, 2.0), (~region, 0.5)):
            values = image.numpy()[side]
            expected += weight * 2 * ((values - values.mean()) ** 2).sum() if values.size else 0
        u = np.pad(region.astype(float), ((0, 1), (0, 1)), mode="edge")
        expected += 0.3 * np.hypot(np.diff(u, axis=1)[:-1], np.diff(u, axis=0)[:, :-1]).sum()
        assert float(energy) == pytest.approx(expected, rel=1e-12)


def test_noise_is_left_out_and_colours_count():
    image, inside = disc((60, 70), 0.2)
    colours = torch.stack([image, 1 - image, torch.full_like(image, 0.5)])
    mask = chan_vese_segment(colours[None], inside[None], mu=0.5)[0] > 0
    assert float((mask == inside).float().mean()) > 0.99


def test_a_mask_says_which_side_is_inside():
    image, inside = disc((40, 50), 0.05)
    both = chan_vese_segment(image.expand(2, 1, -1, -1), torch.stack([inside, ~inside]))
    torch.testing.assert_close((both > 0).float()[0], 1 - (both > 0).float()[1])


@pytest.mark.parametrize("fill", [True, False])
def test_one_colour_and_empty_masks_stay_as_they_are(fill):
    image = torch.full((1, 3, 9, 8), 0.5)
    mask = torch.full((1, 9, 8), fill)
    assert ((chan_vese_segment(image, mask) > 0) == fill).all()
    assert not (chan_vese_segment(image) > 0).any()
    assert chan_vese_segment(image[:0]).shape == (0, 9, 8)


def test_no_price_of_length_is_a_threshold():
    image, _ = disc((30, 30), 0.1)
    phi = chan_vese_segment(image[None, None], mu=0)
    low, high = image[phi[0] < 0], image[phi[0] > 0]
    assert low.max() <= high.min()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 4, 4)}, "images M×D×H×W"),
        ({"image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, "floating images"),
        ({"mask": torch.zeros(1, 4, 5, dtype=torch.bool)}, "mask M×H×W"),
        ({"mask": torch.zeros(1, 4, 4)}, "bool mask"),
        ({"mu": -1}, "mu must be"),
        ({"mu": float("nan")}, "mu must be"),
        ({"lambda1": 0}, "lambda1 must be positive"),
        ({"steps": -1}, "steps must not be negative"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        chan_vese_segment(**({"image": torch.rand(1, 3, 4, 4)} | change))
