import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from lsseg.losses import ActiveContourLoss, BoundaryLoss


def example(seed=0, size=(9, 14), void=True):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, *size, dtype=torch.float64, generator=g)
    target = torch.randint(0, 3, (2, 3, 3), generator=g).repeat_interleave(5, 1).repeat_interleave(5, 2)
    target = target[:, : size[0], : size[1]].clone()
    if void:
        target[:, 2:4, 3:9] = 255
    return logits, target


def boundary_loss(logits, target):
    """Kervadec's equation, pixel by pixel."""
    p = logits.softmax(1).numpy()
    total, count = 0.0, 0
    for image in range(len(p)):
        valid = (target[image] != 255).numpy()
        for label in range(p.shape[1]):
            g = (target[image] == label).numpy()
            count += valid.sum()
            if not g[valid].any() or g[valid].all():
                continue
            phi = distance_transform_edt(g) - distance_transform_edt(~g) + 0.5 - g
            total -= (phi * p[image, label])[valid].sum()
    return total / max(1, count)


def active_contour_loss(logits, target, weight, eta):
    p = logits.softmax(1).numpy()
    total, count = 0.0, 0
    for image in range(len(p)):
        t = target[image].numpy()
        for y, x in np.ndindex(t.shape):
            if t[y, x] == 255:
                continue
            count += 1
            for label in range(p.shape[1]):
                q = p[image, label]
                right = q[y, x + 1] - q[y, x] if x + 1 < t.shape[1] and t[y, x + 1] != 255 else 0.0
                down = q[y + 1, x] - q[y, x] if y + 1 < t.shape[0] and t[y + 1, x] != 255 else 0.0
                g = float(t[y, x] == label)
                region = q[y, x] * (1 - g) ** 2 + (1 - q[y, x]) * g**2
                total += np.sqrt(right**2 + down**2 + eta**2) - eta + weight * region
    return total / max(1, count)


@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize("size", [(9, 14), (1, 5), (15, 3)])
def test_against_loops_over_pixels(size, void):
    logits, target = example(size=size, void=void)
    assert float(BoundaryLoss()(logits, target)) == pytest.approx(
        boundary_loss(logits, target), rel=1e-7
    )  # float32 distances
    ours = ActiveContourLoss(0.7, 1e-3)(logits, target)
    assert float(ours) == pytest.approx(active_contour_loss(logits, target, 0.7, 1e-3), abs=1e-12)


@pytest.mark.parametrize("loss", [BoundaryLoss(), ActiveContourLoss()])
def test_gradients_void_and_half_precision(loss):
    logits, target = example()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits.requires_grad_(),))
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    assert not gradient.permute(0, 2, 3, 1)[target == 255].any()
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    loss(x, torch.full((1, 8, 8), 255)).backward()
    assert not x.grad.any()
    assert loss((x * 300).half(), torch.ones(1, 8, 8, dtype=torch.long)).isfinite()


def test_a_class_that_fills_the_image_has_no_boundary():
    logits = torch.randn(1, 3, 6, 7)
    assert BoundaryLoss()(logits, torch.ones(1, 6, 7, dtype=torch.long)) == 0


def test_the_right_answer_is_the_best():
    _, target = example(void=False)
    right = torch.stack([target == label for label in range(4)], 1) * 20.0
    for loss in (BoundaryLoss(), ActiveContourLoss()):
        assert loss(right, target) < loss(right.roll(2, 3), target)


def test_wrong_options():
    with pytest.raises(ValueError, match="eta"):
        ActiveContourLoss(eta=0)
    with pytest.raises(ValueError, match="region_weight"):
        ActiveContourLoss(region_weight=-1)
