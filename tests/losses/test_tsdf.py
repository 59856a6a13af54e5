import numpy as np
import pytest
import torch

from lsseg.losses import TSDFLoss


def reference(phi, target, mask, valid, epsilon):
    """Homayounfar 2020, section 4.2, in NumPy float64, pixel by pixel."""
    phi, target = phi.numpy().astype(float), target.numpy().astype(float)
    h = 0.5 + np.arctan(phi / epsilon) / np.pi
    entropy = -np.where(mask.numpy(), np.log(h), np.log(1 - h))
    return float((np.abs(phi - target) + entropy)[valid.numpy()].mean())


def problem(shape=(2, 3, 5, 7)):
    g = torch.Generator().manual_seed(0)
    phi, target = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return phi, target, target > 0, torch.rand(shape, generator=g) > 0.3


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_is_the_formula(epsilon):
    phi, target, mask, valid = problem()
    loss = TSDFLoss(epsilon)(phi, target, mask, valid)
    assert float(loss) == pytest.approx(reference(phi, target, mask, valid, epsilon), abs=1e-12)
    everywhere = torch.ones_like(valid)
    assert float(TSDFLoss(epsilon)(phi, target, mask)) == pytest.approx(
        reference(phi, target, mask, everywhere, epsilon), abs=1e-12
    )


def test_a_mask_of_valid_pixels_broadcasts_over_classes():
    phi, target, mask, valid = problem()
    loss = TSDFLoss()(phi, target, mask, valid[:, :1])
    assert float(loss) == pytest.approx(reference(phi, target, mask, valid[:, :1].expand_as(phi), 0.1))


def test_gradient():
    phi, target, mask, valid = problem((2, 3, 4))
    assert torch.autograd.gradcheck(lambda x: TSDFLoss()(x, target, mask, valid), phi.requires_grad_())


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0])
def test_far_out_values_stay_finite(value):
    phi = torch.full((1, 4), value, requires_grad=True)
    for mask in (phi > 0, phi <= 0):
        loss = TSDFLoss()(phi, torch.zeros_like(phi), mask)
        (gradient,) = torch.autograd.grad(loss, phi)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


def test_nothing_valid_and_nothing_at_all_are_zero_with_a_gradient():
    phi, target, mask, valid = problem()
    for x, keep in ((phi, torch.zeros_like(valid)), (phi[:0], None)):
        x = x.clone().requires_grad_()
        loss = TSDFLoss()(x, target[: len(x)], mask[: len(x)], keep)
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, x)[0].any()


def test_half_precision_is_computed_in_float32():
    phi, target, mask, _ = problem()
    loss = TSDFLoss()(phi.bfloat16(), target.float(), mask)
    assert loss.dtype == torch.float32


def test_epsilon_must_be_positive():
    with pytest.raises(ValueError, match="epsilon"):
        TSDFLoss(0.0)
