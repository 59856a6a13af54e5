"""Level-set loss (Kim 2019): cross-entropy + λ · level-set energy, nothing added at inference."""

from typing import Any

from torch import Tensor

from lsseg.errors import InputError
from lsseg.functional import HeavisideKind, Kernels, Reduction
from lsseg.losses import CrossEntropyLevelSetLoss
from lsseg.models import SegOutput
from lsseg.tasks.segmentation import SegmentationTask, sum_of


class LevelSetLossTask(SegmentationTask):
    """Any network, trained with cross-entropy + λ · level-set energy (Kim 2019, eq. 8).

    Args:
        num_classes: C; the command line takes it from the data.
        level_set_weight: λ; 0.67 under ``mean`` is the paper's 4e-4 under ``batchmean`` on the 41×41 maps of its crops
            of 321; for its crops of 512 that is 1.69.
        epsilon: Width of the Heaviside transition, in units of probability.
        heaviside: ``mahf``, ``ahf`` or ``hf``.
        reduction: ``mean`` per valid pixel, or ``batchmean`` (also called ``sum``) over pixels, as printed.
        warmup_steps: λ rises from 0 over this many optimiser steps; 0 switches it on at once.
        kernels: Kernels of the loss: ``auto``, Triton's on a GPU; ``triton`` or ``torch`` force one or the other.
        **options: See :class:`SegmentationTask`; ``criterion`` is fixed.
    """

    criterion: CrossEntropyLevelSetLoss

    def __init__(
        self,
        num_classes: int,
        level_set_weight: float = 0.67,
        epsilon: float = 1 / 20,
        heaviside: HeavisideKind = "mahf",
        reduction: Reduction = "mean",
        warmup_steps: int = 0,
        kernels: Kernels = "auto",
        **options: Any,
    ) -> None:
        if warmup_steps < 0:
            raise InputError(f"model.warmup_steps must not be negative, not {warmup_steps}")
        try:
            criterion = CrossEntropyLevelSetLoss(level_set_weight, epsilon, heaviside, reduction, kernels=kernels)
        except ValueError as error:
            raise InputError(f"model.{error}") from error
        super().__init__(num_classes, criterion=criterion, **options)
        self.warmup_steps = warmup_steps

    def losses(self, output: SegOutput, target: Tensor) -> dict[str, Tensor]:
        """``cross_entropy``, ``level_set`` (unweighted) and their weighted sum ``loss``."""
        supervised = (output.logits, *output.auxiliary)
        cross_entropy, energy = map(sum_of, zip(*(self.criterion.terms(x, target) for x in supervised), strict=True))
        loss = cross_entropy + self.current_weight() * energy
        return {"loss": loss, "cross_entropy": cross_entropy, "level_set": energy}

    @property
    def level_set_weight(self) -> float:
        """λ, without its warm-up."""
        return self.criterion.level_set_weight

    @level_set_weight.setter
    def level_set_weight(self, value: float) -> None:
        self.criterion.level_set_weight = value

    def current_weight(self) -> float:
        """λ at the current training step; in evaluation always the full one, so that losses can be compared."""
        warm = self.training and self.warmup_steps > 0
        share = min(1.0, self.global_step / self.warmup_steps) if warm else 1.0
        return self.level_set_weight * share
