import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lsseg.losses import CrossEntropyLoss, WeightedCrossEntropy


def example(shape=(2, 4, 7, 9), void=0.2):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=g, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=g)
    target[torch.rand(target.shape, generator=g) < void] = 255
    return logits, target


def by_hand(logits, target, weights, boundary):
    """Zhang 2019, eq. 11-12, pixel by pixel."""
    total, count = 0.0, 0
    _, height, width = target.shape
    for b, y, x in np.ndindex(*target.shape):
        label = target[b, y, x]
        if label == 255:
            continue
        count += 1
        neighbours = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        around = [target[b, v, u] for v, u in neighbours if 0 <= v < height and 0 <= u < width]
        edge = any(other not in (label, 255) for other in around)
        scores = logits[b, :, y, x]
        total += (weights[label] + boundary * edge) * (np.log(np.exp(scores).sum()) - scores[label])
    return total / count


@pytest.mark.parametrize("boundary", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(2, 4, 7, 9), (1, 2, 1, 5), (1, 3, 6, 1)])
@pytest.mark.parametrize("weights", [[0.5, 2.0, 0.0, 1.3], None])
def test_equals_the_equation(weights, shape, boundary):
    logits, target = example(shape)
    given = weights and weights[: shape[1]]
    ours = WeightedCrossEntropy(given, boundary)(logits, target)
    expected = by_hand(logits.numpy(), target.numpy(), given or [1.0] * shape[1], boundary)
    assert float(ours) == pytest.approx(expected, rel=1e-6)


def test_without_weights_it_is_cross_entropy():
    logits, target = example()
    ours = WeightedCrossEntropy(None, 0.0)(logits, target)
    torch.testing.assert_close(ours, CrossEntropyLoss()(logits, target))
    torch.testing.assert_close(ours, F.cross_entropy(logits, target, ignore_index=255))


@pytest.mark.parametrize("boundary", [0.0, 1.0])
def test_gradcheck(boundary):
    logits, target = example((1, 3, 3, 4))
    loss = WeightedCrossEntropy([1.0, 0.0, 3.0], boundary)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())


@pytest.mark.parametrize("boundary", [0.0, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_all_void_is_zero_with_zero_gradient(boundary, training):
    logits, target = example()
    logits.requires_grad_()
    loss = WeightedCrossEntropy([1.0] * 4, boundary).train(training)(logits, torch.full_like(target, 255))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_half_precision_is_summed_in_float32():
    logits, target = example()
    loss = WeightedCrossEntropy([1.0, 2.0, 3.0, 4.0])
    half = loss(logits.half(), target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(logits.half().float(), target))
