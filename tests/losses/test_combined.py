import pytest
import segmentation_models_pytorch as smp
import torch

from lsseg.losses import BoundaryLoss, CrossEntropyLoss, CrossEntropyPlus, LevelSetLoss

OTHERS = {
    "dice": smp.losses.DiceLoss("multiclass", ignore_index=255),
    "jaccard": smp.losses.JaccardLoss("multiclass"),  # knows nothing of void
    "lovasz": smp.losses.LovaszLoss("multiclass", ignore_index=255),
    "focal": smp.losses.FocalLoss("multiclass", ignore_index=255),
    "tversky": smp.losses.TverskyLoss("multiclass", ignore_index=255),
    "boundary": BoundaryLoss(),
}


def test_is_the_weighted_sum():
    logits, target = torch.randn(2, 3, 8, 9), torch.randint(0, 3, (2, 8, 9))
    target[0, :2] = 255
    other = OTHERS["dice"]
    expected = CrossEntropyLoss()(logits, target) + 0.3 * other(logits, target)
    torch.testing.assert_close(CrossEntropyPlus(other, 0.3)(logits, target), expected)


def test_a_level_set_is_a_third_term():
    logits, target = torch.randn(2, 3, 8, 9), torch.randint(0, 3, (2, 8, 9))
    target[0, :2] = 255
    terms = [loss(logits, target) for loss in (CrossEntropyLoss(), OTHERS["lovasz"], LevelSetLoss())]
    expected = 0.5 * terms[0] + 0.3 * terms[1] + 2 * terms[2]
    found = CrossEntropyPlus(OTHERS["lovasz"], 0.3, 0.5, level_set_weight=2.0)(logits, target)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", OTHERS)
def test_half_precision_and_void_batches_are_finite(name):
    target = torch.where(torch.rand(2, 8, 9) < 0.2, 255, torch.randint(0, 3, (2, 8, 9)))
    loss = CrossEntropyPlus(OTHERS[name], pixels=name != "boundary")
    x = torch.randn(2, 3, 8, 9, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(x * 300, target).backward()
    assert x.grad.isfinite().all()
    assert loss(x, torch.full_like(target, 255)) == 0


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz", "focal"])
def test_a_set_of_valid_pixels_is_what_losses_that_know_void_see(name):
    logits, target = torch.randn(2, 3, 8, 9, requires_grad=True), torch.randint(0, 3, (2, 8, 9))
    target[:, 2:4, 3:] = 255
    losses = [CrossEntropyPlus(OTHERS[name], 0.7, 0.2, pixels)(logits, target) for pixels in (False, True)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses))


def test_wrong_weight():
    with pytest.raises(ValueError, match="weight must not be negative"):
        CrossEntropyPlus(BoundaryLoss(), -1)
