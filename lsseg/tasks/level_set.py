"""Trains networks with the level-set loss (Kim 2019), which leaves inference unchanged."""

from typing import Any

from torch import Tensor, nn

from lsseg.errors import ArgumentError, require
from lsseg.functional import HeavisideKind, Kernels, Reduction
from lsseg.losses import CrossEntropyLevelSetLoss, LevelSetLoss
from lsseg.models import SegOutput
from lsseg.tasks.segmentation import SegmentationTask, sum_of


class LevelSetLossTask(SegmentationTask):
    """Trains any network with cross-entropy, or another loss, + λ · level-set energy (Kim 2019, eq. 8).

    Args:
        num_classes: Number of classes, C; the command line takes it from the data.
        level_set_weight: λ. Under ``mean``, 0.67 equals the paper's 4e-4 under ``batchmean`` on the 41×41 maps of its
            crops of 321. For its crops of 512 the equal value is 1.69.
        epsilon: Width of the Heaviside transition, in units of probability.
        heaviside: ``mahf``, ``ahf``, ``hf`` or ``ramp``; see :func:`~lsseg.functional.heaviside`.
        reduction: ``mean`` divides by the valid pixels; ``balanced`` divides by the pixels of the class; ``log`` is
            -log(1 - energy) of that, meant for ``ramp`` and an ε of ½; ``batchmean`` (also called ``sum``) sums over
            pixels, as printed in the paper.
        warmup_steps: λ rises from 0 over this many optimiser steps; 0 switches it on at once.
        epsilon_start: ε at the first step, from which ε falls in a geometric progression to ``epsilon`` at the last
            step. A wide transition also reaches pixels that are wrong with high confidence. Null keeps ε constant.
        kernels: ``auto`` uses Triton's on a GPU where Triton is installed; ``triton`` and ``torch`` force a choice.
        criterion: The loss to which the energy is added; null is cross-entropy, computed in one pass with the energy.
        **options: See :class:`SegmentationTask`.
    """

    def __init__(
        self,
        num_classes: int,
        level_set_weight: float = 0.67,
        epsilon: float = 1 / 20,
        heaviside: HeavisideKind = "mahf",
        reduction: Reduction = "mean",
        warmup_steps: int = 0,
        epsilon_start: float | None = None,
        kernels: Kernels = "auto",
        criterion: nn.Module | None = None,
        **options: Any,
    ) -> None:
        require(warmup_steps >= 0, "warmup_steps", warmup_steps, "must not be negative")
        if epsilon_start is not None:
            require(0 < epsilon_start < float("inf"), "epsilon_start", epsilon_start, "must be positive")
        fused = CrossEntropyLevelSetLoss(level_set_weight, epsilon, heaviside, reduction, kernels=kernels)
        for part in criterion.modules() if criterion is not None else ():
            if isinstance(part, CrossEntropyLevelSetLoss | LevelSetLoss) and getattr(part, "level_set_weight", True):
                raise ArgumentError(
                    "criterion must not contain the level-set energy, which this task adds: use it with "
                    "SegmentationTask"
                )
        super().__init__(num_classes, criterion=fused if criterion is None else criterion, **options)
        self.fused = fused
        self.energy = LevelSetLoss(epsilon, heaviside, reduction, kernels=kernels)
        self.warmup_steps = warmup_steps
        self.epsilon, self.epsilon_start = epsilon, epsilon_start

    def losses(self, output: SegOutput, target: Tensor) -> dict[str, Tensor]:
        """Return ``cross_entropy`` (or ``criterion``), ``level_set`` (unweighted) and their weighted sum ``loss``."""
        supervised = (output.logits, *output.auxiliary)
        self.fused.epsilon = self.energy.epsilon = self.current_epsilon()
        first, energy = map(sum_of, zip(*(self._terms(logits, target) for logits in supervised), strict=True))
        name = "cross_entropy" if self.criterion is self.fused else "criterion"
        return {"loss": first + self.current_weight() * energy, name: first, "level_set": energy}

    def _terms(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.criterion is self.fused:
            return self.fused.terms(logits, target)
        return self.loss_of(logits, target), self.energy(logits, target)

    @property
    def level_set_weight(self) -> float:
        """Return λ without its warm-up."""
        return self.fused.level_set_weight

    @level_set_weight.setter
    def level_set_weight(self, value: float) -> None:
        self.fused.level_set_weight = value

    def current_weight(self) -> float:
        """Return λ at the current training step; in evaluation the full λ, so that losses can be compared."""
        warm = self.training and self.warmup_steps > 0
        share = min(1.0, self.global_step / self.warmup_steps) if warm else 1.0
        return self.level_set_weight * share

    def current_epsilon(self) -> float:
        """Return ε at the current training step; in evaluation the last ε, so that losses can be compared."""
        if self.epsilon_start is None or not self.training:
            return self.epsilon
        share = min(1.0, self.global_step / max(1, self.trainer.estimated_stepping_batches))
        return float(self.epsilon_start * (self.epsilon / self.epsilon_start) ** share)
