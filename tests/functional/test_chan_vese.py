import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.segmentation import chan_vese as skimage_chan_vese

from lsseg.functional import blocks, chan_vese_evolve, curvature, tsdf

_spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("chan_vese_reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


@pytest.fixture(params=["objects", "small blocks", "whole tensors"])
def _way(request, monkeypatch):
    """Object by object as on a CPU, a few at a time, and as on other devices."""
    if request.param == "small blocks":
        monkeypatch.setattr(blocks, "CACHE_ELEMENTS", 2 * 3 * 5 * 8)
    if request.param == "whole tensors":
        monkeypatch.setattr(blocks, "in_cache", lambda device: False)


def problem(objects=3, groups=3, depth=3, size=(5, 8), steps=3, seed=0, dtype=torch.float64):
    """φ, features and hyperparameters, random."""
    g = torch.Generator().manual_seed(seed)

    def positive(*shape):
        return (2 * torch.rand(shape, generator=g, dtype=torch.float64) + 0.05).to(dtype)

    phi = torch.randn(objects, *size, generator=g, dtype=torch.float64).to(dtype)
    features = torch.randn(groups, depth, *size, generator=g, dtype=torch.float64).to(dtype)
    weights = [positive(objects) for _ in range(3)]
    return [phi, features, *weights, positive(objects, steps), positive(objects, steps)]


def disc(size=56, radius=15, reach=7.0):
    x = torch.arange(size) - size / 2 + 0.5
    return tsdf(torch.hypot(x, x[:, None]) < radius, reach)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("delta", ["printed", "derivative"])
@pytest.mark.parametrize(("objects", "groups"), [(3, 3), (4, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize("size", [(5, 8), (9, 4), (1, 7), (6, 1), (1, 1)])
def test_is_the_textbook_evolution(objects, groups, size, delta):
    inputs = problem(objects, groups, size=size)
    ours = chan_vese_evolve(*inputs, delta=delta)
    phi, features, lambda1, lambda2, mu, epsilon, dt = (x.numpy() for x in inputs)
    for m in range(objects):
        theirs = reference.evolve(
            phi[m],
            features[m // (objects // groups)],
            lambda1[m],
            lambda2[m],
            mu[m],
            epsilon[m],
            dt[m],
            delta,
        )
        np.testing.assert_allclose(ours[m].numpy(), theirs, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.tuples(st.integers(1, 13), st.integers(1, 13)),
    st.integers(0, 5),
    st.integers(0, 99),
)
def test_is_the_textbook_evolution_of_anything(objects, depth, size, steps, seed):
    inputs = problem(objects, objects, depth, size, steps, seed)
    arrays = [x.numpy() for x in inputs]
    theirs = [reference.evolve(*(x[m] for x in arrays)) for m in range(objects)]
    np.testing.assert_allclose(chan_vese_evolve(*inputs).numpy(), np.stack(theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("delta", ["printed", "derivative"])
@pytest.mark.parametrize(("objects", "groups"), [(2, 2), (4, 2)])
def test_gradients_of_everything(objects, groups, delta):
    inputs = [x.requires_grad_() for x in problem(objects, groups, 2, (4, 5), 3)]
    assert torch.autograd.gradcheck(lambda *x: chan_vese_evolve(*x, delta=delta, eta=0.1), inputs)


def test_gradients_without_the_features():
    phi, features, *numbers = problem()
    phi.requires_grad_()
    evolved = chan_vese_evolve(phi, features, *numbers)
    (gradient,) = torch.autograd.grad(evolved.sum(), phi)
    assert gradient.shape == phi.shape
    evolved = chan_vese_evolve(phi, features, *numbers)
    (by_phi,) = torch.autograd.grad(evolved.square().sum(), phi, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        by_phi.sum().backward()


def test_custom_operators_are_well_formed():
    phi, features, *numbers = problem()
    numbers = torch.cat([torch.stack(numbers[:3], 1), *numbers[3:]], 1)[:, None]
    inputs = (phi[:, None].clone().requires_grad_(), features.requires_grad_(), numbers.clone().requires_grad_())
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.lsseg.chan_vese.default, (*inputs, True, 0.03, 1, False), test_utils=tests)


def test_compiles_whole():
    inputs = [x.requires_grad_() for x in problem()]
    whole = torch.compile(chan_vese_evolve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*inputs), chan_vese_evolve(*inputs))
    ours, theirs = (torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (chan_vese_evolve, whole))
    torch.testing.assert_close(ours, theirs)


def test_curvature_of_a_cone_and_of_a_plane():
    x = torch.arange(-20.0, 21.0, dtype=torch.float64)
    radius = torch.hypot(x, x[:, None])
    far = (radius > 6) & (radius < 18)
    torch.testing.assert_close(curvature(-radius, 1e-6)[far], -1 / radius[far], rtol=0.02, atol=0)
    slope = (2 * x + x[:, None])[None]
    torch.testing.assert_close(curvature(slope)[:, 2:-2, 2:-2], torch.zeros(1, 37, 37, dtype=torch.float64))
    assert not curvature(torch.ones(3, 4)).any()


def test_curvature_is_sobel_and_differentiable():
    phi = problem(size=(7, 10))[0]
    theirs = np.stack([reference.curvature(plane, 0.05) for plane in phi.numpy()])
    np.testing.assert_allclose(curvature(phi, 0.05).numpy(), theirs, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: curvature(x, 0.1), phi[:, :4, :3].requires_grad_())


def shapes():
    """Exactly clipped normalised distances at the size and truncation of the paper's heads."""
    square, corner = torch.zeros(2, 112, 112, dtype=torch.bool)
    square[30:80, 24:88] = True
    corner[:40, :50] = True
    return {"disc": disc(112, 30, 14.0), "square": tsdf(square, 14.0), "corner": tsdf(corner, 14.0)}


def gains(phi, mu, dt, eta=0.03):
    """Of ∂φᴺ/∂φ⁰, N = 3: how much a random gradient grows on its way back, and the largest singular value."""
    g = torch.Generator().manual_seed(1)
    features = F.interpolate(torch.randn(1, 16, 14, 14, generator=g), phi.shape[1:], mode="bicubic").double() / 4
    one, steps = torch.ones(1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)

    def evolve(x):
        return chan_vese_evolve(x, features, one, one, mu * one, steps, dt * steps, eta=eta)

    start = phi.double().requires_grad_()
    evolved = evolve(start)

    def back(gradient):
        return torch.autograd.grad(evolved, start, gradient, retain_graph=True)[0]

    v = torch.randn(start.shape, generator=g, dtype=torch.float64)
    typical = float(back(v).norm() / v.norm())
    largest = 0.0
    for _ in range(40):  # power iteration on JᵀJ, with Jv by differences
        v = v / v.norm()
        with torch.no_grad():
            ahead = (evolve(start + 1e-6 * v) - evolve(start - 1e-6 * v)) / 2e-6
        largest = float(ahead.norm())
        v = back(ahead)
    return typical, largest


@pytest.mark.parametrize("shape", ["disc", "square", "corner"])
def test_gradient_gain_on_a_clipped_distance_is_small(shape):
    phi = shapes()[shape][None]
    typical, _ = gains(phi, mu=1.0, dt=1.0)
    assert typical < 30
    _, largest = gains(phi, mu=0.25, dt=1.0)  # where the heads start
    assert largest < 30
    typical, _ = gains(phi, mu=1.0, dt=1.0, eta=1e-4)
    assert typical > 1e4  # what η is there to prevent


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e4, -1e4])
def test_flat_phi_and_constant_features_stay_finite(value):
    phi, features, *numbers = problem(dtype=torch.float32)
    phi = torch.full_like(phi, value).requires_grad_()
    features = torch.full_like(features, 3.0).requires_grad_()
    numbers = [x.requires_grad_() for x in numbers]
    evolved = chan_vese_evolve(phi, features, *numbers)
    gradients = torch.autograd.grad(evolved.square().sum(), [phi, features, *numbers])
    assert all(bool(x.isfinite().all()) for x in (evolved, *gradients))
    torch.testing.assert_close(evolved, phi, rtol=1e-3, atol=1e-3)  # nothing pulls anywhere


@pytest.mark.parametrize("epsilon", [1e-4, 2.0])
@pytest.mark.parametrize("full", [True, False])
def test_empty_and_full_masks_stay_finite(full, epsilon):
    phi, features, *numbers = problem(dtype=torch.float32)
    mask = torch.full(phi.shape, full)
    phi = tsdf(mask, 14.0).requires_grad_()
    numbers[3] = torch.full_like(numbers[3], epsilon)
    leaves = [phi, features.requires_grad_(), *(x.requires_grad_() for x in numbers)]
    evolved = chan_vese_evolve(*leaves)
    gradients = torch.autograd.grad(evolved.square().sum(), leaves)
    assert all(bool(x.isfinite().all()) for x in (evolved, *gradients))


def test_bfloat16_autocast_computes_in_float32():
    phi, features, *numbers = problem(dtype=torch.float32)
    exact = chan_vese_evolve(phi, features.bfloat16().float(), *numbers)
    half = features.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evolved = chan_vese_evolve(phi, half, *numbers)
    assert evolved.dtype == torch.float32
    torch.testing.assert_close(evolved, exact, rtol=0, atol=0)
    evolved.sum().backward()
    assert half.grad.dtype == torch.bfloat16
    assert bool(half.grad.isfinite().all())


def test_float32_is_close_to_float64():
    single = chan_vese_evolve(*problem(depth=32, size=(28, 28), dtype=torch.float32))
    torch.testing.assert_close(
        single.double(), chan_vese_evolve(*problem(depth=32, size=(28, 28))), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("way", ["float32", "autocast"])
def test_what_features_have_in_common_costs_no_accuracy(offset, scale, stride, way):
    """The error is that of rounding the features themselves, at any offset and scale."""
    phi, _, *numbers = problem(objects=4, groups=2, size=(14, 19))
    g = torch.Generator().manual_seed(5)
    variation = torch.randn(2, 6, -(-14 // stride), -(-19 // stride), generator=g, dtype=torch.float64)
    features = (scale * (variation + offset)).float()  # what float32 holds is what both are given
    numbers = [numbers[0] / scale**2, numbers[1] / scale**2, *numbers[2:]]
    exact = chan_vese_evolve(phi, features.double(), *numbers, stride=stride)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        ours = chan_vese_evolve(phi.float(), features, *[x.float() for x in numbers], stride=stride)
    assert (exact - phi).abs().max() > 1
    torch.testing.assert_close(ours.double(), exact, rtol=2e-4, atol=2e-4)


def test_an_offset_changes_no_gradient():
    inputs = [x.requires_grad_() for x in problem(objects=4, groups=2)]
    weights = torch.randn(4, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((chan_vese_evolve(*inputs) * weights).sum(), inputs)
    moved = [inputs[0], inputs[1] + 100, *inputs[2:]]
    shifted = torch.autograd.grad((chan_vese_evolve(*moved) * weights).sum(), inputs)
    for one, other in zip(found, shifted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_numbers_serve_all_objects_and_iterations():
    phi, features, *_ = problem(objects=3)
    full = lambda x, *shape: torch.full(shape, x, dtype=torch.float64)  # noqa: E731
    expected = chan_vese_evolve(
        phi, features, full(0.7, 3), full(1.2, 3), full(0.2, 3), full(0.8, 3, 4), full(0.5, 3, 4)
    )
    given = {"mu": 0.2, "epsilon": 0.8, "dt": 0.5}
    torch.testing.assert_close(chan_vese_evolve(phi, features, 0.7, 1.2, **given, steps=4), expected)
    mixed = chan_vese_evolve(
        phi, features, full(0.7, 3), torch.tensor(1.2, dtype=torch.float64), 0.2, full(0.8, 3, 4), 0.5
    )
    torch.testing.assert_close(mixed, expected)
    for wrong, message in (
        ({}, "steps must be set, unless epsilon or dt is"),
        ({"steps": -1}, "steps must be at least 0, not -1"),
        ({"steps": 3, "dt": full(0.5, 3, 4)}, "steps must be 4, the N of epsilon and dt, not 3"),
    ):
        with pytest.raises(ValueError, match=message):
            chan_vese_evolve(phi, features, 0.7, 1.2, **{**given, **wrong})
    learnt = torch.tensor(0.5, requires_grad=True)
    chan_vese_evolve(phi, features, dt=learnt, steps=2).sum().backward()
    assert learnt.grad


def test_no_objects_and_no_iterations():
    phi, features, *numbers = problem(steps=0)
    torch.testing.assert_close(chan_vese_evolve(phi, features, *numbers), phi)
    inputs = [x[:0].requires_grad_() for x in problem()]
    evolved = chan_vese_evolve(*inputs)
    assert evolved.shape == (0, 5, 8)
    assert all(x.shape[0] == 0 for x in torch.autograd.grad(evolved.sum(), inputs))


def test_wrong_input_is_refused():
    phi, features, *numbers = problem()
    for bad, match in (
        ([phi, features[:2], *numbers], "multiple of G"),
        ([phi[0], features, *numbers], "M×H×W"),
        ([phi, features[..., 1:], *numbers], "M×D×H×W"),
        ([phi, features, numbers[0][:1], *numbers[1:]], "lambda1"),
        ([phi, features, *numbers[:4], numbers[4][:, :1]], "epsilon and dt"),
        ([phi.long(), features, *numbers], "floating"),
    ):
        with pytest.raises(ValueError, match=match):
            chan_vese_evolve(*bad)
    with pytest.raises(ValueError, match="epsilon must be positive, not 0"):
        chan_vese_evolve(phi, features, *numbers[:3], 0, steps=2)
    with pytest.raises(ValueError, match="delta"):
        chan_vese_evolve(phi, features, *numbers, delta="sharp")
    with pytest.raises(ValueError, match="eta"):
        chan_vese_evolve(phi, features, *numbers, eta=0.0)
    with pytest.raises(ValueError, match="eta"):
        curvature(phi, 0.0)
    with pytest.raises(ValueError, match="floating"):
        curvature(phi.long())


def two_regions(size=64, seed=0):
    """A bright, lobed region on a dark ground, with noise."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle, radius = np.arctan2(y, x - 0.05), np.hypot(y, x - 0.05)
    truth = radius < 0.28 + 0.06 * np.cos(4 * angle)
    return truth, np.where(truth, 0.7, 0.3) + 0.08 * g.standard_normal((size, size))


def test_finds_the_regions_that_scikit_image_finds():
    truth, image = two_regions()
    theirs = skimage_chan_vese(image, mu=0.05, max_num_iter=300, init_level_set="disk", tol=1e-5)
    theirs = theirs if theirs[32, 32] else ~theirs
    features = torch.from_numpy((image - image.min()) / np.ptp(image))[None, None].float()
    one, many = torch.ones(1), torch.ones(1, 200)
    start = disc(64, 12, 14.0)[None]
    evolved = chan_vese_evolve(start, features, 2 * one, 2 * one, 0.25 * one, many, 2 * many)
    ours = (evolved[0] > 0).numpy()
    assert (ours != theirs).mean() < 0.002
    assert (ours != truth).mean() < 0.002
