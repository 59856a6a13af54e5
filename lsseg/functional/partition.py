"""From scores to level sets and back: the partition's signed distances, likelihoods, assignment (Zhang 2019, alg. 1).

Legend: B images, C classes, D features, H×W pixels.
"""

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.distance import signed_distance

# A region's standard deviation is at least a tenth of the image's: a flat region would have none.
VARIANCE_FLOOR = 0.01


def largest_class(scores: Tensor) -> Tensor:
    """The label of each pixel's largest score, the first of equals; B×C×H×W → B×H×W int64.

    >>> largest_class(torch.tensor([0.2, 0.5, 0.5]).view(1, 3, 1, 1)).item()
    1
    """
    if not blocks.in_cache(scores.device):
        return scores.argmax(1)
    # torch's argmax along a strided dimension is some ten times slower than plane by plane.
    labels = torch.zeros(len(scores), *scores.shape[2:], dtype=torch.int64)
    for planes, label in zip(scores.detach(), labels, strict=True):
        best, chosen = planes[0].clone(), label.to(torch.int16)
        for number, plane in enumerate(planes[1:], start=1):
            larger = plane > best
            chosen.masked_fill_(larger, number)
            torch.maximum(best, plane, out=best)
        label.copy_(chosen)
    return labels


def regions(labels: Tensor, num_classes: int) -> Tensor:
    """The region of every class, B×spatial → B×C×spatial bool; a label outside 0..C-1, such as void, is no class's.

    >>> regions(torch.tensor([[[0, 1, 255]]]), 2)[0, :, 0].tolist()
    [[True, False, False], [False, True, False]]
    """
    narrow = torch.uint8 if num_classes <= 255 else torch.int32  # less memory to read than int64
    classes = torch.arange(num_classes, device=labels.device, dtype=narrow)
    if labels.dtype != torch.uint8:
        labels = labels.long().clamp(-1, num_classes).to(narrow)  # in uint8 -1 is 255, which is no class either
    return labels[:, None] == classes.view(-1, *[1] * (labels.ndim - 1))


def partition_level_sets(scores: Tensor, region: Tensor, truncation: float = 10.0) -> Tensor:
    """φ_i = d_i/(2τ) + S_i - ½ (Zhang 2019, algorithm 1, sign flipped).

    d_i is the signed distance to the contour of class i in the partition, clipped to ±τ, so that its part lies in
    [-½, ½]; it passes no gradient. The soft part S_i - ½ does: more S_i, more φ_i.

    Args:
        scores: S, B×C×H×W probabilities.
        region: B×C×H×W bool, the region of every class (of the largest score).
        truncation: τ > 0 in pixels.

    Returns:
        φ in [-1, 1], positive inside, the shape of ``scores``.

    Raises:
        ValueError: If τ is not positive.

    >>> scores = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    >>> partition_level_sets(scores, scores > 0.5).flatten()
    tensor([ 0.7500, -0.7500])
    """
    offset = signed_distance(region, truncation).to(scores.dtype).mul_(0.5 / truncation).sub_(0.5)
    return scores + offset


def gaussian_log_posterior(values: Tensor, scores: Tensor, region: Tensor) -> Tensor:
    """Log f_i/Σ_j f_j with f_i a Gaussian of what the pixels of region i look like (Zhang 2019, eq. 9).

    Each region of each image has its own mean and variance of every feature (features taken as independent), weighted
    by the region's scores. As a posterior the likelihood can be compared with ρ, whatever D. Features are standardised
    over the image first, so their scale does not matter; a region's variance has a floor of 1 % of the image's.

    Args:
        values: B×D×H×W, colours or deep features.
        scores: S, B×C×H×W probabilities.
        region: B×C×H×W bool, the region of every class.

    Returns:
        B×C×H×W; -∞ for a class without a region.

    >>> values = torch.tensor([0.0, 0.1, 0.9, 1.0]).view(1, 1, 1, 4)
    >>> region = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).view(1, 3, 1, 4) > 0
    >>> gaussian_log_posterior(values, region.float(), region).exp()[0, :, 0].round()
    tensor([[1., 1., 0., 0.],
            [0., 0., 1., 1.],
            [0., 0., 0., 0.]])
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    x = values.to(dtype).flatten(2)
    spread, mean = torch.var_mean(x, 2, keepdim=True, correction=0)
    x = (x - mean) * (spread + 1e-8).rsqrt()
    weight = (scores.to(dtype) * region).flatten(2)
    total = weight.sum(2, keepdim=True)
    powers = torch.cat([x, x.square()], 1)
    # All sums of all classes are one product of matrices, and so is the quadratic form at every pixel.
    first, second = torch.bmm(weight / total.clamp_min(1e-8), powers.transpose(1, 2)).chunk(2, 2)
    variance = (second - first.square()).clamp_min(0) + VARIANCE_FLOOR
    form = torch.cat([first / variance, -0.5 / variance], 2)
    constant = -0.5 * (first.square() / variance + variance.log()).sum(2, keepdim=True)
    log_f = torch.baddbmm(constant, form, powers).masked_fill(total <= 0, -torch.inf)
    return torch.log_softmax(log_f, 1).view(scores.shape)
