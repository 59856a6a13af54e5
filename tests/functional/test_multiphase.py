import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lsseg.functional import (
    blocks,
    competition,
    largest_class,
    multiphase_evolve,
    partition_level_sets,
    regions,
    signed_distance,
)

_spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("multiphase_reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

WAYS = ["planes", "small blocks", "whole tensors"]


@pytest.fixture(params=WAYS)
def _way(request, monkeypatch):
    """Plane by plane as on a CPU, in blocks that cut through images, and as on other devices."""
    if request.param == "small blocks":
        monkeypatch.setattr(blocks, "CACHE_ELEMENTS", 40)
    if request.param == "whole tensors":
        monkeypatch.setattr(blocks, "in_cache", lambda device: False)


def random_fields(shape, seed=0, dtype=torch.float64):
    """φ and log f in which every class of every image is somewhere the largest."""
    g = torch.Generator().manual_seed(seed)
    phi, log_f = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    for label in range(shape[1]):
        y, x = divmod(label, shape[3])
        phi[:, label, y, x] = 4
    return phi.to(dtype), log_f.to(dtype)


def scene(classes, size, seed, sharpness=6.0):
    """Smooth random scores whose partition has a few regions of each class, B = 1."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, 4, 5, generator=g, dtype=torch.float64)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=True).mul(sharpness).softmax(1)


def evolve_scores(scores, **options):
    """What the layer does with scores."""
    region = regions(largest_class(scores), scores.shape[1])
    phi = partition_level_sets(scores, region, 10.0)
    return multiphase_evolve(phi, scores.log(), **options)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("normalize", ["gradient", "classes"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 7), (2, 3, 5, 3), (1, 5, 9, 14), (1, 4, 6, 1)])
def test_equals_the_equations_pixel_by_pixel(shape, normalize):
    phi, log_f = random_fields(shape)
    ours = multiphase_evolve(phi, log_f, 0.7, 0.4, 0.3, speed_limit=1.2, eta=0.1, normalize=normalize)
    for image in range(shape[0]):
        theirs = reference.step(phi[image].numpy(), log_f[image].numpy(), 0.7, 0.4, 0.3, 1.2, 0.1, normalize)
        np.testing.assert_allclose(ours[image].numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("epsilon", "steps"), [(0.0, 1), (0.7, 1), (0.7, 3)])
@pytest.mark.parametrize("normalize", ["gradient", "classes"])
def test_gradcheck(epsilon, steps, normalize):
    phi, log_f = (field.requires_grad_() for field in random_fields((1, 3, 4, 5)))

    def evolve(a, b):
        return multiphase_evolve(a, b, epsilon, 0.5, 0.4, steps, eta=0.3, normalize=normalize)

    assert torch.autograd.gradcheck(evolve, (phi, log_f))


@pytest.mark.usefixtures("_way")
def test_gradcheck_with_an_absent_class_that_has_to_be_held_under():
    phi, log_f = random_fields((1, 4, 3, 4))
    phi[:, 3] = phi[:, :3].amax(1) - 0.02  # the others fall below it
    phi, log_f = phi.requires_grad_(), log_f.requires_grad_()
    out = multiphase_evolve(phi, log_f, 0.5, eta=0.3)
    assert (out.argmax(1) != 3).all()
    assert (out[:, 3] != phi[:, 3]).any()
    assert torch.autograd.gradcheck(lambda a, b: multiphase_evolve(a, b, 0.5, eta=0.3), (phi, log_f))


def test_competition_gradcheck_and_reference():
    _, log_f = random_fields((2, 4, 3, 5))
    np.testing.assert_allclose(
        competition(log_f, 0.3, 0.8)[1].numpy(), reference.competition(log_f[1].numpy(), 0.3, 0.8), atol=1e-15
    )
    assert torch.autograd.gradcheck(lambda x: competition(x, 0.3, 0.8), log_f.requires_grad_())


def test_operators_are_well_formed():
    phi, log_f = random_fields((1, 3, 4, 5))
    present = torch.ones(1, 3, dtype=torch.bool)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        torch.ops.lsseg.multiphase_competition.default, (log_f.requires_grad_(), -0.7, 1.0, False), test_utils=tests
    )
    arguments = (phi.requires_grad_(), log_f.detach(), present, 1.0, 0.5, 0.1, False, False)
    torch.library.opcheck(torch.ops.lsseg.multiphase_step.default, arguments, test_utils=tests)


# --- invariants ------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 10**6)
harsh = st.sampled_from([1.0, 6.0, 60.0])


@settings(deadline=None, max_examples=25)
@given(seeds, harsh, st.integers(2, 6), st.integers(1, 4))
def test_every_pixel_has_one_label_and_absent_classes_stay_absent(seed, sharpness, classes, steps):
    scores = scene(classes, (13, 17), seed, sharpness)
    if seed % 2:  # noise instead of regions
        g = torch.Generator().manual_seed(seed)
        scores = (sharpness * torch.randn(1, classes, 13, 17, generator=g, dtype=torch.float64)).softmax(1)
    scores[:, seed % classes] *= 0.3 + 0.2 * (seed % 3)  # often absent, sometimes nearly there
    scores = scores / scores.sum(1, keepdim=True)
    phi = evolve_scores(scores, epsilon=1.5, steps=steps)
    probability = (phi / 0.1).softmax(1)
    assert torch.isfinite(phi).all()
    torch.testing.assert_close(probability.sum(1), torch.ones(1, 13, 17, dtype=torch.float64))
    assert set(phi.argmax(1).unique().tolist()) <= set(scores.argmax(1).unique().tolist())


@settings(deadline=None, max_examples=15)
@given(seeds, st.permutations(range(5)))
def test_permuting_the_classes_permutes_the_result(seed, order):
    scores = scene(5, (11, 14), seed)
    one, other = evolve_scores(scores, steps=2), evolve_scores(scores[:, order], steps=2)
    torch.testing.assert_close(one[:, order], other, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(0, 3), st.integers(0, 9), st.integers(0, 11), st.floats(0.01, 3.0))
def test_without_curvature_a_larger_score_never_lowers_its_probability(seed, label, y, x, rise):
    scores = scene(4, (10, 12), seed)
    logits = scores.log()
    logits[0, label, y, x] += rise
    raised = logits.softmax(1)
    if not torch.equal(raised.argmax(1), scores.argmax(1)):
        return  # the partition has changed
    before, after = ((evolve_scores(s, epsilon=0.0) / 0.1).softmax(1)[0, label, y, x] for s in (scores, raised))
    assert after >= before - 1e-12


def test_one_class_everywhere_evolves_to_itself():
    scores = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 8, 9)
    phi = partition_level_sets(scores, regions(largest_class(scores), 3))
    assert torch.equal(multiphase_evolve(phi, scores.log(), steps=7), phi)
    torch.testing.assert_close(phi[0, :, 0, 0], torch.tensor([0.7, -0.8, -0.9], dtype=torch.float64))


# --- analytic motion -------------------------------------------------------------------------------------------------


def disc(classes, soft, size=96, radius=30.0):
    """Level sets of a disc and its complement, scaled as the layer's; further classes are absent but have scores."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    inside = radius - torch.hypot(place[:, None], place)
    phi = torch.full((1, classes, size, size), -0.5, dtype=torch.float64)
    phi[0, 0] = signed_distance(inside > 0, 10.0) / 20
    phi[0, 1] = -phi[0, 0]
    if soft:
        g = torch.Generator().manual_seed(0)
        logits = F.avg_pool2d(torch.randn(1, classes, size + 8, size + 8, generator=g, dtype=torch.float64), 9, 1)
        logits[0, 0] += 3 + 1.5 * inside.clamp(-2, 2)
        logits[0, 1] += 3 - 1.5 * inside.clamp(-2, 2)
        phi += logits.softmax(1) - 0.5
    return phi


def radius_after(phi, time, **options):
    out = multiphase_evolve(phi, torch.zeros_like(phi), 1.0, 1.0, 0.5, round(time / 0.5), **options)
    return math.sqrt(float((out.argmax(1) == 0).sum()) / math.pi)


def test_a_disc_shrinks_at_the_analytic_rate():
    assert radius_after(disc(2, soft=False), 200) == pytest.approx(math.sqrt(900 - 2 * 200), rel=0.02)


def test_twenty_classes_smooth_as_two_do():
    two, twenty = (radius_after(disc(classes, soft=True), 200) for classes in (2, 20))
    assert twenty == pytest.approx(two, rel=0.02)
    printed = radius_after(disc(20, soft=True), 200, normalize="classes")
    assert printed > 28  # as printed a contour between two of twenty classes hardly moves


def test_a_front_moves_one_pixel_per_unit_time():
    row = torch.arange(60, dtype=torch.float64) - 19.5
    phi = torch.stack([-row, row]).view(1, 2, 1, 60).repeat(1, 1, 3, 1)
    log_f = torch.tensor([0.0, -9.0], dtype=torch.float64).view(1, 2, 1, 1).expand_as(phi)
    out = multiphase_evolve(phi, log_f, 0.0, 0.5, 0.5, 20, speed_limit=0.5)
    # Class 0 advances and class 1 retreats, both at ½: the contour moves by 5 in a time of 10.
    assert (out.argmax(1) == 0).sum(2).unique().tolist() == [25]


def test_the_contour_arrives_where_the_likelihood_is_and_phi_stays_bounded():
    size = 48
    place = torch.arange(size, dtype=torch.float64)
    square = ((place[:, None] - 18).abs() < 9) & ((place - 18).abs() < 9)
    moved = square.roll((6, 8), (0, 1))
    start = torch.stack([~square, square])[None]
    truth = torch.stack([~moved, moved])[None].double()
    phi = signed_distance(start, 10.0).double() / 20
    out = multiphase_evolve(phi, (0.9 * truth + 0.05).log(), epsilon=0.2, steps=120)
    assert phi.abs().max() <= 0.5 < 10 * phi.abs().max()
    assert out.abs().max() < 10
    assert ((out.argmax(1) == 1) == moved).double().mean() > 0.98


def test_the_gradient_gain_stays_small():
    scores = scene(6, (40, 40), 3, sharpness=20.0).requires_grad_()
    phi = partition_level_sets(scores, regions(largest_class(scores), 6))
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(phi.shape, generator=g, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((multiphase_evolve(phi, torch.zeros_like(phi), rho=1.0) * weight).sum(), scores)
    assert gradient.norm() / weight.norm() < 5


# --- edges of the input ----------------------------------------------------------------------------------------------


def test_likelihoods_of_exactly_zero_and_one():
    g = torch.Generator().manual_seed(0)
    hard = torch.eye(3, dtype=torch.float64)[torch.randint(0, 3, (6, 7), generator=g)].permute(2, 0, 1)[None]
    phi = partition_level_sets(hard, hard > 0).requires_grad_()
    log_f = hard.log().requires_grad_()
    assert log_f.isinf().any()
    out = multiphase_evolve(phi, log_f)
    out.square().sum().backward()
    for values in (out, phi.grad, log_f.grad):
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    phi, log_f = random_fields((1, 3, 6, 7), dtype=dtype)
    out = multiphase_evolve(phi, log_f)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, multiphase_evolve(phi.float(), log_f.float()))


def test_large_gradients_do_not_overflow():
    """As those of a loss scaler; where a level set is at a local extremum its upwind norm is 0."""
    phi, log_f = (field.requires_grad_() for field in random_fields((1, 3, 8, 8), dtype=torch.float32))
    (multiphase_evolve(phi, log_f) * 65536.0 * 100).sum().backward()
    assert torch.isfinite(phi.grad).all()
    assert torch.isfinite(log_f.grad).all()


def test_bounded_over_many_steps_at_the_limit_of_stability():
    scores = scene(5, (20, 24), 1, sharpness=60.0)
    scores[:, 0] *= 0.01
    scores = (scores / scores.sum(1, keepdim=True)).float()
    phi = evolve_scores(scores, epsilon=2.0, steps=60)
    assert phi.abs().max() < 20
    assert set(phi.argmax(1).unique().tolist()) <= set(scores.argmax(1).unique().tolist())


def test_no_steps_change_nothing():
    phi, log_f = random_fields((1, 2, 4, 4))
    assert torch.equal(multiphase_evolve(phi, log_f, steps=0), phi)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, "epsilon"),
        ({"rho": 0.0}, "rho"),
        ({"rho": 1.5}, "rho"),
        ({"dt": 0.0}, "dt"),
        ({"dt": 0.6}, "dt"),
        ({"speed_limit": 2.0}, "speed_limit"),
        ({"epsilon": 2.1}, "epsilon"),
        ({"steps": -1}, "steps"),
        ({"eta": 0.0}, "eta"),
        ({"normalize": "nothing"}, "normalize"),
    ],
)
def test_bad_options(options, message):
    phi, log_f = random_fields((1, 2, 4, 4))
    with pytest.raises(ValueError, match=message):
        multiphase_evolve(phi, log_f, **options)


def test_shapes_that_do_not_fit():
    phi, log_f = random_fields((1, 2, 4, 4))
    with pytest.raises(ValueError, match="one shape"):
        multiphase_evolve(phi, log_f[:, :1])
    with pytest.raises(ValueError, match="floating"):
        multiphase_evolve(phi.long(), log_f)


def test_threads_have_images_of_their_own_and_change_nothing():
    phi, log_f = (torch.randn(3, 4, 9, 14, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    phi[1, 2] -= 9  # a class that one image lacks
    own, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            inputs = [x.clone().requires_grad_() for x in (phi, log_f)]
            out = multiphase_evolve(*inputs, steps=2)
            out.square().sum().backward()
            found.append([out.detach(), *(x.grad for x in inputs)])
    finally:
        torch.set_num_threads(own)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))
