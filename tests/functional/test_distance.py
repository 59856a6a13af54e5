import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lsseg.functional import signed_distance
from lsseg.functional.distance import windowed_signed_distance

SIZES = [(1, 1), (1, 9), (7, 1), (5, 23), (31, 18), (64, 64)]


def by_scipy(mask, limit):
    """The same by another library; masks without a contour, which it does not define, are set."""
    if mask.all() or not mask.any():
        return np.full(mask.shape, limit if mask.any() else -limit)
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    return np.clip(np.where(mask, inside - 0.5, 0.5 - outside), -limit, limit)


def masks(size, seed=0):
    g = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    blob = (rows - size[0] / 3) ** 2 + (columns - size[1] / 2) ** 2 < min(size) ** 2 / 5
    lone = np.zeros(size, bool)
    lone.flat[g.integers(lone.size)] = True
    return [blob, lone, ~lone, g.random(size) < 0.5, g.random(size) < 0.02, np.zeros(size, bool), np.ones(size, bool)]


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("truncation", [None, 0.3, 1.0, 3.7, 10.0, 500.0])
@pytest.mark.parametrize("size", SIZES)
def test_exact(size, truncation, windowed):
    mask = torch.from_numpy(np.stack(masks(size)))
    limit = truncation or sum(size)
    ours = windowed_signed_distance(mask, limit) if windowed else signed_distance(mask, truncation)
    assert ours.dtype == torch.float32
    theirs = np.stack([by_scipy(one, limit) for one in mask.numpy()])
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-7, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6), st.floats(0.4, 8.0))
def test_both_ways_agree(height, width, seed, truncation):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, height, width, generator=g) < 0.3
    torch.testing.assert_close(signed_distance(mask, truncation), windowed_signed_distance(mask, truncation))


def test_the_same_to_the_last_bit_wherever_it_lies_in_memory():
    mask = torch.rand(40, 52, generator=torch.Generator().manual_seed(0)) < 0.3
    first = signed_distance(mask, 10.0)
    keep = []
    for size in range(1, 60):
        keep.append(torch.empty(size))  # moves what is allocated next
        assert torch.equal(signed_distance(mask.clone(), 10.0), first)
    squared = (first.double().abs() + 0.5).square()
    inside = first.abs() < 10
    assert torch.equal(squared[inside].round().sqrt().float(), (first.abs() + 0.5)[inside])


def test_the_same_to_the_last_bit_in_a_large_image():
    mask = torch.zeros(900, 800, dtype=torch.bool)
    mask[::40, ::50] = True
    first = signed_distance(mask, 10.0)
    whole = (first.double().abs() + 0.5).square().round().sqrt().float()
    inside = first.abs() < 10
    assert inside.any()
    assert torch.equal(whole[inside], (first.abs() + 0.5)[inside])


def test_any_leading_dimensions():
    mask = torch.rand(2, 3, 8, 9) < 0.4
    together = signed_distance(mask, 4.0)
    assert together.shape == mask.shape
    assert torch.equal(together[1, 2], signed_distance(mask[1, 2], 4.0))


def test_half_a_pixel_beside_the_contour_and_swapping_sides_swaps_the_sign():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[:, :4] = True
    assert signed_distance(mask)[0].tolist() == [3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.5, -4.5]
    assert torch.equal(signed_distance(~mask), -signed_distance(mask))


@pytest.mark.parametrize(
    ("mask", "truncation", "message"),
    [
        (torch.zeros(3, 3), None, "bool"),
        (torch.zeros(3, dtype=torch.bool), None, "bool"),
        (torch.zeros(0, 3, dtype=torch.bool), None, "bool"),
        (torch.zeros(3, 3, dtype=torch.bool), 0.0, "truncation"),
        (torch.zeros(3, 3, dtype=torch.bool), -1.0, "truncation"),
        (torch.zeros(3, 3, dtype=torch.bool), float("inf"), "None does not clip"),
    ],
)
def test_bad_input(mask, truncation, message):
    with pytest.raises(ValueError, match=message):
        signed_distance(mask, truncation)
