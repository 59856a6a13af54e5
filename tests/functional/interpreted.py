"""Triton's kernels under Triton's interpreter against the whole-tensor form in float64; run by test_kernels.py."""

from functools import partial

import pytest
import torch

from lsseg.functional import (
    chan_vese_evolve,
    competition,
    cross_entropy_level_set,
    level_set_energy,
    multiphase_evolve,
    signed_distance,
)

# One pixel; less than a program's pixels; several programs for an image, the last of which is not full; many classes.
SHAPES = [(1, 2, 1, 1), (2, 4, 7, 11), (3, 21, 1, 9), (2, 5, 9, 37), (1, 150, 3, 3)]
LARGE = [(1, 301, 1, 5)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_agrees(function, *inputs, rtol=2e-5, atol=2e-6):
    """Values and gradients in float32 by the kernels, and in float64 without them."""
    weights, results = None, []
    for kernels, dtype in (("torch", torch.float64), ("triton", torch.float32)):
        own = [x.detach().to(dtype, copy=True).requires_grad_() for x in inputs]
        out = function(*own, kernels=kernels)
        outs = out if isinstance(out, tuple) else (out,)
        weights = weights or [torch.randn(x.shape, generator=generator(9), dtype=torch.float64) for x in outs]
        sum((x * w.to(dtype)).sum() for x, w in zip(outs, weights, strict=True)).backward()
        results.append([*(x.detach().double() for x in outs), *(x.grad.double() for x in own)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


slow = pytest.mark.slow  # of many numbers; the interpreter takes seconds for them


@pytest.mark.parametrize("kind", ["hf", "ahf", "mahf", "ramp"])
@pytest.mark.parametrize("shape", [*SHAPES, *(pytest.param(shape, marks=slow) for shape in LARGE)])
def test_level_set_loss(shape, kind):
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator())
    target[torch.rand(target.shape, generator=generator(1)) < 0.2] = 999
    logits = 2 * torch.randn(shape, generator=generator(2))
    for reduction in ("mean", "log"):
        options = {"kind": kind, "ignore_index": 999, "reduction": reduction}
        assert_agrees(partial(cross_entropy_level_set, target=target, **options), logits)
        assert_agrees(partial(level_set_energy, target=target, **options), logits)


@pytest.mark.parametrize("reduction", ["balanced", "sum", "none"])
def test_reductions(reduction):
    logits = torch.randn(2, 3, 5, 7, generator=generator())
    target = torch.randint(0, 2, (2, 5, 7), generator=generator(1))  # the images lack a class
    assert_agrees(partial(level_set_energy, target=target, reduction=reduction), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_and_channels_last(layout, dtype):
    logits = torch.randn(2, 5, 6, 9, generator=generator()).to(dtype).contiguous(memory_format=layout)
    target = torch.randint(0, 5, (2, 6, 9), generator=generator(1))
    target[0, :2] = 255
    expected = logits.double().requires_grad_()
    sum(cross_entropy_level_set(expected, target, kernels="torch")).backward()
    found = logits.clone(memory_format=layout).requires_grad_()
    losses = cross_entropy_level_set(found, target.to(torch.uint8), kernels="triton")
    sum(losses).backward()
    assert losses[0].dtype == torch.float32
    assert found.grad.dtype == dtype
    assert found.grad.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-2, atol=1e-6)


# The interpreter computes with numpy, which warns where a void pixel holds nothing but NaN.
@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")
def test_void_and_degenerate_images():
    logits = torch.randn(2, 3, 4, 6, generator=generator())
    for target in (torch.full((2, 4, 6), 255), torch.full((2, 4, 6), 1)):
        assert_agrees(lambda x, kernels, y=target: cross_entropy_level_set(x, y, kernels=kernels), logits)
        assert_agrees(lambda x, kernels, y=target: cross_entropy_level_set(x, y, kernels=kernels), 1e4 * logits)
    target[:, 1] = 255
    wrong = logits.clone()
    wrong[:, :, 1] = torch.nan
    x = wrong.requires_grad_()
    losses = cross_entropy_level_set(x, target, kernels="triton")
    sum(losses).backward()
    assert torch.isfinite(torch.stack(losses)).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("classes", [3, 9])
def test_classes_that_cannot_be(classes):
    """Logits of -∞ are how networks rule classes out."""
    logits = torch.randn(2, classes, 4, 6, generator=generator())
    logits[:, :2] = -torch.inf
    target = torch.randint(2, classes, (2, 4, 6), generator=generator(1))
    assert_agrees(partial(cross_entropy_level_set, target=target), logits)


def test_a_label_that_names_no_class_makes_both_losses_no_number():
    target = torch.zeros(1, 4, 6, dtype=torch.long)
    target[0, 2, 3] = 7
    losses = cross_entropy_level_set(torch.randn(1, 3, 4, 6), target, kernels="triton")
    assert torch.isnan(torch.stack(losses)).all()


def test_the_same_input_gives_the_same_bits():
    logits = torch.randn(2, 5, 40, 30, generator=generator())
    target = torch.randint(0, 5, (2, 40, 30), generator=generator(1))
    first, second = (torch.stack(cross_entropy_level_set(logits, target, kernels="triton")) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("objects", "groups", "depth", "size", "stride", "delta"),
    [
        (2, 2, 5, (7, 9), 1, "printed"),
        pytest.param(4, 2, 3, (23, 12), 1, "derivative", marks=slow),  # two programs for each group
        pytest.param(2, 1, 70, (3, 12), 1, "printed", marks=slow),
        pytest.param(2, 1, 4, (1, 7), 1, "printed", marks=slow),
        pytest.param(1, 1, 2, (6, 1), 1, "derivative", marks=slow),
        (1, 1, 1, (1, 1), 1, "printed"),
        pytest.param(2, 1, 3, (11, 10), 4, "printed", marks=slow),
    ],
)
def test_chan_vese(objects, groups, depth, size, stride, delta):
    g = generator()
    numbers = [0.3 + torch.rand(shape, generator=g) for shape in [(objects,)] * 3 + [(objects, 2)] * 2]
    features = torch.randn(groups, depth, *(-(-side // stride) for side in size), generator=g) / 2
    phi = torch.randn(objects, *size, generator=g)
    options = {"delta": delta, "stride": stride}
    assert_agrees(
        lambda *x, kernels: chan_vese_evolve(*x, **options, kernels=kernels), phi, features, *numbers, atol=2e-5
    )


@pytest.mark.parametrize(
    ("shape", "epsilon", "normalize"),
    [
        ((2, 3, 7, 9), 1.0, "gradient"),
        pytest.param((1, 4, 13, 24), 1.0, "classes", marks=slow),  # two programs for each class
        pytest.param((1, 3, 13, 24), 0.0, "gradient", marks=slow),
        ((1, 2, 1, 9), 1.0, "gradient"),
        ((1, 2, 8, 1), 1.0, "classes"),
        ((1, 1, 1, 1), 1.0, "gradient"),
    ],
)
def test_multiphase(shape, epsilon, normalize):
    phi, log_f = (torch.randn(shape, generator=generator(seed)) for seed in range(2))
    phi[:, -1] -= 5 * (shape[1] > 2)  # a class that is nowhere the largest
    options = {"epsilon": epsilon, "steps": 2, "normalize": normalize, "eta": 0.1}
    assert_agrees(lambda *x, kernels: multiphase_evolve(*x, **options, kernels=kernels), phi, log_f)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 4, 4), (1, 19, 9, 31)])
def test_competition(shape):
    log_f = 2 * torch.randn(shape, generator=generator())
    if shape[1] > 2:
        log_f[:, 1, 1] = log_f[:, 2, 1]
        log_f[:, 0, 0] = -torch.inf
    for limit in (1.0, 9.0):
        assert_agrees(lambda x, kernels, limit=limit: competition(x, 0.3, limit, kernels), log_f)


@pytest.mark.parametrize("shape", [(2, 9, 23), (1, 1, 9), (2, 9, 1), (1, 1, 1)])
@pytest.mark.parametrize("share", [0.5, pytest.param(0.02, marks=slow), 0.0, pytest.param(1.0, marks=slow)])
def test_distances(shape, share):
    mask = torch.rand(shape, generator=generator()) < share
    for truncation in (0.5, 3.0, 10.0, None):
        assert torch.equal(signed_distance(mask, truncation, "triton"), signed_distance(mask, truncation, "torch"))
