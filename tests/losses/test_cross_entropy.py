import pytest
import torch
import torch.nn.functional as F

from lsseg.functional import cross_entropy_level_set
from lsseg.losses import CrossEntropyLoss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_baseline_is_the_fused_cross_entropy_in_every_precision(dtype):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 11, 100, 100, generator=g).to(dtype)
    target = torch.randint(0, 11, (2, 100, 100), generator=g)
    target[:, :7] = 255
    ours, (fused, _) = CrossEntropyLoss()(logits, target), cross_entropy_level_set(logits, target)
    torch.testing.assert_close(ours, fused)
    torch.testing.assert_close(
        ours.double(), F.cross_entropy(logits.double(), target, ignore_index=255), rtol=1e-5, atol=0
    )


def test_a_batch_without_valid_pixels_is_zero_and_stays_in_the_graph():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = CrossEntropyLoss()(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
