import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from lsseg.losses import LossMaxPooling
from lsseg.losses.rivals import worst_weights


def solved(losses, p, share):
    """The weights by a solver of constrained optimisation that knows nothing of their form."""
    n = len(losses)
    gamma = n ** (1 / p - 1)
    tau = gamma * (share * n) ** (-1 / p)
    found = minimize(
        lambda w: -(w @ losses),
        np.full(n, 1 / n) * 0.9,
        jac=lambda w: -losses,
        bounds=[(0, tau)] * n,
        constraints={
            "type": "ineq",
            "fun": lambda w: gamma**p - (np.abs(w) ** p).sum(),
            "jac": lambda w: -p * np.abs(w) ** (p - 1),
        },
        options={"maxiter": 2000, "ftol": 1e-11},
        method="SLSQP",
    )
    assert found.success
    return found.x


@pytest.mark.parametrize("share", [0.1, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("p", [1.2, 1.7, 3.0])
def test_weights_are_those_of_the_convex_problem(p, share):
    for seed in range(3):
        losses = np.random.default_rng(seed).exponential(size=13)
        weights = worst_weights(torch.from_numpy(losses), p, share).numpy()
        gamma = 13 ** (1 / p - 1)
        assert (weights**p).sum() ** (1 / p) <= gamma * (1 + 1e-12)
        assert weights.max() <= gamma * (share * 13) ** (-1 / p) * (1 + 1e-12)
        assert weights @ losses == pytest.approx(solved(losses, p, share) @ losses, rel=1e-6)


def test_between_the_mean_and_the_hardest_pixels():
    losses = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    almost_mean = worst_weights(losses, 1.0001, 1.0) @ losses
    assert almost_mean == pytest.approx(float(losses.mean()), rel=1e-3)
    hardest = losses.sort(descending=True).values[:250].mean()
    assert worst_weights(losses, 1.0001, 0.25) @ losses == pytest.approx(float(hardest), rel=2e-2)


@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [1.0], [3.0, 3.0, 3.0, 0.0]])
def test_weights_of_losses_that_are_alike_or_nothing(losses):
    weights = worst_weights(torch.tensor(losses), 1.7, 0.25)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_gradient_is_that_of_the_weights():
    logits = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 5, 7))
    target[0, :3] = 255
    loss = LossMaxPooling()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))
    expected = []
    for x, t in zip(logits, target, strict=True):
        own = F.cross_entropy(x[None], t[None], reduction="none", ignore_index=255)[t[None] != 255]
        expected.append(worst_weights(own.detach(), 1.7, 0.25) @ own)
    torch.testing.assert_close(loss(logits, target), sum(expected) / 2)


def test_void_images_count_for_nothing():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.full((2, 4, 5), 255)
    LossMaxPooling()(logits, target).backward()
    assert not logits.grad.any()
    target[1] = 1
    whole, alone = LossMaxPooling()(logits, target), LossMaxPooling()(logits[1:], target[1:])
    torch.testing.assert_close(whole, alone)


def test_half_precision_is_finite():
    logits = (torch.randn(1, 3, 40, 40) * 200).half()
    assert LossMaxPooling()(logits, torch.zeros(1, 40, 40, dtype=torch.long)).isfinite()


@pytest.mark.parametrize("options", [{"p": 1.0}, {"p": float("inf")}, {"share": 0.0}, {"share": 1.5}])
def test_wrong_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LossMaxPooling(**options)
