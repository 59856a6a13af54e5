"""Trains the Chan-Vese refinement of a semantic network by losses before and after it (after Homayounfar 2020)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lsseg.errors import InputError, require
from lsseg.functional import regions, tsdf
from lsseg.losses import TSDFLoss
from lsseg.losses.cross_entropy import share_of_pixels
from lsseg.models import ChanVeseNet, SegOutput
from lsseg.models.chan_vese import TEMPERATURE
from lsseg.models.heads import Numbers
from lsseg.tasks.base import EvolvingObject
from lsseg.tasks.segmentation import IGNORE_INDEX, SegmentationTask, level_set_is_a_criterion, sum_of


class ChanVeseTask(SegmentationTask):
    """Trains :class:`~lsseg.models.ChanVeseNet` with w0 · loss(before evolution) + wN · loss(after evolution).

    With ``initial: scores`` both losses are ``criterion``. With ``initial: distances`` both are
    :class:`~lsseg.losses.TSDFLoss` on the truncated signed distances of each class's region, as in the paper. If a
    ``criterion`` is given, its loss on the scores after the evolution is then added. No loss counts void pixels.

    Args:
        num_classes: Number of classes, C; the command line takes it from the data.
        network: Makes the network for C classes; null is :class:`~lsseg.models.ChanVeseNet` with its defaults.
        initial_weight: w0; 1 in the paper (Cityscapes).
        final_weight: wN; 5 in the paper (Cityscapes, distances).
        truncation: τ in cells of the evolution's grid, used with distances; 14 in this project's reading of the paper.
        criterion: The loss of scores; null is cross-entropy for ``initial: scores``, and adds no loss for distances.
        level_set_weight: An option of older versions; it must be 0, because the level-set loss is now a ``criterion``.
        **options: See :class:`SegmentationTask`.
    """

    network: ChanVeseNet
    first_step = 0  # the first picture of an evolution shows φ⁰

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module] | None = None,
        initial_weight: float = 1.0,
        final_weight: float = 1.0,
        truncation: float = 14.0,
        criterion: nn.Module | None = None,
        level_set_weight: float = 0.0,
        **options: Any,
    ) -> None:
        for key, value in {"initial_weight": initial_weight, "final_weight": final_weight}.items():
            require(0 <= value < math.inf, key, value, "must not be negative")
        require(0 < truncation < math.inf, "truncation", truncation, "must be positive")
        level_set_is_a_criterion(level_set_weight)
        super().__init__(num_classes, network=network or partial(ChanVeseNet), criterion=criterion, **options)
        net = self.network
        require(isinstance(net, ChanVeseNet), "network", type(net).__name__, "must be ChanVeseNet")
        self.initial_weight, self.final_weight, self.truncation = initial_weight, final_weight, truncation
        self.tsdf_loss = TSDFLoss()
        self.added = net.initial == "distances" and criterion is not None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the checkpoint; if its head has the first form and the settings do not fit, name the right ones."""
        first_form = "network.feature_head.0.weight" in checkpoint["state_dict"]
        if first_form and (self.network.initial, self.network.slope) != ("distances", 1.0):
            raise InputError(
                "the checkpoint's head predicts distances, the default of ChanVeseNet in older versions: set "
                "model.network.initial to distances and model.network.slope to 1"
            )
        super().on_load_checkpoint(checkpoint)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> SegOutput:
        """Return the scores of a B×3×H×W image in [0, 1]; the classes of a given mask are the first to evolve."""
        output: SegOutput = self.network(image, None if mask is None else _present(mask, self.num_classes))
        return output

    def train_output(self, batch: dict[str, Any]) -> SegOutput:
        """Return the network's output for a training batch."""
        return self(batch["image"], batch["mask"])

    def losses(self, output: SegOutput, target: Tensor) -> dict[str, Tensor]:
        """Return the terms of the training loss, and ``loss``, their weighted sum with the losses of auxiliary scores.

        The terms are ``initial`` (only if the output has steps before the final one), ``final``, and ``criterion``
        (only if it is added to distances). Without a refinement, ``final`` has the weight 1.
        """
        loss_of = self.loss_of if self.network.initial == "scores" else self._distance_loss(target)
        terms = {"final": loss_of(output.logits, target)}
        refined = self.network.refine != "none"
        loss = (self.final_weight if refined else 1.0) * terms["final"]
        if len(output.steps) >= 2:
            terms["initial"] = loss_of(output.steps[0].logits, target)
            loss = loss + self.initial_weight * terms["initial"]
        if output.auxiliary:
            loss = loss + sum_of(self.loss_of(scores, target) for scores in output.auxiliary)
        if self.added:
            terms["criterion"] = self.loss_of(output.logits, target)
            loss = loss + terms["criterion"]
        return {"loss": loss, **terms}

    def _distance_loss(self, target: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss of scores φ/T on the signed distances of a target, which are computed only once."""
        valid = (target != IGNORE_INDEX)[:, None]
        mask = regions(target, self.num_classes)
        phi = tsdf(mask, self.truncation * self.network.stride)
        share = share_of_pixels(valid, self.training)

        def loss(logits: Tensor, _: Tensor) -> Tensor:
            value: Tensor = self.tsdf_loss(logits * TEMPERATURE, phi.to(logits.dtype), mask, valid)
            return share * value

        return loss

    def unrefined(self, image: Tensor) -> Tensor | None:
        """Return the scores before the evolution; None without a refinement."""
        if self.network.refine == "none":
            return None
        return self.whole(lambda part: self(part).steps[0].logits, image)

    def phi(self, logits: Tensor) -> Tensor:
        """Return the level-set functions of all classes, B×C×H×W: P - ½ with scores, else the evolved distances."""
        return super().phi(logits) if self.network.initial == "scores" else logits.float() * TEMPERATURE

    def steps_of(self, image: Tensor) -> list[Tensor]:
        """Return the scores from φ⁰ and after every iteration."""
        return self.network.evolution(image)

    def evolving_objects(self, image: Tensor, names: tuple[str, ...], count: int) -> list[EvolvingObject]:
        """Return the evolutions of the ``count`` classes of a 3×H×W image whose regions change most."""
        net = self.network
        if net.refine != "chan_vese":
            return []
        parts = net.parts(image[None])
        phi = net.history(parts)
        inside = [step > 0 for step in phi]
        moved = (inside[0] != inside[-1]).flatten(1).sum(1) + inside[-1].flatten(1).sum(1) / inside[-1][0].numel()
        height, width = (side * net.stride for side in phi[0].shape[1:])
        shown = []
        for k in moved.argsort(descending=True)[:count].tolist():
            numbers = Numbers(*(x[k : k + 1] for x in parts.numbers))
            name = names[int(parts.classes[0, k])]
            steps = [step[k] for step in phi]
            shown.append(EvolvingObject(name, (0.0, 0.0, width, height), steps, parts.features[0], numbers))
        return shown


def _present(target: Tensor, num_classes: int) -> Tensor:
    """Return which classes each target has, B×C bool; unlike a histogram, this does not wait for the GPU."""
    seen = torch.zeros(len(target), max(256, num_classes), dtype=torch.bool, device=target.device)
    return seen.scatter_(1, target.flatten(1).long(), True)[:, :num_classes]
