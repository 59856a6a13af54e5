"""DMLS (Zhang 2019): a recurrent network with multiphase level sets, weighted cross-entropy, deep supervision."""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lsseg.data.frequencies import class_frequencies, median_frequency_weights
from lsseg.errors import InputError
from lsseg.files import write_json
from lsseg.losses import WeightedCrossEntropy
from lsseg.models import DMLS, SegOutput
from lsseg.tasks.segmentation import SegmentationTask


class DMLSTask(SegmentationTask):
    """Σ_k α_k [WCE(logits_k) + WCE(φ_k/T)] over the steps of :class:`~lsseg.models.DMLS` (Zhang 2019, section III.C).

    Args:
        num_classes: C; the command line takes it from the data.
        network: Makes the network for C classes; null is :class:`~lsseg.models.DMLS` with its defaults.
        class_weights: ``median_frequency`` (counted over the training split when the training begins, and kept in the
            run's folder as ``class_weights.json``), a list of C numbers, or null for equal weights.
        boundary_weight: Added to the weight of ground-truth boundary pixels; 0 with equal weights is plain
            cross-entropy.
        deep_supervision: Whether every step is supervised, or only the final prediction.
        step_weights: α_k; null is 1 for every step.
        **options: See :class:`SegmentationTask`; ``criterion`` is fixed.
    """

    criterion: WeightedCrossEntropy

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module] | None = None,
        class_weights: Literal["median_frequency"] | list[float] | None = "median_frequency",
        boundary_weight: float = 1.0,
        deep_supervision: bool = True,
        step_weights: list[float] | None = None,
        **options: Any,
    ) -> None:
        if boundary_weight < 0:
            raise InputError(f"model.boundary_weight must not be negative, not {boundary_weight}")
        if isinstance(class_weights, list) and (len(class_weights) != num_classes or min(class_weights) < 0):
            raise InputError(f"model.class_weights must be {num_classes} numbers of at least 0, not {class_weights}")
        self._counts_classes = class_weights == "median_frequency"
        # Weights that are still to be counted have their place in the checkpoint from the beginning.
        weights = [1.0] * num_classes if isinstance(class_weights, str) else class_weights
        criterion = WeightedCrossEntropy(weights, boundary_weight)
        super().__init__(num_classes, network=network or partial(DMLS), criterion=criterion, **options)
        steps = self.network.steps if isinstance(self.network, DMLS) else 1
        if step_weights is not None and (len(step_weights) != steps or min(step_weights) < 0):
            raise InputError(f"model.step_weights must be {steps} numbers of at least 0, not {step_weights}")
        if step_weights is not None and not deep_supervision:
            raise InputError("model.step_weights needs model.deep_supervision")
        self.deep_supervision = deep_supervision
        self.step_weights = step_weights or [1.0] * steps

    def setup(self, stage: str) -> None:
        """Count the classes of the training split where their weights follow from it."""
        if stage != "fit" or not self._counts_classes:
            return
        weights = self._count() if self.trainer.is_global_zero else None
        weights = self.trainer.strategy.broadcast(weights)
        assert self.criterion.class_weights is not None
        self.criterion.class_weights.copy_(torch.tensor(weights))

    def losses(self, output: SegOutput, target: Tensor) -> dict[str, Tensor]:
        """``step1`` … ``stepK`` (each the sum over its two predictions) and their weighted sum ``loss``."""
        if not output.steps or not self.deep_supervision:
            return super().losses(output, target)
        terms: dict[str, Tensor] = {}
        for number, step in enumerate(output.steps, start=1):
            scores = [part for part in step if part is not None]
            terms[f"step{number}"] = torch.stack([self.criterion(part, target) for part in scores]).sum()
        weighted = [weight * term for weight, term in zip(self.step_weights, terms.values(), strict=True)]
        return {"loss": torch.stack(weighted).sum(), **terms}

    def phi(self, logits: Tensor) -> Tensor:
        """φ_i - max over j ≠ i of φ_j after the last evolution, B×C×H×W: its zero contour is region i's (eq. 6)."""
        if not isinstance(self.network, DMLS) or self.network.level_set is None:
            return super().phi(logits)
        phi = logits.float() * self.network.level_set.temperature.detach()
        two = phi.topk(2, 1).values
        return phi - torch.where(phi == two[:, :1], two[:, 1:], two[:, :1])

    def _count(self) -> list[float]:
        path = Path(self.trainer.default_root_dir) / "class_weights.json"
        data = self.trainer.datamodule
        if data is None:
            raise InputError("model.class_weights 'median_frequency' needs a data module; give a list, or null")
        if path.is_file():
            return list(_read(path, data.class_names).values())
        frequencies = class_frequencies(data.source("train"), self.num_classes, progress=True)
        weights = dict(zip(data.class_names, median_frequency_weights(frequencies), strict=True))
        missing = [name for name, weight in weights.items() if weight == 0]
        if missing:
            warnings.warn(f"no pixel of {', '.join(missing)} in the training split: weight 0", stacklevel=2)
        if not self.trainer.fast_dev_run:
            write_json(path, weights)
        return list(weights.values())


def _read(path: Path, names: tuple[str, ...]) -> dict[str, float]:
    try:
        weights: dict[str, float] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged; delete it, and the weights are counted again") from error
    if tuple(weights) != names:
        raise InputError(f"{path} has the weights of other classes; delete it, and they are counted again")
    return weights
