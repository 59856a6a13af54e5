import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsseg.functional import gaussian_log_posterior, largest_class, partition_level_sets, regions, signed_distance


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_largest_class_is_argmax(images, classes, height, width, seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (images, classes, height, width), generator=g).float()  # many ties
    labels = largest_class(scores)
    expected = torch.from_numpy(scores.numpy().argmax(1))
    assert torch.equal(labels, expected)
    assert torch.equal(regions(labels, classes).sum(1), torch.ones_like(labels))
    assert torch.equal(regions(labels, classes).to(torch.uint8).argmax(1), labels)


def test_level_sets_of_a_partition():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 7, 9, generator=g, dtype=torch.float64).softmax(1).requires_grad_()
    region = regions(largest_class(scores), 3)
    phi = partition_level_sets(scores, region, 4.0)
    expected = signed_distance(region, 4.0).double() / 8 + scores - 0.5
    torch.testing.assert_close(phi, expected)
    assert torch.equal(phi.argmax(1), scores.argmax(1))
    assert phi.abs().max() <= 1
    (gradient,) = torch.autograd.grad(phi.sum(), scores)
    assert torch.equal(gradient, torch.ones_like(gradient))  # of the soft part alone


def posterior_by_hand(values, scores, region):
    """One image, class by class, in NumPy; features standardised, variances floored, as documented."""
    x = (values - values.mean((1, 2), keepdims=True)) / np.sqrt(values.var((1, 2), keepdims=True) + 1e-8)
    log_f = np.full(scores.shape, -np.inf)
    for i in range(len(scores)):
        if region[i].any():
            weight = scores[i] * region[i]
            weight = weight / weight.sum()
            mean = (weight * x).sum((1, 2))[:, None, None]
            variance = (weight * (x - mean) ** 2).sum((1, 2))[:, None, None] + 0.01
            log_f[i] = (-0.5 * ((x - mean) ** 2 / variance + np.log(variance))).sum(0)
    top = log_f.max(0)
    return log_f - top - np.log(np.exp(log_f - top).sum(0))


@pytest.mark.parametrize("features", [1, 3, 64])
def test_gaussian_posterior(features):
    g = torch.Generator().manual_seed(1)
    values = torch.rand(2, features, 6, 7, generator=g, dtype=torch.float64)
    scores = torch.randn(2, 4, 6, 7, generator=g, dtype=torch.float64).softmax(1)
    scores[:, 3] *= 1e-3  # nowhere the largest
    region = regions(largest_class(scores), 4)
    assert not region[:, 3].any()
    found = gaussian_log_posterior(values, scores, region)
    for image in range(2):
        parts = (part[image].numpy() for part in (values, scores, region))
        np.testing.assert_allclose(found[image].numpy(), posterior_by_hand(*parts), atol=1e-9)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 6, 7, dtype=torch.float64))


def test_posterior_gradcheck_and_flat_images():
    g = torch.Generator().manual_seed(2)
    values = torch.rand(1, 2, 4, 5, generator=g, dtype=torch.float64).requires_grad_()
    scores = torch.randn(1, 3, 4, 5, generator=g, dtype=torch.float64).softmax(1).requires_grad_()
    region = regions(largest_class(scores), 3)
    assert torch.autograd.gradcheck(lambda v, s: gaussian_log_posterior(v, s, region), (values, scores))
    flat = torch.full((1, 3, 4, 5), 0.4, requires_grad=True)
    posterior = gaussian_log_posterior(flat, scores.float(), region)
    torch.testing.assert_close(posterior.exp(), torch.full((1, 3, 4, 5), 1 / 3))
    posterior.sum().backward()
    assert torch.isfinite(flat.grad).all()
