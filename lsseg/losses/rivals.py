"""Holds rivals of the level-set loss: boundary, active-contour and max-pooling loss (Bulò 2017).

Each of them can be used alone or with cross-entropy.

Legend: B images, C classes, H×W pixels; P are the class probabilities; n valid pixels of an image.
"""

import torch
from torch import Tensor, nn

from lsseg.errors import ArgumentError, require
from lsseg.functional import regions, signed_distance
from lsseg.functional.blocks import wide
from lsseg.losses.cross_entropy import CrossEntropyLoss, WeightedCrossEntropy, check_labels, cross_entropy
from lsseg.losses.level_set import CrossEntropyLevelSetLoss


class BoundaryLoss(nn.Module):
    """Computes the mean of -φ_G · P over valid pixels and classes (Kervadec 2019, eq. 5).

    φ_G is the signed distance of the truth. A class that an image lacks, or that fills the image, has no contour and
    counts 0 there. The loss has no fixed scale and is meant to be added to another loss.

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
        """Return the scalar loss of B×C×H×W logits on a B×H×W target; 0 where nothing is valid."""
        check_labels(target, logits.shape[1], self.ignore_index)
        probability = _probabilities(logits)
        mask = regions(target, logits.shape[1])
        valid = (target != self.ignore_index)[:, None]
        inside, outside = ((valid & part).flatten(2).any(2) for part in (mask, ~mask))
        phi = signed_distance(mask) * (inside & outside)[..., None, None]
        count = valid.sum().clamp_min(1) * logits.shape[1]
        return -(torch.where(valid, phi, 0) * probability).sum() / count


class ActiveContourLoss(nn.Module):
    """Adds contour length and Chan-Vese regions with values 1 inside and 0 outside (Chen 2019, eq. 5-8), per pixel.

    The loss is Σ_c |∇P_c| + λ · Σ_c [P_c (1 - G_c)² + (1 - P_c) G_c²], averaged over the valid pixels. The slope |∇P_c|
    comes from forward differences between valid pixels only.

    Args:
        region_weight: λ; 1 in the paper.
        eta: η > 0, which smooths the length: slopes much smaller than η add almost nothing.
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
            raise ArgumentError(f"eta must be positive, not {eta}")
        if not region_weight >= 0:
            raise ArgumentError(f"region_weight must not be negative, not {region_weight}")
        self.region_weight, self.eta, self.ignore_index = region_weight, eta, ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of B×C×H×W logits on a B×H×W target; 0 where nothing is valid."""
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
    """Return the difference to the next pixel along an axis; 0 at the end and where one of the two pixels is void."""
    count = values.shape[axis] - 1
    both = valid.narrow(axis, 0, count) & valid.narrow(axis, 1, count)
    step = torch.where(both, values.diff(dim=axis), 0)
    return torch.cat([step, torch.zeros_like(values.narrow(axis, 0, 1))], axis)


def _probabilities(logits: Tensor) -> Tensor:
    exact = wide(logits)
    return exact.softmax(1)


class LossMaxPooling(nn.Module):
    """Computes each image's cross-entropy under the worst weights: max_w Σ w_u ℓ_u, ‖w‖_p ≤ γ, ‖w‖_∞ ≤ τ, w ≥ 0.

    γ is n^(-1/q) with 1/p + 1/q = 1, so that equal weights 1/n are just possible. τ is γ m^(-1/p), so that at least
    m = share · n pixels carry weight. For p → 1 and share 1 the loss is the mean. The gradient treats the worst weights
    as constants, because a change of the weights adds nothing at their optimum.

    Args:
        p: The exponent, in (1, ∞); 1.7 in the paper.
        share: m/n in (0, 1]; a quarter in the paper.
        ignore_index: Label of void pixels.

    Raises:
        ValueError: If a value is out of range.

    >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    >>> LossMaxPooling()(logits, target)  # all pixels alike: the mean
    tensor(0.6931)
    """

    def __init__(self, p: float = 1.7, share: float = 0.25, ignore_index: int = 255) -> None:
        super().__init__()
        if not 1 < p < float("inf"):
            raise ArgumentError(f"p must lie between 1 and infinity, not {p}")
        if not 0 < share <= 1:
            raise ArgumentError(f"share must lie in (0, 1], not {share}")
        self.p, self.share, self.ignore_index = p, share, ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of B×C×H×W logits on a B×H×W target, a mean over the images with a valid pixel."""
        losses = cross_entropy(logits, target, None, self.ignore_index, "none")
        valid = target != self.ignore_index
        pooled = [self._pooled(loss[keep]) for loss, keep in zip(losses, valid, strict=True)]
        return torch.stack(pooled).sum() / valid.flatten(1).any(1).sum().clamp_min(1)

    def _pooled(self, losses: Tensor) -> Tensor:
        if not losses.numel():
            return losses.sum()
        return (worst_weights(losses.detach(), self.p, self.share) * losses).sum()


def worst_weights(losses: Tensor, p: float, share: float) -> Tensor:
    """Return the weights of n losses (≥ 0) that maximise their weighted sum.

    The weights are w = min(τ, c · ℓ^(1/(p-1))), with c such that ‖w‖_p = γ. If k losses reach the cap τ, this condition
    is k + (c/τ)^p · Σ ℓ^q over the others = m, since γ^p = m τ^p. The function takes the least k with which no other
    loss exceeds the cap. Powers are kept as logarithms, because q is large for p near 1.
    """
    count = len(losses)
    least = share * count
    power, order = (losses.double().log() * (p / (p - 1))).sort(descending=True)
    others = power.flip(0).logcumsumexp(0).flip(0)  # log Σ ℓ^q over a loss and all smaller ones
    left = (least - torch.arange(count, device=losses.device, dtype=power.dtype)).clamp_min(0).log()
    capped = int((left + power > others).sum())  # These come first, as the sum falls faster than ``left``.
    weights = torch.ones_like(power)
    if capped < count and others[capped] > -torch.inf:
        weights[capped:] = ((left[capped] - others[capped] + power[capped:]) / p).exp().clamp_max(1)
    tau = count ** (1 / p - 1) * least ** (-1 / p)
    return torch.empty_like(weights).scatter_(0, order, weights * tau).to(losses.dtype)


class CrossEntropyPlus(nn.Module):
    """Computes cross-entropy + weight · another loss of logits and target.

    The other loss gets float32 logits, because smp's losses overflow in half precision. It is left out where no pixel
    is valid, because some losses are NaN there.

    Args:
        loss: Maps B×C×H×W logits and a B×H×W target to a scalar, such as ``lsseg.losses.BoundaryLoss`` or
            ``segmentation_models_pytorch.losses.DiceLoss``.
        weight: Weight of the loss.
        cross_entropy_weight: Weight of cross-entropy.
        pixels: Whether the other loss takes pixels as a set, as losses of overlap do. It then gets the valid pixels of
            the batch, 1×C×n×1 and 1×n×1. Otherwise it must leave out void pixels by itself.
        level_set_weight: λ of the level-set energy (Kim 2019, eq. 8), a third term that is computed in one pass with
            cross-entropy; 0 leaves it out.
        ignore_index: Label of void pixels.

    Raises:
        ArgumentError: If a weight is negative or not finite, or if ``pixels`` is set for a loss that needs the image.

    >>> loss = CrossEntropyPlus(CrossEntropyLoss(), 0.5)
    >>> loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    tensor(1.0397)
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        pixels: bool = False,
        level_set_weight: float = 0.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        weights = {"weight": weight, "cross_entropy_weight": cross_entropy_weight, "level_set_weight": level_set_weight}
        for key, value in weights.items():
            require(0 <= value < float("inf"), key, value, "must not be negative")
        if pixels and isinstance(loss, WeightedCrossEntropy | BoundaryLoss | ActiveContourLoss):
            raise ArgumentError(
                f"pixels must be false, because {type(loss).__name__} looks for contours in whole images"
            )
        self.cross_entropy = CrossEntropyLoss(ignore_index)
        self.level_set = CrossEntropyLevelSetLoss(level_set_weight, ignore_index=ignore_index)
        self.loss = loss
        self.weight = weight
        self.cross_entropy_weight = cross_entropy_weight
        self.pixels = pixels
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of B×C×H×W logits on a B×H×W target."""
        total = self._cross_entropy_and_level_set(logits, target)
        valid = target != self.ignore_index
        if not bool(valid.any()):
            return total
        exact = wide(logits)
        if self.pixels:
            exact, target = exact.movedim(1, -1)[valid].T[None, ..., None], target[valid][None, :, None]
        with torch.autocast(logits.device.type, enabled=False):
            result: Tensor = total + self.weight * self.loss(exact, target)
        return result

    def _cross_entropy_and_level_set(self, logits: Tensor, target: Tensor) -> Tensor:
        if not self.level_set.level_set_weight:
            result: Tensor = self.cross_entropy_weight * self.cross_entropy(logits, target)
            return result
        cross_entropy, energy = self.level_set.terms(logits, target)
        return self.cross_entropy_weight * cross_entropy + self.level_set.level_set_weight * energy
