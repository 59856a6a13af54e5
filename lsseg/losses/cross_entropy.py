"""Computes cross-entropy, the baseline of every comparison, and the weighted one of DMLS (Zhang 2019, eq. 11-12).

Both are means over the valid pixels of a batch, or over those of all processes of a training on several GPUs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.errors import require
from lsseg.functional import label_boundary
from lsseg.functional.blocks import wide


class PixelMean(nn.Module):
    """Provides the base of losses that are a mean over valid pixels.

    Attributes:
        over_processes: Whether the mean is over the pixels of all processes that train together. The default is
            False, so that your own training loop need not involve other processes. The tasks set it by
            :func:`set_over_processes`. Every process must then compute the loss in training.
    """

    over_processes = False

    def over_processes_too(self, mean: Tensor, valid: Callable[[], Tensor]) -> Tensor:
        """Return the mean over valid pixels, times :func:`share_of_pixels` if ``over_processes`` is set."""
        return mean * share_of_pixels(valid(), self.training) if self.over_processes else mean


def set_over_processes(module: nn.Module) -> None:
    """Make every loss in a module, or the module itself, a mean over the pixels of all processes."""
    for part in module.modules():
        if isinstance(part, PixelMean):
            part.over_processes = True


def several_processes() -> bool:
    """Return whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean over the processes, or ``values`` itself in a single process; every process must call it."""
    if not several_processes():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def share_of_pixels(valid: Tensor, training: bool) -> Tensor:
    """Return this process's number of valid pixels divided by the mean number of all processes.

    The share is 1 in evaluation, without gradients, and in a single process. DDP averages gradients. Processes with few
    valid pixels thus get the weight of those with many. With this factor the average of the processes' means becomes
    the mean over all pixels, as in one process with the whole batch. In training every process must call this function.

    Args:
        valid: Bool, any shape.
        training: Whether gradients will be averaged.

    >>> share_of_pixels(torch.tensor([True, False]), training=True)
    tensor(1.)
    """
    if not (training and torch.is_grad_enabled() and several_processes()):
        return torch.ones((), device=valid.device)
    count = valid.sum().float()
    return count / mean_over_processes(count).clamp_min(1e-8)


class CrossEntropyLoss(PixelMean):
    """Computes the mean cross-entropy over the batch's valid pixels; 0 if there are none (torch's own is NaN then).

    Args:
        ignore_index: Label of void pixels.

    >>> CrossEntropyLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    tensor(0.6931)
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of B×C×spatial logits on a B×spatial target."""
        total = cross_entropy(logits, target, None, self.ignore_index, "sum")
        valid = target != self.ignore_index
        return self.over_processes_too(total / valid.sum().clamp_min(1), lambda: valid)


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: Literal["sum", "none"]
) -> Tensor:
    """Compute torch's cross-entropy in float32 or float64, and refuse a label that names no class.

    Args:
        logits: B×C×spatial.
        target: B×spatial integers.
        weight: Weight of each class; None means 1 for all.
        ignore_index: Label of void pixels.
        reduction: ``sum`` over pixels, or ``none``.

    Raises:
        ValueError: If a label names no class, on a CPU. On other devices the loss is NaN instead, because a check would
            have to wait for the device, and torch's own would end the process on a GPU.
    """
    # A sum over 10⁵ pixels overflows float16 and is very inexact in bfloat16.
    exact = wide(logits)
    labels, classes = target.long(), logits.shape[1]
    if labels.device.type == "cpu":
        try:
            return F.cross_entropy(exact, labels, weight, ignore_index=ignore_index, reduction=reduction)
        except IndexError:
            check_labels(labels, classes, ignore_index)
            raise
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    labels = labels.masked_fill(wrong, ignore_index)
    loss = F.cross_entropy(exact, labels, weight, ignore_index=ignore_index, reduction=reduction)
    if reduction == "none":
        return loss.masked_fill(wrong, torch.nan)
    return loss + torch.where(wrong.any(), torch.nan, 0.0)


def check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise ``ValueError`` for a label that names no class, only on a CPU, where this waits for no device."""
    if target.device.type != "cpu":
        return
    wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"target holds the label {int(wrong[0])}: expected 0..{classes - 1} or the ignore index {ignore_index}"
        )


class WeightedCrossEntropy(PixelMean):
    """Weights cross-entropy by w_c + boundary_weight · 1[boundary] at a pixel of class c (Zhang 2019, eq. 11-12).

    The sum is divided by the number of valid pixels, not by the sum of the weights.
    The paper's λ‖θ‖² is the optimiser's weight decay.

    Args:
        class_weights: w_c of every class, as from :func:`~lsseg.data.classes.median_frequency_weights`; None means 1.
        boundary_weight: Weight added at pixels with a 4-neighbour of another valid label.
        ignore_index: Label of void pixels.

    Raises:
        ArgumentError: If a weight is negative or not finite, or all are 0; in ``forward``, if there are not C of them.

    >>> logits, target = torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 0, 1]]])
    >>> WeightedCrossEntropy([1.0, 3.0])(logits, target) / torch.tensor(2.0).log()  # (1 + (1 + 1) + (3 + 1)) / 3
    tensor(2.3333)
    """

    class_weights: Tensor | None

    def __init__(
        self, class_weights: Sequence[float] | None = None, boundary_weight: float = 1.0, ignore_index: int = 255
    ) -> None:
        super().__init__()
        require(0 <= boundary_weight < math.inf, "boundary_weight", boundary_weight, "must not be negative")
        self.register_buffer("class_weights", None)
        if class_weights is not None:
            self.weigh(class_weights)
        self.boundary_weight = boundary_weight
        self.ignore_index = ignore_index

    def weigh(self, class_weights: Sequence[float]) -> None:
        """Set the weights of the classes, C numbers.

        Raises:
            ArgumentError: If a weight is negative or not finite, or if all of them are 0.
        """
        right = all(0 <= weight < math.inf for weight in class_weights) and any(class_weights)
        require(
            right, "class_weights", list(class_weights), "must be numbers of at least 0, at least one of them above 0"
        )
        self.class_weights = torch.tensor(class_weights, dtype=torch.float32)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of B×C×H×W logits on a B×H×W target; 0 where every pixel is void."""
        target = target.long()
        weights = self.class_weights
        if weights is not None:
            require(
                len(weights) == logits.shape[1], "class_weights", len(weights), f"must be {logits.shape[1]} numbers"
            )
            weights = weights.to(torch.promote_types(logits.dtype, torch.float32))
        if self.boundary_weight == 0:
            total = cross_entropy(logits, target, weights, self.ignore_index, "sum")
        else:
            total = self._with_boundary(logits, target, weights)
        valid = target != self.ignore_index
        return self.over_processes_too(total / valid.sum().clamp_min(1), lambda: valid)

    def _with_boundary(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        by_pixel = cross_entropy(logits, target, None, self.ignore_index, "none")
        weight = self.boundary_weight * label_boundary(target, self.ignore_index)
        valid = target != self.ignore_index
        if weights is None:
            weight = weight + 1.0
        else:
            # On a GPU an index outside the weights would end the process. The loss of a wrong label is already NaN.
            places = (target * valid).clamp(0, len(weights) - 1)
            weight = weight + weights[places]
        return torch.where(valid, by_pixel * weight, 0).sum()
