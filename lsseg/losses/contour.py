"""Rivals of the level-set loss that look at contours, too: boundary loss and active-contour loss.

Legend: B images, C classes, H×W pixels; P are the class probabilities.
"""

import torch
from torch import Tensor, nn

from lsseg.functional import regions, signed_distance
from lsseg.losses.cross_entropy import check_labels


class BoundaryLoss(nn.Module):
    """mean -φ_G · P over valid pixels and classes, φ_G the signed distance of the truth (Kervadec 2019, eq. 5).

    A class that an image lacks, or that fills it, has no contour and counts 0 there. The loss has no scale of its own
    and is meant to be added to another.

    Args:
        ignore_index: Label of void pixels.

    >>> target = torch.tensor([[[0, 0, 1, 1]]])
    >>> BoundaryLoss()(torch.stack([target == 0, target == 1], 1) * 99.0, target)  # the least it can be
    tensor(-0.5000)
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of B×C×H×W logits on a B×H×W target; 0 where nothing is valid."""
        check_labels(target, logits.shape[1], self.ignore_index)
        probability = _probabilities(logits)
        mask = regions(target, logits.shape[1])
        valid = (target != self.ignore_index)[:, None]
        inside, outside = ((valid & part).flatten(2).any(2) for part in (mask, ~mask))
        phi = signed_distance(mask) * (inside & outside)[..., None, None]
        count = valid.sum().clamp_min(1) * logits.shape[1]
        return -(torch.where(valid, phi, 0) * probability).sum() / count


class ActiveContourLoss(nn.Module):
    """Length of the contours and Chan-Vese regions of values 1 inside and 0 outside (Chen 2019, eq. 5-8), per pixel.

    Σ_c |∇P_c| + λ · Σ_c [P_c (1 - G_c)² + (1 - P_c) G_c²], mean over the valid pixels. The slope takes forward
    differences, only between valid pixels.

    Args:
        region_weight: λ; 1 in the paper.
        eta: Slopes much smaller than it have no direction.
        ignore_index: Label of void pixels.

    >>> target = torch.tensor([[[0, 0, 1, 1]]])
    >>> loss = ActiveContourLoss()
    >>> sure = torch.stack([target == 0, target == 1], 1) * 99.0
    >>> loss(sure, target).round(decimals=3)  # no region is wrong, and each of the two classes has a contour
    tensor(0.5000)
    """

    def __init__(self, region_weight: float = 1.0, eta: float = 1e-4, ignore_index: int = 255) -> None:
        super().__init__()
        if not eta > 0:
            raise ValueError(f"eta must be positive, not {eta}")
        if not region_weight >= 0:
            raise ValueError(f"region_weight must not be negative, not {region_weight}")
        self.region_weight, self.eta, self.ignore_index = region_weight, eta, ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of B×C×H×W logits on a B×H×W target; 0 where nothing is valid."""
        check_labels(target, logits.shape[1], self.ignore_index)
        probability = _probabilities(logits)
        mask = regions(target, logits.shape[1])
        valid = (target != self.ignore_index)[:, None]
        across = _difference(probability, valid, 3)
        down = _difference(probability, valid, 2)
        length = (across.square() + down.square() + self.eta**2).sqrt() - self.eta
        region = torch.where(mask, 1 - probability, probability)
        total = torch.where(valid, length + self.region_weight * region, 0).sum()
        return total / valid.sum().clamp_min(1)


def _difference(values: Tensor, valid: Tensor, axis: int) -> Tensor:
    """To the next pixel along an axis; 0 at the end and where one of the two is void."""
    count = values.shape[axis] - 1
    both = valid.narrow(axis, 0, count) & valid.narrow(axis, 1, count)
    step = torch.where(both, values.diff(dim=axis), 0)
    return torch.cat([step, torch.zeros_like(values.narrow(axis, 0, 1))], axis)


def _probabilities(logits: Tensor) -> Tensor:
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return exact.softmax(1)
