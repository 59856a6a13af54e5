"""Features of a stride: the same as enlarging them first, without doing so."""

import pytest
import torch
import torch.nn.functional as F

from lsseg.functional import blocks, chan_vese_evolve
from lsseg.functional.grid import FeatureGrid


@pytest.fixture(params=["in a cache", "whole tensors"])
def _way(request, monkeypatch):
    if request.param == "whole tensors":
        monkeypatch.setattr(blocks, "in_cache", lambda device: False)


def enlarged(cells, size, stride):
    return F.interpolate(cells, scale_factor=stride, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]


def problem(size, stride, objects=4, groups=4, depth=3, steps=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    cells = [-(-side // stride) for side in size]
    phi = torch.randn(objects, *size, generator=g, dtype=torch.float64)
    features = torch.randn(groups, depth, *cells, generator=g, dtype=torch.float64)
    numbers = [torch.rand(objects, generator=g, dtype=torch.float64) + 0.3 for _ in range(3)]
    steps = [torch.rand(objects, steps, generator=g, dtype=torch.float64) + 0.3 for _ in range(2)]
    return [phi, features, *numbers, *steps]


SIZES = [((8, 12), 4), ((7, 5), 2), ((9, 3), 4), ((1, 6), 2), ((5, 4), 8), ((6, 6), 3), ((3, 4), 1)]


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_products_sums_and_squares_are_those_of_the_enlarged_features(size, stride):
    _, f, *_ = problem(size, stride)
    whole, grid = enlarged(f, size, stride).flatten(2), FeatureGrid(f, size, stride)
    vectors, constant, weights = torch.randn(4, 5, 3).double(), torch.randn(4, 5, 1).double(), torch.rand(4, 5, *size)
    weights = weights.double().flatten(2)
    torch.testing.assert_close(grid.times(vectors, constant, 2), constant + 2 * vectors @ whole)
    torch.testing.assert_close(grid.drawn(weights), weights @ whole.mT)
    torch.testing.assert_close(grid.energy(), whole.square().sum(1, keepdim=True))


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_evolution_and_its_gradients_are_those_on_enlarged_features(size, stride, groups):
    inputs = [x.requires_grad_() for x in problem(size, stride, groups=groups)]
    phi, features, *numbers = inputs
    ours = chan_vese_evolve(*inputs, stride=stride)
    theirs = chan_vese_evolve(phi, enlarged(features, size, stride), *numbers)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    seed = torch.randn_like(ours)
    for one, two in zip(*(torch.autograd.grad(x, inputs, seed) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in problem((5, 7), 2, objects=2, groups=1)]
    assert torch.autograd.gradcheck(lambda *x: chan_vese_evolve(*x, eta=0.1, stride=2), inputs)


def test_single_precision_is_close_to_double():
    inputs = problem((56, 56), 4, depth=32)
    single = chan_vese_evolve(*(x.float() for x in inputs), stride=4)
    torch.testing.assert_close(single.double(), chan_vese_evolve(*inputs, stride=4), rtol=1e-4, atol=1e-4)


def test_compiles_whole():
    inputs = problem((8, 8), 4)
    whole = torch.compile(chan_vese_evolve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*inputs, stride=4), chan_vese_evolve(*inputs, stride=4))


@pytest.mark.parametrize(("stride", "match"), [(0, "stride must be at least 1"), (3, "features M×D×H×W of stride 3")])
def test_wrong_strides_are_named(stride, match):
    with pytest.raises(ValueError, match=match):
        chan_vese_evolve(*problem((8, 12), 4), stride=stride)
