import pytest
import segmentation_models_pytorch as smp
import torch

from lsseg.losses import BoundaryLoss, CrossEntropyLoss, CrossEntropyPlus

OTHERS = {
    "dice": smp.losses.DiceLoss("multiclass", ignore_index=255),
    "jaccard": smp.losses.JaccardLoss("multiclass"),
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


@pytest.mark.parametrize("name", OTHERS)
def test_half_precision_and_void_batches_are_finite(name):
    if name == "jaccard":
        target = torch.randint(0, 3, (2, 8, 9))
    else:
        target = torch.where(torch.rand(2, 8, 9) < 0.2, 255, torch.randint(0, 3, (2, 8, 9)))
    loss = CrossEntropyPlus(OTHERS[name])
    x = torch.randn(2, 3, 8, 9, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(x * 300, target).backward()
    assert x.grad.isfinite().all()
    assert loss(x, torch.full_like(target, 255)) == 0


def test_wrong_weight():
    with pytest.raises(ValueError, match="weight must not be negative"):
        CrossEntropyPlus(BoundaryLoss(), -1)
