"""Trains DMLS (Zhang 2019), a recurrent network with level sets, by deep supervision and weighted cross-entropy."""

import json
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsseg.data.classes import median_frequency_weights, remembered_frequencies
from lsseg.errors import ArgumentError, InputError, require
from lsseg.files import write_json
from lsseg.losses import WeightedCrossEntropy
from lsseg.models import DMLS, SegOutput
from lsseg.tasks.segmentation import SegmentationTask, level_set_is_a_criterion, sum_of

MEDIAN_FREQUENCY = "median_frequency"


class DMLSTask(SegmentationTask):
    """Trains :class:`~lsseg.models.DMLS` with Σ_k α_k [loss(logits_k) + loss(refined_k)] (Zhang 2019, III.C).

    The loss is the paper's weighted cross-entropy, or any other ``criterion``. The weights of classes are equal by
    default, so that a comparison shows the effect of the level sets, not of another prior. The paper uses
    ``class_weights: median_frequency`` and ``boundary_weight: 1`` (eq. 11-12).

    Args:
        num_classes: Number of classes, C; the command line takes it from the data.
        network: Makes the network for C classes; null is :class:`~lsseg.models.DMLS` with its defaults.
        class_weights: ``median_frequency``, the path of another run's ``class_weights.json``, a list of C numbers, or
            null for equal weights. ``median_frequency`` counts the training split when a training starts, which takes
            minutes once for a large split. It writes ``class_weights.json`` into the run folder. Checkpoints keep the
            weights.
        boundary_weight: Weight that is added at the boundary pixels of the truth; 1 in the paper. 0 with equal class
            weights is plain cross-entropy.
        test_prior: Whether evaluation and prediction remove the prior that class weights have taught, by subtracting
            the logarithm of each class's weight from the class's logits.
        deep_supervision: Whether every step is supervised, or only the final prediction.
        step_weights: α_k; null is 1 over the number of supervised predictions. The loss is then a mean, so that a
            learning rate has the same effect as for other methods. A list of ones gives the paper's sum.
        criterion: The loss of every supervised prediction; null is :class:`~lsseg.losses.WeightedCrossEntropy` with
            ``boundary_weight``. If it is, or contains, such a loss, that loss uses ``class_weights``.
        level_set_weight: An option of older versions; it must be 0, because the level-set loss is now a ``criterion``.
        **options: See :class:`SegmentationTask`.
    """

    network: DMLS

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module] | None = None,
        class_weights: list[float] | str | None = None,
        boundary_weight: float = 0.0,
        test_prior: bool = False,
        deep_supervision: bool = True,
        step_weights: list[float] | None = None,
        criterion: nn.Module | None = None,
        level_set_weight: float = 0.0,
        **options: Any,
    ) -> None:
        require(0 <= boundary_weight < math.inf, "boundary_weight", boundary_weight, "must not be negative")
        level_set_is_a_criterion(level_set_weight)
        if boundary_weight and criterion is not None:
            raise ArgumentError(
                "boundary_weight must not be set with criterion: set it in the criterion's WeightedCrossEntropy"
            )
        if criterion is None:
            criterion = WeightedCrossEntropy(boundary_weight=boundary_weight)
        if test_prior and class_weights is None:
            raise ArgumentError("test_prior needs class_weights, because it removes their effect")
        self._weights_from = class_weights if isinstance(class_weights, str) else None
        weighted = _weighted(criterion)
        if class_weights is not None:
            if weighted is None:
                raise ArgumentError("class_weights need a criterion that is, or contains, WeightedCrossEntropy")
            if weighted.class_weights is not None:
                raise ArgumentError("class_weights are given twice: the criterion has its own")
            # Weights that are found only later start as ones, so that every checkpoint has a tensor for them.
            weights = [1.0] * num_classes if isinstance(class_weights, str) else class_weights
            _check_weights("class_weights", weights, num_classes)
            weighted.weigh(weights)
        super().__init__(num_classes, network=network or partial(DMLS), criterion=criterion, **options)
        net = self.network
        require(isinstance(net, DMLS), "network", type(net).__name__, "must be DMLS")
        steps = net.steps
        if step_weights is not None:
            _check_weights("step_weights", step_weights, steps)
        if step_weights is not None and not deep_supervision:
            raise ArgumentError("step_weights need deep_supervision")
        self.test_prior = test_prior
        self.deep_supervision = deep_supervision
        predictions = steps * (2 if net.level_set is not None else 1)
        self.step_weights = step_weights or [1 / predictions] * steps

    def unrefined(self, image: Tensor) -> Tensor | None:
        """Return the scores of the last step before its evolution; None without level sets."""
        if self.network.level_set is None:
            return None
        return self.whole(lambda part: self._without_prior(self(part).steps[-1].logits), image)

    def final_scores(self, image: Tensor) -> Tensor:
        """Return the scores of the last step; with ``test_prior``, remove the prior of the class weights."""
        return self._without_prior(super().final_scores(image))

    def _without_prior(self, logits: Tensor) -> Tensor:
        if not self.test_prior:
            return logits
        weights = self.class_weights()
        return logits - torch.where(weights > 0, weights, 1).log()[:, None, None]  # weight 0 has no logarithm

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the checkpoint, and keep the class weights that it contains."""
        super().on_load_checkpoint(checkpoint)
        self._weights_from = None

    def on_fit_start(self) -> None:
        """Find the class weights if they are not given as numbers and no checkpoint has set them."""
        if self._weights_from is None or self.trainer.max_steps == 0:
            return
        weights = self._found(self._weights_from) if self.trainer.is_global_zero else None
        weights = self.trainer.strategy.broadcast(weights)
        self.class_weights().copy_(torch.tensor(weights))

    def class_weights(self) -> Tensor:
        """Return the class weights of the criterion, which must have some."""
        weighted = _weighted(self.criterion)
        assert weighted is not None
        assert weighted.class_weights is not None
        return weighted.class_weights

    def losses(self, output: SegOutput, target: Tensor) -> dict[str, Tensor]:
        """Return ``step1`` … ``stepK`` (each the sum over the step's two predictions) and their weighted sum ``loss``.

        Without steps or deep supervision, return only ``loss``, the sum over the final and the auxiliary scores.
        """
        if not output.steps or not self.deep_supervision:
            supervised = (output.logits, *output.auxiliary)
            return {"loss": sum_of(self.loss_of(scores, target) for scores in supervised)}
        terms: dict[str, Tensor] = {}
        for number, step in enumerate(output.steps, start=1):
            terms[f"step{number}"] = sum_of(self.loss_of(scores, target) for scores in step if scores is not None)
        weighted = [weight * term for weight, term in zip(self.step_weights, terms.values(), strict=True)]
        if output.auxiliary:  # the same number of every step
            losses = torch.stack([self.loss_of(scores, target) for scores in output.auxiliary])
            weighted += losses.view(len(self.step_weights), -1).sum(1) * losses.new_tensor(self.step_weights)
        return {"loss": torch.stack(weighted).sum(), **terms}

    def phi(self, logits: Tensor) -> Tensor:
        """Return each class's refined score minus the best score of the other classes, B×C×H×W.

        Its zero contour is the contour of the class's region (eq. 6). If the scores are φ/T, it is φ_i minus the
        maximum of φ_j over j ≠ i. Without level sets it is P - ½.
        """
        if self.network.level_set is None:
            return super().phi(logits)
        scale = self.network.level_set.temperature
        phi = logits.float() * (1.0 if scale is None else scale.detach())
        two = phi.topk(2, 1).values
        return phi - torch.where(phi == two[:, :1], two[:, 1:], two[:, :1])

    def _found(self, source: str) -> list[float]:
        """Return the class weights, counted over the training split or read from a file."""
        data = self.trainer.datamodule
        if data is None:
            raise ArgumentError(f"class_weights {source!r} needs a data module; give a list, or null")
        if source == MEDIAN_FREQUENCY:
            return self._count(data)
        weights = _read_weights(source)
        if set(weights) != set(data.class_names):
            raise ArgumentError(f"class_weights {source} must have the classes of the data, not {', '.join(weights)}")
        found = [weights[name] for name in data.class_names]
        _check_weights("class_weights", found, self.num_classes)
        return found

    def _count(self, data: Any) -> list[float]:
        frequencies = remembered_frequencies(data.source("train"), self.num_classes)
        weights = dict(zip(data.class_names, median_frequency_weights(frequencies), strict=True))
        missing = [name for name, weight in weights.items() if weight == 0]
        if len(missing) == len(weights):
            raise InputError("the train split cannot be used for training, because every pixel of its masks is void")
        if missing:
            warnings.warn(f"the training split has no pixel of {', '.join(missing)}: the weight is 0", stacklevel=2)
        if not self.trainer.fast_dev_run:
            write_json(Path(self.trainer.default_root_dir) / "class_weights.json", weights)
        return list(weights.values())


def _read_weights(path: str) -> dict[str, float]:
    """Read a run's ``class_weights.json``, and return the weights by the name of the class."""
    try:
        return {name: float(weight) for name, weight in json.loads(Path(path).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        right = f"{MEDIAN_FREQUENCY}, a list, null, or a run's class_weights.json"
        reason = error.strerror if isinstance(error, OSError) else "not a class_weights.json"
        raise ArgumentError(f"class_weights must be {right}; {path}: {reason}") from error


def _check_weights(key: str, weights: list[float], count: int) -> None:
    right = len(weights) == count and all(0 <= weight < math.inf for weight in weights) and any(weights)
    require(right, key, weights, f"must be {count} numbers of at least 0, at least one of them above 0")


def _weighted(criterion: nn.Module) -> WeightedCrossEntropy | None:
    """Return the first weighted cross-entropy that a criterion is or contains, which gets the class weights."""
    return next((part for part in criterion.modules() if isinstance(part, WeightedCrossEntropy)), None)
