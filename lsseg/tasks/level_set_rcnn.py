"""Trains LevelSet R-CNN (Homayounfar 2020) for instance segmentation; options switch to the paper's rivals.

Legend: n boxes, H×W pixels, R×R cells of a box's grid.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.data.instances import object_masks
from lsseg.data.transforms import as_numbers
from lsseg.errors import ArgumentError, InputError, require, require_positive
from lsseg.functional import level_set_energy, tsdf
from lsseg.functional.instances import paste_masks
from lsseg.losses import ClassBalancedLoss, TSDFLoss, VelocityLoss
from lsseg.metrics import CocoAP, InstanceMatches, TrueBoxScores
from lsseg.metrics.instances import boundary_averages
from lsseg.models import LevelSetRCNN, made
from lsseg.models.heads import Numbers
from lsseg.models.level_set_rcnn import Detections, Masks
from lsseg.tasks.base import EvolvingObject, Recipe, Task
from lsseg.tasks.inference import detect_augmented


class LevelSetRCNNTask(Task):
    """Trains LevelSet R-CNN with the detector's losses + w0 · loss(φ⁰) + wN · loss(φᴺ).

    Both losses of φ are :class:`~lsseg.losses.TSDFLoss`. A binary mask head has w0 · cross-entropy instead, and the
    level-set energy if ``level_set_weight`` is not 0. DELSE has the same two losses and the loss of its velocity, or
    its own three losses with ``edge_losses``.

    Args:
        num_classes: Number of classes, C; the command line takes it from the data.
        network: Makes the network for C classes; null is :class:`~lsseg.models.LevelSetRCNN` with its defaults.
        initial_weight: w0; 1 (Cityscapes) or 0.2 (COCO) in the paper.
        final_weight: wN; 5 (Cityscapes) or 1 (COCO) in the paper.
        full_weight: Whether the single mask loss of a network without evolution has the weight w0 + wN instead of w0.
            Its total weight is then the same as with evolution, so that a comparison shows the evolution only.
        truncation: τ in cells of the box's grid; 14 in this project's reading of the paper.
        level_set_weight: λ of the level-set energy (Kim 2019) on a binary mask head (Homayounfar 2020, table 3).
        edge_losses: Whether the losses are DELSE's: L2 on φ⁰, class-balanced cross-entropy on φᴺ, and the squared angle
            of the velocity.
        test_flip: Whether evaluation and prediction also use mirrored images.
        test_scales: Sizes of the images in evaluation and prediction, as factors of the original size.
        optimizer: ``sgd`` (with momentum) or ``adamw``.
        lr: Learning rate at the first step; it falls as (1 - step/steps)^poly_power, to 0 at the end.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        poly_power: Exponent of the decay of the learning rate.
        lr_milestones: Shares of the training after which the rate is divided by 10 instead, such as ``[0.75]``.
        lr_warmup: Share of the training, at its start, in which the rate rises linearly to its full value.
        start: A checkpoint of another run, which may have other classes. The network starts from those of its weights
            that fit.
    """

    kind = "instances"
    monitor = "val/mask_ap"
    network: LevelSetRCNN

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module] | None = None,
        initial_weight: float = 1.0,
        final_weight: float = 5.0,
        full_weight: bool = False,
        truncation: float = 14.0,
        level_set_weight: float = 0.0,
        edge_losses: bool = False,
        test_flip: bool = False,
        test_scales: tuple[float, ...] = (1.0,),
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        poly_power: float = 0.9,
        lr_milestones: list[float] | None = None,
        lr_warmup: float = 0.0,
        start: str | None = None,
    ) -> None:
        for key, value in (
            ("initial_weight", initial_weight),
            ("final_weight", final_weight),
            ("level_set_weight", level_set_weight),
        ):
            require(0 <= value < float("inf"), key, value, "must not be negative")
        require(0 < truncation < float("inf"), "truncation", truncation, "must be positive")
        require_positive("test_scales", test_scales)
        recipe = Recipe(optimizer, lr, momentum, weight_decay, poly_power, 1.0, lr_milestones, lr_warmup)
        super().__init__(num_classes, made(network or partial(LevelSetRCNN), num_classes), recipe, start)
        net = self.network
        require(isinstance(net, LevelSetRCNN), "network", type(net).__name__, "must be LevelSetRCNN")
        if level_set_weight and net.target != "binary":
            raise ArgumentError("level_set_weight needs a binary mask head: set network.target to binary")
        if edge_losses and net.evolution != "delse":
            raise ArgumentError("edge_losses are the losses of DELSE: set network.evolution to delse")
        if full_weight and net.evolution == "none":
            initial_weight += final_weight
        self.initial_weight, self.final_weight, self.truncation = initial_weight, final_weight, truncation
        self.level_set_weight, self.edge_losses = level_set_weight, edge_losses
        self.test_flip, self.test_scales = test_flip, tuple(test_scales)
        self.tsdf_loss, self.balanced_loss, self.velocity_loss = TSDFLoss(), ClassBalancedLoss(), VelocityLoss()
        most = net.boxes.detections_per_img
        self.val_ap = CocoAP(num_classes, most)
        self.test_scores = InstanceScores(num_classes, most, boxes=True)
        self.true_box_scores = TrueBoxScores()
        self.initial_true_box_scores = TrueBoxScores()
        self.initial_scores: InstanceScores | None = None
        if net.evolution != "none":
            self.initial_scores = InstanceScores(num_classes, most, boxes=False)

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """Return the objects in each of several 3×H×W images in [0, 1], from all requested views."""
        if not self.test_flip and self.test_scales == (1.0,):
            found: list[Detections] = self.network(images)
            return found
        return [detect_augmented(self.network, image, self.test_flip, self.test_scales) for image in images]

    def losses(self, masks: Masks, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the masks' loss by name.

        Args:
            masks: Masks of n boxes.
            target: Share of each cell that the object covers, n×R'×R' in [0, 1]; R' is R or a multiple of R.
        """
        if self.network.target == "binary":
            return self._binary_losses(masks.initial, target)
        phi, mask = self.distances(target, masks.initial)
        if self.edge_losses:
            initial = (masks.initial - phi).square().sum() / max(1, phi.numel())
            final = self.balanced_loss(masks.final, mask)
        else:
            initial, final = (self.tsdf_loss(one, phi, mask) for one in (masks.initial, masks.final))
        terms = {"mask_initial": self.initial_weight * initial}
        if self.network.evolution != "none":
            terms["mask_final"] = self.final_weight * final
        if masks.velocity is not None:
            terms["velocity"] = self.velocity_loss(masks.velocity, mask)
        return terms

    def distances(self, target: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objects' truncated signed distances at the resolution of the masks, and where they are positive.

        Distances are computed on the finer cells of the target, and then averaged. A threshold at ½ on 28×28 cells
        before that would limit the agreement of a mask with itself to 0.97.
        """
        factor = target.shape[-1] // like.shape[-1]
        phi = tsdf(target >= 0.5, self.truncation * factor)
        if factor > 1 and len(phi):
            phi = F.avg_pool2d(phi[:, None], factor)[:, 0]
        phi = phi.to(like.dtype).reshape(like.shape)
        return phi, phi > 0

    def _binary_losses(self, scores: Tensor, target: Tensor) -> dict[str, Tensor]:
        total = F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="sum")
        terms = {"mask": self.initial_weight * total / max(1, scores.numel())}
        if self.level_set_weight:
            energy = level_set_energy(scores[:, None], target >= 0.5, mode="binary")
            terms["level_set"] = self.level_set_weight * energy
        return terms

    def on_fit_start(self) -> None:
        """Warn if all frozen batch-norm statistics still have their initial values, so that they normalise nothing."""
        if self.trainer.max_steps == 0:
            return
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        means = [norm.running_mean for norm in norms if not norm.training and norm.running_mean is not None]
        if means and not any(bool(mean.any()) for mean in means):
            warnings.warn(
                "model.network.batch_norm is frozen, but its statistics still have their initial values (0 and 1): set "
                "it to trained, or set model.network.encoder_weights",
                stacklevel=2,
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the training loss of a batch of images and objects."""
        output = self.network.train_output(batch["image"], batch["instances"])
        terms = {name.removeprefix("loss_"): value for name, value in output.losses.items()}
        terms |= self.losses(output.masks, output.target)
        terms["loss"] = torch.stack(list(terms.values())).sum()
        self.log_losses(terms, len(batch["image"]))
        return terms["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Score one batch, and return the detections for the panels."""
        found = self(batch["image"])
        self.val_ap.update(self.at_file_size(found, batch), truths(batch), batch["index"])
        return {"detections": found}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Score one batch, and return the detections, the objects at file size, and the seconds of inference."""
        start = self.clock()
        found = self(batch["image"])
        final = self.at_file_size(found, batch)
        seconds = self.clock() - start
        truth = truths(batch)
        self.test_scores.update(final, truth, batch["index"])
        if self.initial_scores is not None:
            self.initial_scores.update(self.at_file_size(found, batch, initial=True), truth, batch["index"])
        self._score_true_boxes(batch, truth)
        return {"detections": found, "objects": final, "seconds": seconds}

    def _score_true_boxes(self, batch: dict[str, Any], truth: list[dict[str, Tensor]]) -> None:
        """Score the masks in the objects' true boxes, so that errors of the detected boxes have no effect."""
        net = self.network
        pyramid = net.pyramid(net.encoder.batch(batch["image"]))
        found = []
        for i, (own, image, size) in enumerate(zip(truth, batch["image"], batch["size"], strict=True)):
            single = ~own["crowd"]
            rows, columns = image.shape[-2:]
            boxes, labels = own["boxes"][single].float(), own["labels"][single]
            inside = boxes * boxes.new_tensor([columns / size[1], rows / size[0]] * 2)
            masks = net.final_masks(pyramid, i, inside, labels)
            found.append(Detections(inside, torch.ones_like(labels, dtype=boxes.dtype), labels, masks))
        true = [own["masks"][~own["crowd"]] for own in truth]
        for name, scores in self._named_true_box_scores():
            pasted = self.at_file_size(found, batch, initial=name == "initial_")
            scores.update([own["masks"] for own in pasted], true, batch["index"])

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the detections of a batch, and the objects with masks at the size of the image's file."""
        found = self([as_numbers(image) for image in batch["image"]])
        sizes = [(int(height), int(width)) for height, width in zip(*batch["size"], strict=True)]
        objects = self.at_file_size(found, {"image": batch["image"], "size": sizes})
        return {"detections": found, "objects": objects, "path": batch["path"]}

    def at_file_size(
        self, found: list[Detections], batch: dict[str, Any], initial: bool = False
    ) -> list[dict[str, Tensor]]:
        """Return masks (n×H×W bool), boxes, scores and labels at the size of the images' files."""
        objects = []
        for own, image, size in zip(found, batch["image"], batch["size"], strict=True):
            (height, width), (rows, columns) = size, image.shape[-2:]
            factor = own.boxes.new_tensor([width / columns, height / rows] * 2)
            boxes = own.boxes * factor
            masks = paste_masks(own.masks.initial if initial else own.masks.final, boxes, (height, width))
            objects.append({"masks": masks, "boxes": boxes, "scores": own.scores, "labels": own.labels})
        return objects

    def on_validation_epoch_end(self) -> None:
        """Log the average precision over the validation split."""
        scores = self.val_ap.compute()
        self.val_ap.reset()
        scores.pop("mask_ap_by_class")
        if bool(scores["mask_ap"].isnan()):
            raise InputError("the val split cannot be scored: none of its images has an object")
        self._log_known({f"val/{name}": value for name, value in scores.items()})

    def on_test_epoch_end(self) -> None:
        """Log the scores over the test split; names with ``initial_`` are scores of φ⁰."""
        for name, scores in self._named_scores():
            values, by_class = scores.compute()
            self._log_known({f"test/{name}{score}": value for score, value in values.items()})
            classes = zip(self.class_names(), by_class, strict=True)
            self._log_known({f"test/{name}mask_ap/{label}": value for label, value in classes})
            scores.precision.reset()
        for name, boxes in self._named_true_box_scores():
            self._log_known({f"test/{name}{score}": value for score, value in boxes.compute().items()})
            boxes.reset()

    def test_counts(self) -> dict[str, Tensor]:
        """Return the counts of every image for the report's bootstrap, and reset them: call this only once."""
        counts: dict[str, Tensor] = {}
        for name, scores in self._named_scores():
            rows = scores.rows()
            scores.reset()
            counts |= {f"{name}detections": rows["detections"], "objects": rows["objects"][:, 1:]}
            counts["index"] = rows["objects"][:, 0].long()
        return counts

    def evolving_objects(
        self, image: Tensor, found: Detections, names: tuple[str, ...], count: int
    ) -> list[EvolvingObject]:
        """Return the evolutions of the ``count`` best detections in a 3×H×W image, for pictures."""
        net = self.network
        if net.evolution == "none" or not len(found.scores):
            return []
        boxes, labels = found.boxes[:count], found.labels[:count]
        masks = net.masks(net.pyramid(net.encoder.batch([image])), [boxes], [labels])
        history = net.history(masks)
        titles = None if net.evolution == "chan_vese" else ["φ⁰", "final φ"]  # the others do not keep their iterations
        shown = []
        for k, box in enumerate(boxes.tolist()):
            name = f"{names[int(labels[k])]}, {float(found.scores[k]):.2f}"
            features = None if masks.features is None else masks.features[k]
            numbers = None if masks.numbers is None else Numbers(*(x[k : k + 1] for x in masks.numbers))
            left, top, right, bottom = box
            steps = [phi[k] for phi in history]
            shown.append(EvolvingObject(name, (left, top, right, bottom), steps, features, numbers, titles))
        return shown

    def _named_scores(self) -> list[tuple[str, "InstanceScores"]]:
        initial = [("initial_", self.initial_scores)] if self.initial_scores is not None else []
        return [("", self.test_scores), *initial]

    def _named_true_box_scores(self) -> list[tuple[str, TrueBoxScores]]:
        initial = [("initial_", self.initial_true_box_scores)] if self.initial_scores is not None else []
        return [("", self.true_box_scores), *initial]

    def _log_known(self, values: dict[str, Tensor]) -> None:
        # A score without a value (no object of that size, nothing found) is not logged, because 0 would be wrong.
        self.log_dict({name: value for name, value in values.items() if not bool(value.isnan())})


def truths(batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Return the boxes, labels, crowd flags and masks (m×H×W bool) of the true objects of every image."""
    kept = ("boxes", "labels", "crowd")
    return [{**{key: found[key] for key in kept}, "masks": object_masks(found)} for found in batch["instances"]]


RADII = (1, 2)


class InstanceScores(nn.Module):
    """Computes the average precision by COCO's evaluator, and AF.

    Args:
        num_classes: Number of classes, C.
        detections: Largest number of detections of an image and class that count.
        boxes: Whether boxes are scored, too.
    """

    def __init__(self, num_classes: int, detections: int, boxes: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.precision = CocoAP(num_classes, detections, boxes)
        self.matches = InstanceMatches(num_classes, RADII, detections)

    def update(self, found: list[dict[str, Tensor]], truth: list[dict[str, Tensor]], index: Tensor) -> None:
        """Add the found and the true objects of images (see both metrics), and the images' places in the data set."""
        self.precision.update(found, truth, index)
        self.matches.update(found, truth, index)

    def compute(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return the scores by name, and the AP of each class (C); a score without a value is NaN."""
        scores = self.precision.compute()
        by_class = scores.pop("mask_ap_by_class").reshape(-1)  # torchmetrics turns a single number into a scalar
        boundary, left_out = boundary_averages(self.matches.compute()["detections"], self.num_classes, len(RADII))
        averages = {f"af{radius}": boundary[:, i].nanmean() for i, radius in enumerate(RADII)}
        return {**scores, **averages, "af_left_out": left_out.double()}, by_class

    def rows(self) -> dict[str, Tensor]:
        """Return all detections, and each image's number of objects (see :class:`~lsseg.metrics.InstanceMatches`)."""
        rows: dict[str, Any] = self.matches.compute()
        return rows

    def reset(self) -> None:
        """Clear both metrics."""
        self.precision.reset()
        self.matches.reset()
