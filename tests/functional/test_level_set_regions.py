"""The level-set energy of soft, overlapping and single regions, on any number of axes."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from lsseg.bench.textbook import level_set_energies
from lsseg.functional import blocks, cross_entropy_level_set, level_set_energy, level_set_regions

SPACES = [(7,), (5, 3), (3, 4, 2), (1, 1), (2, 1, 3, 2)]


def example(space, images=2, classes=3, seed=0):
    """Logits, soft truth and what is valid of it; the last class of the first image is absent."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, *space, generator=g, dtype=torch.float64)
    truth = torch.rand(images, classes, *space, generator=g, dtype=torch.float64)
    truth[0, -1] = 0
    valid = torch.rand(images, *space, generator=g) < 0.8
    return logits, truth, valid


def textbook(logits, truth, valid, mode, epsilon=0.1, kind="mahf", mean=True):
    """Energies B×C as printed, for autograd, with c1 and c2 in the graph."""
    energies = level_set_energies(logits, truth, valid, epsilon, kind, mode)
    return energies / valid.flatten(1).sum(1, keepdim=True).clamp_min(1) if mean else energies


@pytest.fixture(params=[2**19, 8], ids=["one block", "many blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
@pytest.mark.parametrize("kind", ["mahf", "ahf", "ramp"])
@pytest.mark.parametrize("space", SPACES)
def test_a_soft_truth_has_the_energies_and_gradients_of_the_textbook(space, kind, mode):
    logits, truth, valid = example(space)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    options = {"epsilon": 0.1, "heaviside": kind, "mode": mode, "valid": valid, "reduction": "none"}
    energies, expected = level_set_energy(ours, truth, **options), textbook(theirs, truth, valid, mode, kind=kind)
    torch.testing.assert_close(energies, expected, rtol=1e-11, atol=1e-14)
    assert energies[0, -1] == 0
    weights = torch.arange(1.0, 4.0, dtype=torch.float64)
    (energies * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("mode", ["multiclass", "multilabel", "binary"])
@pytest.mark.parametrize("space", SPACES)
def test_the_cross_entropy_beside_it_is_torchs(space, mode):
    logits, truth, valid = example(space, classes=1 if mode == "binary" else 3)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, energy = cross_entropy_level_set(ours, truth, mode=mode, valid=valid)
    if mode == "multiclass":
        expected = F.cross_entropy(theirs, truth, reduction="none")[valid].sum() / valid.sum().clamp_min(1)
    else:
        every = F.binary_cross_entropy_with_logits(theirs, truth, reduction="none")
        expected = every.movedim(1, -1)[valid].sum() / (valid.sum() * logits.shape[1]).clamp_min(1)
    torch.testing.assert_close(value, expected)
    (0.3 * value + 2 * energy).backward()
    alone = logits.clone().requires_grad_()
    (2 * level_set_energy(alone, truth, mode=mode, valid=valid)).backward()
    (0.3 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad + alone.grad)


@pytest.mark.parametrize("mode", ["multiclass", "multilabel", "binary"])
def test_gradcheck(mode):
    logits, truth, valid = example((3, 2), classes=1 if mode == "binary" else 3)

    def both(x):
        return cross_entropy_level_set(x, truth, 0.3, mode=mode, valid=valid, reduction="batchmean")

    assert torch.autograd.gradcheck(both, logits.requires_grad_())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("reduction", ["mean", "balanced", "log", "batchmean", "none"])
def test_labels_are_a_soft_truth_of_zeros_and_ones_on_any_axes(space, reduction):
    logits, _, valid = example(space)
    labels = torch.randint(0, 3, (2, *space), generator=torch.Generator().manual_seed(1))
    hot = F.one_hot(labels, 3).movedim(-1, 1).double()
    options = {"reduction": reduction, "valid": valid}
    expected = level_set_energy(logits, hot, **options)
    torch.testing.assert_close(level_set_energy(logits, labels, **options), expected)
    torch.testing.assert_close(level_set_energy(logits, labels.unsqueeze(1), **options), expected)
    void = labels.masked_fill(~valid, 255)
    torch.testing.assert_close(level_set_energy(logits, void, reduction=reduction), expected)
    flat = level_set_energy(logits.flatten(2).unsqueeze(2), void.flatten(1).unsqueeze(1), reduction=reduction)
    torch.testing.assert_close(flat, expected)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("fill", ["random", "empty", "full"])
def test_a_binary_energy_is_half_of_that_of_two_classes(space, fill):
    logits, _, valid = example(space, classes=1)
    mask = (
        torch.rand(2, *space, generator=torch.Generator().manual_seed(2)) < {"random": 0.4, "empty": 0, "full": 2}[fill]
    )
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    two = level_set_energy(both, mask.long(), valid=valid)
    for target in (mask, mask[:, None], mask.long(), mask[:, None].double(), mask.to(torch.uint8)):
        torch.testing.assert_close(level_set_energy(logits, target, mode="binary", valid=valid), two / 2)


def test_reductions_and_class_weights_agree():
    logits, truth, valid = example((5, 4))
    each = level_set_energy(logits, truth, valid=valid, reduction="none")
    torch.testing.assert_close(each.sum(1).mean(), level_set_energy(logits, truth, valid=valid))
    pixels = valid.flatten(1).sum(1, keepdim=True)
    summed = level_set_energy(logits, truth, valid=valid, reduction="batchmean")
    torch.testing.assert_close((each * pixels).sum(1).mean(), summed)
    torch.testing.assert_close(level_set_energy(logits, truth, valid=valid, reduction="sum"), summed)
    sizes = (truth * valid.view(len(truth), 1, *truth.shape[2:])).flatten(2).sum(2)
    shares = sizes / valid.flatten(1).sum(1, keepdim=True)
    balanced = torch.where(sizes > 0, each / shares, 0).sum(1) / (sizes > 0).sum(1).clamp_min(1)
    torch.testing.assert_close(level_set_energy(logits, truth, valid=valid, reduction="balanced"), balanced.mean())
    squares = (truth.square() * valid.view(len(truth), 1, *truth.shape[2:])).flatten(2).sum(2)
    explained = torch.where(sizes > 0, 1 - each * pixels / squares, 1)
    logarithm = -explained.log().sum(1) / (sizes > 0).sum(1).clamp_min(1)
    torch.testing.assert_close(level_set_energy(logits, truth, valid=valid, reduction="log"), logarithm.mean())
    weights = torch.tensor([0.0, 1.0, 3.0])
    weighted = level_set_energy(logits, truth, valid=valid, class_weights=weights)
    torch.testing.assert_close(weighted, (each * weights).sum(1).mean())


def test_void_marks_of_overlapping_masks_and_what_stands_there_count_for_nothing():
    logits, _, _ = example((4, 5))
    masks = torch.randint(0, 2, logits.shape, generator=torch.Generator().manual_seed(3))
    masks[:, 1, 2] = 255  # void for one class is void for all
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[:, 2] = False
    expected = level_set_energy(logits, masks.clamp_max(1) == 1, mode="multilabel", valid=valid)
    torch.testing.assert_close(level_set_energy(logits, masks, mode="multilabel"), expected)
    x, soft = logits.clone(), masks.clamp_max(1).double()
    x[:, :, 2], soft[:, :, 2] = torch.nan, torch.nan
    x.requires_grad_()
    terms = cross_entropy_level_set(x, soft, mode="multilabel", valid=valid)
    torch.testing.assert_close(terms[1], expected)
    sum(terms).backward()
    assert x.grad.isfinite().all()
    nothing = cross_entropy_level_set(logits, soft, mode="multilabel", valid=torch.zeros_like(valid))
    assert [float(term) for term in nothing] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_and_channels_last_stays(dtype):
    logits, truth, valid = example((9, 8))
    x = logits.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().double().requires_grad_()
    ours, theirs = (cross_entropy_level_set(each, truth, valid=valid) for each in (x, exact))
    assert ours[1].dtype == torch.float32
    torch.testing.assert_close(torch.stack(ours).double(), torch.stack(theirs), rtol=1e-5, atol=0)
    sum(ours).backward()
    sum(theirs).backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-2, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # opcheck's own probing
def test_compiles_whole():
    logits, truth, valid = example((5, 3))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(x, y, keep):
        return sum(cross_entropy_level_set(x * 2, y, mode="multilabel", valid=keep))

    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss(x, truth, valid).backward()
    sum(cross_entropy_level_set(y * 2, truth, mode="multilabel", valid=valid)).backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.library.opcheck(level_set_regions._forward, (logits, truth, valid, True, 0.05, "mahf", "log", True))


@pytest.mark.filterwarnings("ignore")  # of torch's own making
@pytest.mark.parametrize("hard", [True, False])
def test_functional_transforms_work_or_are_refused(hard):
    logits, truth, _ = example((5, 3), images=4)
    target = truth.argmax(1) if hard else truth
    per_sample = torch.func.vmap(torch.func.grad(level_set_energy))(logits[:, None], target[:, None])[:, 0]
    x = logits.clone().requires_grad_()
    (level_set_energy(x, target) * len(x)).backward()
    torch.testing.assert_close(per_sample, x.grad)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: level_set_energy(x, target), (logits,), (logits,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        level_set_energy(torch.autograd.forward_ad.make_dual(logits, logits), target)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.func.grad(lambda x: torch.func.grad(lambda x: level_set_energy(x, target))(x).sum())(logits)


@pytest.mark.parametrize(
    ("shape", "target", "options", "message"),
    [
        ((1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), {}, "one class need mode='binary'"),
        ((1, 1, 4, 4), torch.zeros(1, 1, 4, 4), {}, "one class need mode='binary'"),
        ((1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), {"mode": "binary"}, "expects logits of one class"),
        ((1, 2, 4, 4), torch.zeros(1, 4, 4), {}, r"target of the logits' shape .*\(labels must be integers\)"),
        ((1, 2, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.bool), {}, "a value for every class must be floating"),
        ((1, 2, 4, 4), torch.zeros(1, 4, 4).numpy(), {}, "expected a tensor as the target, not ndarray"),
        ((1, 2, 4), torch.zeros(1, 2, 4), {"ignore_index": None}, "ignore_index must be a whole number"),
        ((1, 2, 4, 4), torch.zeros(1, 3, 4, 4), {}, "target of the logits' shape"),
        ((1, 2, 4, 4), torch.full((1, 2, 4, 4), 1.5), {}, "1.5: the values of a soft target or a mask must lie in"),
        ((1, 2, 4, 4), torch.full((1, 2, 4, 4), -0.5), {}, "the value -0.5"),
        ((1, 2, 4, 4), torch.full((1, 2, 4, 4), torch.nan), {}, "the value nan"),
        ((1, 2, 4, 4), torch.full((1, 2, 4, 4), 7), {"mode": "multilabel"}, "the value 7"),
        ((1, 2), torch.zeros(1, dtype=torch.long), {}, "logits B×C×spatial"),
        ((1, 2, 4), torch.zeros(1, 2, 4), {"valid": torch.ones(1, 5, dtype=torch.bool)}, "valid B×spatial"),
        ((1, 2, 4), torch.zeros(1, 2, 4), {"valid": torch.ones(1, 4)}, "valid must be bool"),
        ((1, 2, 4), torch.zeros(1, 2, 4), {"mode": "soft"}, "mode must be"),
        ((1, 2, 4), torch.zeros(1, 2, 4), {"kernels": "cuda"}, "kernels must be"),
        ((1, 2, 4), torch.zeros(1, 2, 4), {"class_weights": torch.ones(3)}, "expected 2 class_weights"),
    ],
)
def test_bad_input(shape, target, options, message):
    with pytest.raises(ValueError, match=message):
        level_set_energy(torch.zeros(shape), target, **options)


def test_a_mask_of_0_and_255_is_told():
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    mask[..., 2:5, 2:5] = 255
    logits = torch.zeros(1, 1, 6, 6)
    with pytest.warns(UserWarning, match="255, which is void, but no 1: if 255 is the object, give target == 255"):
        level_set_energy(logits, mask, mode="binary")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask[..., 0, 0] = 1
        level_set_energy(logits, mask, mode="binary")


def test_the_older_name_of_the_step_function_stays():
    logits, truth, _ = example((5, 3))
    torch.testing.assert_close(
        level_set_energy(logits, truth, kind="ahf"), level_set_energy(logits, truth, heaviside="ahf")
    )
