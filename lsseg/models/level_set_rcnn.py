"""LevelSet R-CNN: Mask R-CNN whose masks are refined by unrolled Chan-Vese evolution (Homayounfar 2020).

Legend: B images, n boxes, C classes, R×R cells of a box's grid, D features, N iterations.

Boxes are found by torchvision's detector parts; what becomes of a box's mask is this project's, and so are the rivals
of the paper's tables 2 to 4, which differ in switches only.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss

from lsseg.errors import require
from lsseg.functional import Delta, blocks
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

# Δt of DELSE with hand-set hyperparameters, and a factor of learnt ones, which come up to 2 · 2: a step is stable while
# Δt (|V_x| + |V_y|), at most √2 Δt, is below 1. So N steps move a contour by N / 2 cells at most: it takes 28 to cross
# the 14 cells up to which distances count.
EDGE_STEP = 0.5
EDGE_SCALE = 0.25 / 2**0.5
# Boxes at a time in evaluation on a CPU: what lies between two layers stays in its cache.
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
    """What boxes are pooled from.

    Attributes:
        levels: Maps of the feature pyramid, finest first, each B×E×h×w.
        thin: The same with D channels, for the evolution; empty where nothing evolves.
    """

    levels: "OrderedDict[str, Tensor]"
    thin: "OrderedDict[str, Tensor]"


class Masks(NamedTuple):
    """Masks of n boxes as level-set functions, positive inside.

    Attributes:
        initial: φ⁰, n×R×R in (-1, 1); or the scores of a binary mask.
        final: φᴺ; the same where nothing evolves.
        features: F of the evolution, n×D×28×28 and bilinear in between; not kept of detections.
        numbers: Hyperparameters of each box; not kept of detections.
        velocity: DELSE's, n×2×R×R.
    """

    initial: Tensor
    final: Tensor
    features: Tensor | None = None
    numbers: Numbers | None = None
    velocity: Tensor | None = None


class Detections(NamedTuple):
    """The objects found in an image, best first.

    Attributes:
        boxes: n×4: left, top, right, bottom edge in pixels.
        scores: n in [0, 1].
        labels: n, 0..C-1.
        masks: Their masks on the grids of the boxes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Masks


class TrainOutput(NamedTuple):
    """What is trained.

    Attributes:
        losses: The detector's own, by name.
        masks: Masks of the boxes that hold an object.
        target: How much of each cell the object covers, n×R'×R' in [0, 1]; R' is ``target_resolution``.
    """

    losses: dict[str, Tensor]
    masks: Masks
    target: Tensor


class LevelSetRCNN(nn.Module):
    """Mask R-CNN over any smp encoder with a feature pyramid, whose masks are level sets that evolve.

    ========================  =======================================================================================
    LevelSet R-CNN            the defaults
    Mask R-CNN                ``target: binary, evolution: none, resolution: 28``
    Mask R-CNN at 112×112     ``target: binary, evolution: none``
    TSDF target only          ``evolution: none``
    control of the evolution  ``evolution: convolution``, 1×1, on the same features and φ⁰
    DELSE                     ``evolution: delse, hyperparameters: fixed, steps: 28``; with the head ``adaptive``
    one set for all objects   ``hyperparameters: global``
    φ⁰ detached               ``detach_init: true``
    ========================  =======================================================================================

    Args:
        num_classes: C, background not counted.
        encoder_name: Any smp encoder, or ``wide_resnet38``; resnet50 in the paper, wide_resnet38 for its best entry.
        encoder_weights: ``imagenet`` or another name smp knows for this encoder, a file of weights, or null.
        batch_norm: ``frozen`` (statistics, weight and bias stay as they are; for pretrained weights), or ``trained``.
        target: What the mask head is taught: ``tsdf``, truncated signed distances, or ``binary``.
        evolution: ``chan_vese``, ``delse``, ``convolution`` (the control) or ``none``.
        resolution: R, of the masks and of the evolution; 14 · 2^k. The TSDF head itself works at 28.
        steps: N ≥ 1; 3 in the paper.
        features: D; 64 in the paper.
        feature_resolution: Resolution of F, at most R: 28, bilinear in between; or 112, enlarged and convolved as in
            the paper.
        hyperparameters: ``adaptive``, of each object; ``global``, one learnt set; ``fixed``, by hand (DELSE).
        detach_init: Whether the final mask's gradient stops at φ⁰.
        delta: Form of δ in the Chan-Vese evolution: ``printed`` or ``derivative``.
        eta: Floor of the gradient's length in the evolution: slopes of φ much smaller have no direction.
        deformable: How many of the encoder's last stages have deformable convolutions; ResNets and wide_resnet38.
        bottom_up: Whether PANet's path from fine to coarse follows the pyramid; boxes are still pooled from one level,
            where PANet pools from all.
        width: Channels of the pyramid.
        mask_width: Channels of the mask head.
        box_width: Width of the box head's two layers.
        anchor_sizes: Side in pixels of the anchors of every level, finest first.
        proposals: How many proposals of an image go on to the box head, in evaluation; in training twice as many.
        rpn_samples: Anchors of an image that the proposal losses are computed on.
        box_samples: Boxes of an image that the box losses are computed on; a quarter of them, at most, have masks.
        score_threshold: Least score of a detection.
        detections: Most detections of an image.

    Raises:
        InputError: If a value is out of range or two do not go together; or the encoder or its weights cannot be had.
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
        # Where a mask on few cells is cut at a half first, its distances are off by more than what is to be learnt.
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
        """What evolving masks need beside initial ones."""
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
        """The objects in images of 3×H×W in [0, 1], of any sizes."""
        batch = self.encoder.batch(images)
        pyramid = self.pyramid(batch)
        boxes, scores, labels = self.detect(batch, pyramid)
        return [
            Detections(boxes[i], scores[i], labels[i], self.final_masks(pyramid, i, boxes[i], labels[i]))
            for i in range(len(images))
        ]

    def pyramid(self, batch: Any) -> Pyramid:
        """Features of a batch of images."""
        levels = self.encoder(batch)
        if self.evolution == "none":
            return Pyramid(levels, OrderedDict())
        finest = list(levels.items())[: len(self.encoder.strides)]
        # The pyramid is made thin before boxes are pooled from it: four times as fast as the other way round.
        return Pyramid(levels, OrderedDict((name, self.thin(level)) for name, level in finest))

    def final_masks(self, pyramid: Pyramid, image: int, boxes: Tensor, labels: Tensor) -> Masks:
        """Initial and final masks of the boxes of one image of a batch, a few boxes at a time on a CPU."""
        one = Pyramid(*(OrderedDict((k, v[image : image + 1]) for k, v in part.items()) for part in pyramid))
        size = CHUNK if blocks.in_cache(boxes.device) else max(1, len(boxes))
        parts = [
            self.masks(one, [boxes[start : start + size]], [labels[start : start + size]])
            for start in range(0, max(1, len(boxes)), size)
        ]
        return Masks(torch.cat([part.initial for part in parts]), torch.cat([part.final for part in parts]))

    def detect(self, batch: Any, pyramid: Pyramid) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, scores and labels (0..C-1) of every image."""
        proposals, _ = self.rpn(batch, pyramid.levels)
        scores, deltas = self.boxes.box_predictor(
            self.boxes.box_head(self.boxes.box_roi_pool(pyramid.levels, proposals))
        )
        boxes, kept, labels = self.boxes.postprocess_detections(scores, deltas, proposals, batch.image_sizes)
        return boxes, kept, [label - 1 for label in labels]

    def train_output(self, images: Sequence[Tensor], instances: Sequence[dict[str, Tensor]]) -> TrainOutput:
        """The detector's losses, and the masks of the sampled boxes with an object.

        Args:
            images: 3×H×W in [0, 1], of any sizes.
            instances: For every image ``layers`` (L×H×W; object k is where layers[layer[k]] == k + 1), ``layer``,
                ``labels`` (0..C-1), ``boxes`` (n×4) and ``crowd`` (bool; such objects are not learnt).
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
        """Masks of all boxes, in their order."""
        pooled = self.pool(pyramid.levels, boxes)
        scores = self.mask_head(pooled, torch.cat(list(labels)))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
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
        """φ⁰ and φ after every Chan-Vese iteration; φ⁰ and φᴺ of DELSE; φ⁰ alone where nothing evolves."""
        if masks.features is None or masks.numbers is None:
            return [masks.initial] if self.evolution == "none" else [masks.initial, masks.final]
        phi = [masks.initial]
        for numbers in masks.numbers.by_step():
            phi.append(self._evolved(phi[-1], masks.features, numbers))
        return phi

    def _evolved(self, phi: Tensor, features: Tensor, numbers: Numbers) -> Tensor:
        return self.refiner.evolve(phi, features, numbers, self.resolution // features.shape[-1])

    def _convolved(self, start: Tensor, embedded: Tensor) -> Tensor:
        """What the control changes in the evolution's place: a weighted sum of the features and φ⁰ in every cell."""
        both = torch.cat([resized(embedded, self.grid), start[:, None].to(embedded.dtype)], 1)
        change: Tensor = self.block(both)[:, 0].to(start.dtype)
        return change

    def _edge_masks(self, initial: Tensor, start: Tensor, fine: Tensor, numbers: Numbers | None) -> Masks:
        velocity, modulation = self.edge_head(fine)
        if numbers is None:
            ones = start.new_ones(len(start))
            motion, smoothing, dt = ones, ones, start.new_full((len(start), self.steps), EDGE_STEP)
        else:  # λ1 and μ weigh the two terms; the evolution has no use for λ2 and ε
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
    """Which of them go together."""
    alone = evolution == "none" or target == "tsdf"
    require(alone, "evolution", evolution, "needs target tsdf; with target binary it must be none")
    learnt = (hyperparameters, evolution) != ("fixed", "chan_vese")
    require(learnt, "hyperparameters", hyperparameters, "must be adaptive or global with evolution chan_vese")


def _either(values: Sequence[object]) -> str:
    """The first, the second or the third."""
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}"
