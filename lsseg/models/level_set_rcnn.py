"""Defines LevelSet R-CNN, which refines Mask R-CNN's masks by unrolled Chan-Vese evolution (Homayounfar 2020).

Legend: B images, n boxes, C classes, R×R cells of a box's grid, D features, N iterations.

torchvision's detector parts find the boxes. The code for the masks is this project's own. It contains the rival methods
of the paper's tables 2 to 4, too, which differ only in options.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss

from lsseg.errors import require
from lsseg.functional import Delta, blocks
from lsseg.functional.blocks import wide
from lsseg.functional.edge_evolution import edge_evolve
from lsseg.functional.grid import resized
from lsseg.functional.instances import crop_objects
from lsseg.models.fpn import BoxPooler, PyramidEncoder
from lsseg.models.heads import (
    SMALL,
    EdgeHead,
    FeatureHead,
    Hyperparameters,
    MaskHead,
    Numbers,
    PooledHead,
    box_heads,
    proposal_network,
)
from lsseg.models.refiner import ChanVeseRefiner
from lsseg.models.state import takes_relatives

# EDGE_STEP is Δt of DELSE with fixed hyperparameters. EDGE_SCALE multiplies learnt ones, whose product λ1 Δt is at most
# 2 · 2. A step is stable while Δt (|V_x| + |V_y|), at most √2 Δt, is below 1. With fixed hyperparameters N steps move a
# contour by at most N / 2 cells, so that 28 steps cross the 14 cells up to which distances count.
EDGE_STEP = 0.5
EDGE_SCALE = 0.25 / 2**0.5
# Number of boxes that a CPU evaluates together, so that the values between two layers stay in its cache.
CHUNK = 8
CHOICES: dict[str, tuple[object, ...]] = {
    "batch_norm": ("frozen", "trained"),
    "target": ("tsdf", "binary"),
    "evolution": ("chan_vese", "delse", "convolution", "none"),
    "resolution": (28, 56, 112, 224),
    "feature_resolution": (28, 56, 112),
    "hyperparameters": ("adaptive", "global", "fixed"),
    "delta": ("printed", "derivative"),
}


class Pyramid(NamedTuple):
    """Holds the maps from which boxes are pooled.

    Attributes:
        levels: Maps of the feature pyramid, finest first, each B×E×h×w.
        thin: The same maps, without "pool", with D channels for the evolution; empty where nothing evolves.
    """

    levels: "OrderedDict[str, Tensor]"
    thin: "OrderedDict[str, Tensor]"


class Masks(NamedTuple):
    """Holds the masks of n boxes as level-set functions, positive inside.

    Attributes:
        initial: φ⁰, n×R×R in (-1, 1); or the scores of a binary mask.
        final: φᴺ, n×R×R; equal to ``initial`` where nothing evolves.
        features: F, n×D×r×r with r the ``feature_resolution``; None for DELSE, for detections and without evolution.
        numbers: Learnt hyperparameters of each box, if there are any; None for detections.
        velocity: Velocity field V of DELSE, n×2×R×R; None for detections.
    """

    initial: Tensor
    final: Tensor
    features: Tensor | None = None
    numbers: Numbers | None = None
    velocity: Tensor | None = None


class Detections(NamedTuple):
    """Holds the objects found in an image, best first.

    Attributes:
        boxes: Left, top, right and bottom edges in pixels, n×4.
        scores: Scores of the objects, n numbers in [0, 1].
        labels: Classes of the objects, n numbers in 0..C-1.
        masks: Masks of the objects on the grids of their boxes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Masks


class TrainOutput(NamedTuple):
    """Holds the values from which the training loss is computed.

    Attributes:
        losses: Losses of the detector, by name.
        masks: Masks of the sampled boxes that contain an object.
        target: Share of each cell that the object covers, n×R'×R' in [0, 1]; R' is ``target_resolution``.
    """

    losses: dict[str, Tensor]
    masks: Masks
    target: Tensor


class LevelSetRCNN(nn.Module):
    """Extends Mask R-CNN, over any smp encoder with a feature pyramid, by masks that are evolving level sets.

    ========================  =======================================================================================
    LevelSet R-CNN            the defaults
    Mask R-CNN                ``target: binary, evolution: none, resolution: 28``
    Mask R-CNN at 112×112     ``target: binary, evolution: none``
    TSDF target only          ``evolution: none``
    control of the evolution  ``evolution: convolution``, 1×1, on the same features and φ⁰
    DELSE                     ``evolution: delse, hyperparameters: fixed, steps: 28``
    DELSE, adaptive           ``evolution: delse, steps: 28``
    one set for all objects   ``hyperparameters: global``
    φ⁰ detached               ``detach_init: true``
    ========================  =======================================================================================

    Args:
        num_classes: Number of classes, C, without the background.
        encoder_name: Any smp encoder, or ``wide_resnet38``; resnet50 in the paper, wide_resnet38 for its best entry.
        encoder_weights: ``imagenet``, another name that smp knows for this encoder, a file of weights, or null.
        batch_norm: ``frozen`` (statistics, weight and bias stay as they are; for pretrained weights), or ``trained``.
        target: What the mask head learns: ``tsdf``, truncated signed distances, or ``binary``.
        evolution: ``chan_vese``, ``delse``, ``convolution`` (the control) or ``none``.
        resolution: Resolution R of the masks and of the evolution: 28, 56, 112 or 224. The TSDF head works at 28.
        steps: Number N ≥ 1 of iterations; 3 in the paper.
        features: Number D of features; 64 in the paper.
        feature_resolution: Resolution of F, at most R: 28, interpolated bilinearly; or 56 or 112, enlarged and
            convolved (112 in the paper).
        hyperparameters: ``adaptive``, one set for each object; ``global``, one learnt set; ``fixed``, for DELSE only.
        detach_init: Whether the gradient of the final mask stops at φ⁰.
        delta: Form of δ in the evolution: ``printed`` as in eq. 4, or the ``derivative`` of the step function.
        eta: η, floor of the length of φ's gradient in the evolution; much smaller gradients have no direction.
        deformable: Number of the last stages, of a ResNet or wide_resnet38, that have deformable convolutions.
        bottom_up: Whether PANet's path from fine to coarse follows the pyramid. Boxes are still pooled from one level,
            whereas PANet pools them from all levels.
        width: Channels of the pyramid.
        mask_width: Channels of the mask head.
        box_width: Width of the box head's two layers.
        anchor_sizes: Side in pixels of the anchors of every level, finest first.
        proposals: Number of proposals of an image for the box head in evaluation; in training twice as many.
        rpn_samples: Number of anchors of an image on which the proposal losses are computed.
        box_samples: Number of boxes of an image on which the box losses are computed; at most a quarter have masks.
        score_threshold: Least score of a detection.
        detections: Largest number of detections of an image.

    Raises:
        InputError: If a value is out of range, two values do not go together, or the encoder or weights cannot be had.
    """

    def __init__(
        self,
        num_classes: int,
        encoder_name: str = "resnet50",
        encoder_weights: str | None = None,
        batch_norm: Literal["frozen", "trained"] = "frozen",
        target: Literal["tsdf", "binary"] = "tsdf",
        evolution: Literal["chan_vese", "delse", "convolution", "none"] = "chan_vese",
        resolution: int = 112,
        steps: int = 3,
        features: int = 64,
        feature_resolution: int = 28,
        hyperparameters: Literal["adaptive", "global", "fixed"] = "adaptive",
        detach_init: bool = False,
        delta: Delta = "printed",
        eta: float = 0.03,
        deformable: int = 0,
        bottom_up: bool = False,
        width: int = 256,
        mask_width: int = 256,
        box_width: int = 1024,
        anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
        proposals: int = 1000,
        rpn_samples: int = 256,
        box_samples: int = 512,
        score_threshold: float = 0.05,
        detections: int = 100,
    ) -> None:
        super().__init__()
        _check_counts(1, num_classes=num_classes, steps=steps, features=features, proposals=proposals)
        _check_counts(1, width=width, mask_width=mask_width, box_width=box_width, detections=detections)
        _check_counts(2, rpn_samples=rpn_samples, box_samples=box_samples)
        _check_choices(batch_norm=batch_norm, resolution=resolution, delta=delta, feature_resolution=feature_resolution)
        fits = feature_resolution <= resolution or evolution in ("none", "delse")
        require(fits, "feature_resolution", feature_resolution, f"must be at most resolution {resolution}")
        _check_choices(target=target, evolution=evolution, hyperparameters=hyperparameters)
        _check_switches(target, evolution, hyperparameters)
        require(eta > 0, "eta", eta, "must be positive")
        require(0 <= score_threshold < 1, "score_threshold", score_threshold, "must lie in [0, 1)")
        self.num_classes = num_classes
        self.target, self.evolution, self.resolution = target, evolution, resolution
        self.grid = (resolution, resolution)
        # Distances need a fine target. On few cells a mask cut at ½ has larger errors than the changes to be learnt.
        self.target_resolution = resolution if target == "binary" else max(112, resolution)
        self.steps, self.detach_init, self.eta, self.delta = steps, detach_init, eta, delta
        self.encoder = PyramidEncoder(
            encoder_name, encoder_weights, width, batch_norm == "frozen", deformable, bottom_up
        )
        strides = self.encoder.strides
        right = f"must be {len(strides) + 1} positive lengths, one for each level of {encoder_name}"
        fits = len(anchor_sizes) == len(strides) + 1 and min(anchor_sizes) >= 1
        require(fits, "anchor_sizes", list(anchor_sizes), right)
        self.rpn = proposal_network(width, anchor_sizes, proposals, rpn_samples)
        pool = BoxPooler(strides, 7)
        self.boxes = box_heads(pool, width, box_width, num_classes, box_samples, score_threshold, detections)
        self.pool = BoxPooler(strides, 14)
        self.mask_head = MaskHead(width, num_classes, resolution if target == "binary" else 28, mask_width)
        if evolution != "none":
            self._build_evolution(width, features, feature_resolution, hyperparameters)
        takes_relatives(self)

    def _build_evolution(self, width: int, features: int, feature_resolution: int, hyperparameters: str) -> None:
        """Make the layers that evolving masks need besides those for the initial masks."""
        self.thin = nn.Conv2d(width, features, 1)
        self.pool_fine = BoxPooler(self.encoder.strides, 28)
        enlarge = feature_resolution // 28
        if self.evolution == "convolution":
            self.feature_head = FeatureHead(features, features, enlarge=enlarge)
            self.block = nn.Conv2d(features + 1, 1, 1)
            nn.init.normal_(self.block.weight, std=SMALL)
            nn.init.zeros_(self.block.bias)  # type: ignore[arg-type]
            return
        adaptive = hyperparameters == "adaptive"
        if self.evolution == "chan_vese":
            kind: Literal["adaptive", "global"] = "adaptive" if adaptive else "global"
            self.refiner = ChanVeseRefiner(
                features, self.steps, features, "distance", True, kind,
                delta=self.delta, eta=self.eta, enlarge=enlarge, pooled=64,
            )  # fmt: skip
            self.hyperparameters = None
        else:
            self.edge_head = EdgeHead(features, self.resolution)
            self.hyperparameters = None if hyperparameters == "fixed" else Hyperparameters(64, self.steps, adaptive)
        self.pooled_head = PooledHead(width) if adaptive else None

    def forward(self, images: Sequence[Tensor]) -> list[Detections]:
        """Return the objects in each of several 3×H×W images in [0, 1], which may have any sizes."""
        batch = self.encoder.batch(images)
        pyramid = self.pyramid(batch)
        boxes, scores, labels = self.detect(batch, pyramid)
        return [
            Detections(boxes[i], scores[i], labels[i], self.final_masks(pyramid, i, boxes[i], labels[i]))
            for i in range(len(images))
        ]

    def pyramid(self, batch: Any) -> Pyramid:
        """Return the feature pyramid of a batch of images."""
        levels = self.encoder(batch)
        if self.evolution == "none":
            return Pyramid(levels, OrderedDict())
        finest = list(levels.items())[: len(self.encoder.strides)]
        # The channels are reduced before boxes are pooled. This is four times as fast as the reverse order.
        return Pyramid(levels, OrderedDict((name, self.thin(level)) for name, level in finest))

    def final_masks(self, pyramid: Pyramid, image: int, boxes: Tensor, labels: Tensor) -> Masks:
        """Return the initial and final masks of one image's boxes, computed for a few boxes at a time on a CPU."""
        one = Pyramid(*(OrderedDict((k, v[image : image + 1]) for k, v in part.items()) for part in pyramid))
        size = CHUNK if blocks.in_cache(boxes.device) else max(1, len(boxes))
        parts = [
            self.masks(one, [boxes[start : start + size]], [labels[start : start + size]])
            for start in range(0, max(1, len(boxes)), size)
        ]
        return Masks(torch.cat([part.initial for part in parts]), torch.cat([part.final for part in parts]))

    def detect(self, batch: Any, pyramid: Pyramid) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the boxes, scores and labels (0..C-1) of every image."""
        proposals, _ = self.rpn(batch, pyramid.levels)
        scores, deltas = self.boxes.box_predictor(
            self.boxes.box_head(self.boxes.box_roi_pool(pyramid.levels, proposals))
        )
        boxes, kept, labels = self.boxes.postprocess_detections(scores, deltas, proposals, batch.image_sizes)
        return boxes, kept, [label - 1 for label in labels]

    def train_output(self, images: Sequence[Tensor], instances: Sequence[dict[str, Tensor]]) -> TrainOutput:
        """Return the detector's losses, and the masks and targets of the sampled boxes with an object.

        Args:
            images: 3×H×W images in [0, 1], which may have any sizes.
            instances: For every image ``layers`` (L×H×W; object k is where layers[layer[k]] == k + 1), ``layer``,
                ``labels`` (0..C-1), ``boxes`` (n×4) and ``crowd`` (bool; crowds are not learnt).
        """
        batch = self.encoder.batch(images)
        pyramid = self.pyramid(batch)
        single = [torch.nonzero(~found["crowd"])[:, 0] for found in instances]
        targets = [
            {"boxes": found["boxes"][own].float(), "labels": found["labels"][own] + 1}
            for found, own in zip(instances, single, strict=True)
        ]
        proposals, losses = self.rpn(batch, pyramid.levels, targets)
        boxes, matched, labels, deltas = self.boxes.select_training_samples(proposals, targets)
        predicted = self.boxes.box_predictor(self.boxes.box_head(self.boxes.box_roi_pool(pyramid.levels, boxes)))
        losses["loss_classifier"], losses["loss_box_reg"] = fastrcnn_loss(*predicted, labels, deltas)
        inside = [torch.nonzero(label > 0)[:, 0] for label in labels]
        chosen = [box[own].detach() for box, own in zip(boxes, inside, strict=True)]
        masks = self.masks(pyramid, chosen, [label[own] - 1 for label, own in zip(labels, inside, strict=True)])
        target = [
            crop_objects(found["layers"], found["layer"], own[match[place]], box, self.target_resolution)
            for found, own, match, place, box in zip(instances, single, matched, inside, chosen, strict=True)
        ]
        return TrainOutput(losses, masks, torch.cat(target))

    def masks(self, pyramid: Pyramid, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Masks:
        """Return the masks of all boxes, in their order."""
        pooled = self.pool(pyramid.levels, boxes)
        scores = wide(self.mask_head(pooled, torch.cat(list(labels))))
        if self.target == "binary":
            return Masks(scores, scores)
        initial = resized(torch.tanh(scores)[:, None], self.grid)[:, 0]
        if self.evolution == "none":
            return Masks(initial, initial)
        start = initial.detach() if self.detach_init else initial
        fine = self.pool_fine(pyramid.thin, boxes)
        if self.evolution == "convolution":
            embedded = self.feature_head(fine)
            return Masks(initial, start + self._convolved(start, embedded), embedded)
        read = pooled.new_zeros(len(pooled), 0) if self.pooled_head is None else self.pooled_head(pooled)
        if self.evolution == "delse":
            own = None if self.hyperparameters is None else self.hyperparameters(read)
            return self._edge_masks(initial, start, fine, own)
        numbers, embedded = self.refiner.numbers(read), self.refiner.embed(fine)
        return Masks(initial, self._evolved(start, embedded, numbers), embedded, numbers)

    def history(self, masks: Masks) -> list[Tensor]:
        """Return φ⁰ and φ after every Chan-Vese iteration; else φ⁰ and the final φ, or φ⁰ alone if nothing evolves."""
        if masks.features is None or masks.numbers is None:
            return [masks.initial] if self.evolution == "none" else [masks.initial, masks.final]
        phi = [masks.initial]
        for numbers in masks.numbers.by_step():
            phi.append(self._evolved(phi[-1], masks.features, numbers))
        return phi

    def _evolved(self, phi: Tensor, features: Tensor, numbers: Numbers) -> Tensor:
        return self.refiner.evolve(phi, features, numbers, self.resolution // features.shape[-1])

    def _convolved(self, start: Tensor, embedded: Tensor) -> Tensor:
        """Return the change of φ by the control: a weighted sum of the features and φ⁰ in every cell."""
        both = torch.cat([resized(embedded, self.grid), start[:, None].to(embedded.dtype)], 1)
        change: Tensor = self.block(both)[:, 0].to(start.dtype)
        return change

    def _edge_masks(self, initial: Tensor, start: Tensor, fine: Tensor, numbers: Numbers | None) -> Masks:
        velocity, modulation = self.edge_head(fine)
        if numbers is None:
            ones = start.new_ones(len(start))
            motion, smoothing, dt = ones, ones, start.new_full((len(start), self.steps), EDGE_STEP)
        else:  # λ1 and μ weigh the two terms; DELSE does not use λ2 and ε
            motion, smoothing, dt = numbers.lambda1, numbers.mu, EDGE_SCALE * numbers.dt
        final = edge_evolve(start, velocity, modulation, motion, smoothing, dt, eta=self.eta)
        return Masks(initial, final, None, numbers, velocity)


def _check_counts(least: int, **counts: int) -> None:
    for name, count in counts.items():
        require(count >= least, name, count, f"must be at least {least}")


def _check_choices(**choices: object) -> None:
    for name, value in choices.items():
        require(value in CHOICES[name], name, value, f"must be {_either(CHOICES[name])}")


def _check_switches(target: str, evolution: str, hyperparameters: str) -> None:
    """Refuse options that do not go together."""
    alone = evolution == "none" or target == "tsdf"
    require(alone, "evolution", evolution, "needs target tsdf; with target binary it must be none")
    learnt = hyperparameters != "fixed" or evolution == "delse"
    require(learnt, "hyperparameters", hyperparameters, f"must be adaptive or global with evolution {evolution}")


def _either(values: Sequence[object]) -> str:
    """Return the values as text, in the form "a, b or c"."""
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}"
