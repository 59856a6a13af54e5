"""The level-set layer of DMLS by itself."""

import pytest
import torch
import torch.nn.functional as F

from lsseg.models import MultiphaseLevelSet

FORMS = {"residual": {"gain": 3.0}, "temperature": {"temperature": 0.5}}


@pytest.mark.parametrize("likelihood", ["confidence", "colour", "features"])
@pytest.mark.parametrize("form", FORMS)
def test_layer_gradcheck(likelihood, form):
    g = torch.Generator().manual_seed(3)
    layer = MultiphaseLevelSet(likelihood, **FORMS[form]).double()
    logits = torch.randn(1, 3, 5, 6, generator=g, dtype=torch.float64).mul(2).requires_grad_()
    values = torch.rand(1, 3, 5, 6, generator=g, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, v: layer(x, v, v), (logits, values))


def test_refined_scores_are_the_raw_ones_and_what_the_evolution_changes():
    layer = MultiphaseLevelSet(gain=3.0, inner_steps=2)
    logits = torch.randn(2, 4, 13, 9, generator=torch.Generator().manual_seed(2)) * 3
    before, after = layer.levels(logits)
    torch.testing.assert_close(layer(logits), logits + 3 * (after - before))
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(MultiphaseLevelSet(temperature=0.5)(logits), after_of(logits) / 0.5)


def after_of(logits):
    return MultiphaseLevelSet(temperature=1.0).levels(logits).after


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_refined_scores_start_no_more_confident_than_the_raw_ones(scale):
    """A network early in its training: its scores say something, and are often wrong."""
    g = torch.Generator().manual_seed(4)
    target = torch.randint(0, 5, (2, 6, 8), generator=g).repeat_interleave(6, 1).repeat_interleave(6, 2)
    signal = F.one_hot(target, 5).permute(0, 3, 1, 2).float()
    noise = F.interpolate(torch.randn(2, 5, 9, 12, generator=g), target.shape[1:], mode="bilinear")
    logits = scale * (signal + 1.5 * noise)
    raw = F.cross_entropy(logits, target)
    assert F.cross_entropy(MultiphaseLevelSet()(logits), target) < raw + 0.02
    if scale == 1:  # at T = 0.1 they are worse than no knowledge at all
        assert raw < torch.tensor(5.0).log() < F.cross_entropy(MultiphaseLevelSet(temperature=0.1)(logits), target)


@pytest.mark.parametrize("form", FORMS)
def test_layer_scale_gradient(form):
    layer = MultiphaseLevelSet(**FORMS[form]).double()
    logits = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    before, after = layer.levels(logits)
    layer(logits).square().sum().backward()
    refined = layer(logits)
    if form == "temperature":  # d/dlogT Σ (φ/T)² = -2 Σ (φ/T)²
        torch.testing.assert_close(layer.log_temperature.grad, -2 * (after / 0.5).square().sum())
    else:
        torch.testing.assert_close(layer.log_gain.grad, (2 * refined * 3 * (after - before)).sum())


def test_layer_is_exact_under_autocast():
    layer = MultiphaseLevelSet()
    logits = torch.randn(1, 4, 12, 13)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(logits)
    assert half.dtype == torch.float32
    assert torch.equal(half, layer(logits))


@pytest.mark.parametrize(
    "logits", [torch.zeros(1, 3, 6, 6), torch.full((1, 3, 6, 6), 1e4) * torch.eye(3)[0].view(3, 1, 1)]
)
@pytest.mark.parametrize("form", FORMS)
def test_undecided_and_one_class_images(logits, form):
    layer = MultiphaseLevelSet(**FORMS[form])
    logits = logits.clone().requires_grad_()
    refined = layer(logits)
    refined.square().mean().backward()
    assert torch.isfinite(refined).all()
    assert torch.isfinite(logits.grad).all()
    assert (refined.argmax(1) == 0).all()
