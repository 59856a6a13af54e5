import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lsseg.bench import textbook
from lsseg.functional import blocks, cross_entropy_level_set, dirac, heaviside, level_set_energy, level_set_labels

_spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

KINDS = ("hf", "ahf", "mahf", "ramp")
SHAPES = [(1, 2, 1, 1), (1, 2, 5, 3), (2, 4, 7, 11), (3, 21, 1, 9), (1, 3, 33, 2)]


def example(shape, seed=0, void=0.2, dtype=torch.float64, scale=1.0):
    """Random logits and labels, some of them void."""
    g = torch.Generator().manual_seed(seed)
    images, classes, height, width = shape
    logits = scale * torch.randn(shape, generator=g, dtype=torch.float64)
    target = torch.randint(0, classes, (images, height, width), generator=g)
    target[torch.rand(target.shape, generator=g) < void] = 255
    return logits.to(dtype), target


@pytest.fixture(params=[2**19, 40], ids=["one block", "many blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("reduction", ["mean", "balanced", "log", "sum"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_equals_the_textbook_form(shape, kind, reduction):
    logits, target = example(shape)
    ours = level_set_energy(logits, target, 0.05, kind, reduction=reduction)
    theirs = reference.batch_energy(logits.numpy(), target.numpy(), 0.05, kind, reduction=reduction)
    assert ours.dtype == torch.float64
    assert float(ours) == pytest.approx(theirs, rel=1e-12, abs=1e-13)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_gradient_equals_autograd_through_the_textbook_form(shape, kind):
    logits, target = example(shape)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    level_set_energy(ours, target, 0.1, kind).backward()
    textbook.level_set_energy(theirs, target, 0.1, kind).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "balanced", "log", "sum"])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_gradcheck(kind, reduction):
    logits, target = example((2, 3, 4, 3))

    def both(x):
        return cross_entropy_level_set(x, target, 0.2, kind, reduction=reduction)

    assert torch.autograd.gradcheck(both, logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: level_set_energy(x, target, 0.2, kind), logits)


def test_the_step_function_passes_no_gradient():
    logits, target = example((1, 3, 5, 5))
    level_set_energy(logits.requires_grad_(), target, kind="hf").backward()
    assert not logits.grad.any()


def test_fused_cross_entropy_is_torchs():
    logits, target = example((2, 5, 9, 7), scale=5)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, _ = cross_entropy_level_set(ours, target)
    expected = F.cross_entropy(theirs, target, ignore_index=255)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_fused_gradients_of_the_terms_are_independent():
    logits, target = example((2, 4, 6, 5))
    x = logits.clone().requires_grad_()
    (energy_only,) = torch.autograd.grad(level_set_energy(x, target), x)
    (entropy_only,) = torch.autograd.grad(F.cross_entropy(x, target, ignore_index=255), x)
    cross_entropy, energy = cross_entropy_level_set(x, target)
    (mixed,) = torch.autograd.grad(0.3 * cross_entropy + 2 * energy, x, retain_graph=True)
    torch.testing.assert_close(mixed, 0.3 * entropy_only + 2 * energy_only)
    (alone,) = torch.autograd.grad(energy, x)
    torch.testing.assert_close(alone, energy_only)


def test_void_images_and_pixels_count_for_nothing():
    logits, target = example((2, 3, 6, 4), void=0.0)
    void = torch.full_like(target, 255)
    x = logits.clone().requires_grad_()
    cross_entropy, energy = cross_entropy_level_set(x, void)
    (cross_entropy + energy).backward()
    assert (cross_entropy.item(), energy.item()) == (0.0, 0.0)
    assert not x.grad.any()
    # One void image beside a valid one: it adds 0, and the mean is over both.
    mixed = torch.stack([target[0], void[1]])
    alone = level_set_energy(logits[:1], target[:1])
    torch.testing.assert_close(level_set_energy(logits, mixed), alone / 2)
    # What a void pixel predicts changes nothing.
    target[:, 2] = 255
    changed = logits.clone()
    changed[:, :, 2] = 50 * torch.randn_like(changed[:, :, 2])
    torch.testing.assert_close(level_set_energy(changed, target), level_set_energy(logits, target))
    changed[:, :, 2] = torch.nan
    x = changed.requires_grad_()
    sum(cross_entropy_level_set(x, target)).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_degenerate_regions_are_finite(kind, size):
    """One class everywhere, predictions from undecided to certain and wrong: regions of zero area and full area."""
    for label in (0, 1):
        target = torch.full((1, 3, 5), label)
        logits = torch.zeros(1, 2, 3, 5)
        logits[:, 0] = size
        x = logits.requires_grad_()
        energy = level_set_energy(x, target, kind=kind)
        energy.backward()
        assert torch.isfinite(energy)
        assert torch.isfinite(x.grad).all()
        assert 0 <= energy.item() <= 1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 6), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1)
)
def test_properties(seed, images, classes, height, width, void):
    """Bounded, blind to the order of classes and of pixels, and to an added constant."""
    logits, target = example((images, classes, height, width), seed, void, scale=4)
    energy = float(level_set_energy(logits, target))
    assert 0 <= energy <= classes
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    place = torch.cat([order.argsort(), torch.zeros(255 - classes, dtype=torch.long), torch.tensor([255])])
    assert float(level_set_energy(logits[:, order], place[target])) == pytest.approx(energy, rel=1e-9, abs=1e-12)
    assert float(level_set_energy(logits.flip(3), target.flip(2))) == pytest.approx(energy, rel=1e-9, abs=1e-12)
    assert float(level_set_energy(logits + 3, target)) == pytest.approx(energy, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_float32(dtype):
    logits, target = example((2, 5, 40, 30), dtype=dtype, scale=3)
    exact = logits.double().requires_grad_()
    x = logits.clone().requires_grad_()
    ours = level_set_energy(x, target, reduction="sum")
    theirs = level_set_energy(exact, target, reduction="sum")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=0)
    ours.backward()
    theirs.backward()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = torch.nn.Conv2d(3, 4, 1)
    _, target = example((2, 4, 6, 5))
    with torch.autocast("cpu", dtype=dtype):
        logits = layer(torch.rand(2, 3, 6, 5))
        cross_entropy, energy = cross_entropy_level_set(logits, target)
    (cross_entropy + energy).backward()
    assert logits.dtype == dtype
    assert energy.dtype == cross_entropy.dtype == torch.float32
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.weight.grad.any()


@pytest.mark.parametrize("layout", ["channels_last", "cropped", "transposed", "expanded"])
def test_memory_layouts(layout):
    logits, target = example((2, 4, 8, 6))
    plain = logits.clone().requires_grad_()
    if layout == "channels_last":
        x = logits.to(memory_format=torch.channels_last)
    elif layout == "cropped":
        x = F.pad(logits, (1, 2, 3, 1))[..., 3:-1, 1:-2]
    elif layout == "transposed":
        x = logits.mT.contiguous().mT
    else:
        x = logits[:1].expand(2, -1, -1, -1)
        plain = x.contiguous().requires_grad_()
    x = x.detach().requires_grad_()
    level_set_energy(x, target).backward()
    level_set_energy(plain, target).backward()
    torch.testing.assert_close(x.grad, plain.grad)


@pytest.mark.filterwarnings("ignore")  # opcheck's own probing
def test_compiles_whole():
    logits, target = example((2, 4, 8, 6))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(x, y):
        cross_entropy, energy = cross_entropy_level_set(x * 2, y)
        return cross_entropy + 0.5 * energy

    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss(x, target).backward()
    cross_entropy, energy = cross_entropy_level_set(y * 2, target)
    (cross_entropy + 0.5 * energy).backward()
    torch.testing.assert_close(x.grad, y.grad)
    arguments = (logits, target, 255, 0.05, "mahf", "log", True, False)
    torch.library.opcheck(level_set_labels._forward, arguments)


def test_a_second_derivative_is_refused():
    logits, target = example((1, 3, 4, 4))
    x = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(level_set_energy(x, target), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


def test_sums_are_accumulated_in_float64():
    """A million float32 pixels: the energy is right to the last digits that float32 can show."""
    logits, target = example((1, 2, 1000, 1000), void=0.0, dtype=torch.float32)
    ours = level_set_energy(logits, target, reduction="sum")
    theirs = level_set_energy(logits.double(), target, reduction="sum")
    assert float(ours) == pytest.approx(float(theirs), rel=2e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(1, 4, 5, dtype=torch.long)}, "target B×spatial"),
        ({"target": torch.full((1, 4, 4), 3)}, "the label 3: expected 0..2 or the ignore index 255"),
        ({"target": torch.full((1, 4, 4), -1)}, "the label -1"),
        ({"target": torch.zeros(1, 4, 4)}, "target of the logits. shape"),
        ({"target": torch.zeros(1, 4, 4, device="meta").long()}, "logits are on cpu, but the target is on meta"),
        ({"logits": {"out": torch.zeros(1, 3, 4, 4)}}, "expected a tensor as the logits, not dict"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"kind": "sharp"}, "'sharp'"),
        ({"reduction": "median"}, "median"),
    ],
)
def test_bad_input(change, message):
    arguments = {"logits": torch.zeros(1, 3, 4, 4), "target": torch.zeros(1, 4, 4, dtype=torch.long)} | change
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        level_set_energy(**arguments)


def test_another_ignore_index():
    logits, target = example((1, 3, 5, 4))
    other = torch.where(target == 255, -100, target)
    torch.testing.assert_close(level_set_energy(logits, other, ignore_index=-100), level_set_energy(logits, target))


@pytest.mark.parametrize("epsilon", [1 / 20, 0.3, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_heaviside_equals_the_printed_form(kind, epsilon):
    z = np.linspace(-0.5, 0.5, 1001)
    ours = heaviside(torch.from_numpy(z), epsilon, kind).numpy()
    np.testing.assert_allclose(ours, reference.heaviside(z, epsilon, kind), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_dirac_is_the_derivative_of_heaviside(kind):
    z = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(heaviside(z, 0.073, kind).sum(), z)
    torch.testing.assert_close(dirac(z.detach(), 0.073, kind), slope)
    assert not dirac(z.detach(), 0.073, "hf").any()


def test_mahf_keeps_its_lower_tail_in_float32():
    assert float(heaviside(torch.tensor(-0.5), 0.05)) == pytest.approx(2.0611536e-9, rel=1e-5)


def test_threads_work_on_blocks_of_their_own_and_change_nothing_else(monkeypatch):
    """The result is that of one thread but for the order of float64 sums; errors arrive; torch keeps its threads."""
    logits, target = example((3, 4, 40, 30), dtype=torch.float32)
    own, found = torch.get_num_threads(), []
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 500)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x = logits.clone().requires_grad_()
            sum(cross_entropy_level_set(x, target)).backward()
            found.append(x.grad)
            assert torch.get_num_threads() == threads
            with pytest.raises(ValueError, match="the label 9"):
                level_set_energy(logits, target.masked_fill(target == 255, 9))
    finally:
        torch.set_num_threads(own)
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("label", [0, 1, 255])
@pytest.mark.parametrize("scale", [0.0, 5.0, 200.0])
def test_the_logarithm_is_finite_for_empty_full_and_void_images(scale, label):
    """Also where a probability is exactly 0 or 1."""
    logits = scale * torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    target = torch.full((2, 5, 4), label)
    target[1, 0, 0] = 2
    x = logits.requires_grad_()
    energy = level_set_energy(x, target, 0.5, "ramp", reduction="log")
    (by_x,) = torch.autograd.grad(energy, x)
    assert energy.isfinite()
    assert energy >= 0
    assert by_x.isfinite().all()
    assert bool(by_x[0].any()) <= (label != 255)  # an image without a valid pixel passes no gradient
    mask = (target == 1).long()
    assert level_set_energy(x[:, :1], mask, 0.5, "ramp", reduction="log", mode="binary").isfinite()


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_the_logarithm_pulls_at_a_class_as_its_share_of_the_image_demands(share):
    """Where scores are little better than chance, 1 - E/T is the class's share, and the logarithm divides by it."""
    target = torch.zeros(1, 50, 40, dtype=torch.long)
    target.view(-1)[: round(share * 2000)] = 1
    hint = torch.where(target == 1, 0.1, -0.1).double()
    logits = torch.stack([torch.zeros_like(hint), hint - 5], 1)  # the class has a probability of about e⁻⁵ everywhere

    def pull(reduction):
        x = logits.clone().requires_grad_()
        energies = level_set_energy(x, target, 0.5, "ramp", reduction=reduction)
        (by_x,) = torch.autograd.grad(energies, x)
        return -by_x[:, 1][target == 1].sum()

    ratio = pull("log") / pull("balanced")
    assert float(ratio) == pytest.approx(1 / share, rel=0.15)  # the other class pulls a little, too
