"""Defines the base of every semantic method: training and test steps, losses, scores and predictions.

Legend: B images, C classes, H×W pixels.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lsseg.data.transforms import as_numbers
from lsseg.errors import ArgumentError, InputError, require, require_positive
from lsseg.functional.dense_crf import DenseCRF, lattice_crf
from lsseg.losses import CrossEntropyLoss
from lsseg.losses.cross_entropy import set_over_processes
from lsseg.metrics import CountSums, Overlap, PerImage
from lsseg.metrics.scores import of_kind, scores_of_sums
from lsseg.models import SegOutput, SmpNet, checked, made
from lsseg.tasks.base import EvolvingObject, Recipe, Task
from lsseg.tasks.inference import bands, mean_of_views, sliding_window

IGNORE_INDEX = 255


class SegmentationTask(Task):
    """Trains any network with any loss; cross-entropy by default.

    A method is a subclass. Besides Lightning's hooks, it may define or override:

    - its arguments, including ``network`` and ``criterion``, which it passes on to this class;
    - ``losses``: the terms of its training loss, computed from its network's ``SegOutput``;
    - ``train_output``: the network's output in training, if the network gets more of the batch than its images;
    - ``phi``: the level-set functions of its scores, for pictures and predictions;
    - ``unrefined``, ``steps_of`` and ``evolving_objects``, if it refines its prediction: the scores before the
      refinement and after each step, and the evolutions, for comparisons and pictures;
    - ``whole``, if it changes the scores in evaluation and prediction only.

    Scores, logs, windows, views, checkpoints and pictures need no further code; ``lsseg/tasks/level_set.py`` is a short
    example.

    Args:
        num_classes: Number of classes, C; the command line takes it from the data.
        network: Makes the network for C classes, or is one; null is :class:`~lsseg.models.SmpNet` (U-Net on ResNet-50).
            In YAML, give a class path and its arguments without ``num_classes``.
        criterion: Maps B×C×H×W logits and a B×H×W target to a scalar; null is cross-entropy.
        optimizer: ``sgd`` (with momentum) or ``adamw``.
        lr: Learning rate at the first step; it falls as (1 - step/steps)^poly_power, to 0 at the end.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        poly_power: Exponent of the decay of the learning rate.
        lr_milestones: Shares of the training after which the rate is divided by 10 instead, such as ``[0.75]``.
        lr_warmup: Share of the training, at its start, in which the rate rises linearly to its full value.
        start: A checkpoint of another run, which may have other classes. The network starts from those of its weights
            that fit.
        new_layers: Factor of the learning rate for layers outside the encoder (VGG's fully connected layers count as
            encoder); 10 in DeepLab and Zhang 2019, whose encoders are pretrained.
        scale_lr: Learning rate at the first step of learnt scales (the gain or temperature of refined scores).
        window: Side in pixels of the sliding window for evaluation and prediction; null predicts whole images at once.
        test_flip: Whether ``test``, ``validate`` and ``predict`` also use mirrored images (validation during training
            does not); scores are averaged over all views.
        test_scales: Sizes of the images in the same three commands, as factors of the original size.
        crf_iterations: Iterations of a dense CRF that ``test``, ``validate`` and ``predict`` apply after the network
            (validation during training does not); 0 applies no CRF.
        crf: The CRF's weights and widths; null is :class:`~lsseg.functional.dense_crf.DenseCRF` with its defaults.
    """

    kind = "semantic"
    monitor = "val/miou"
    first_step = 1  # number of the first refinement step in pictures

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module] | None = None,
        criterion: nn.Module | None = None,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        poly_power: float = 0.9,
        lr_milestones: list[float] | None = None,
        lr_warmup: float = 0.0,
        start: str | None = None,
        new_layers: float = 1.0,
        scale_lr: float = 0.01,
        window: int | None = None,
        test_flip: bool = False,
        test_scales: tuple[float, ...] = (1.0,),
        crf_iterations: int = 0,
        crf: DenseCRF | None = None,
    ) -> None:
        require(num_classes >= 2, "num_classes", num_classes, "must be at least 2")
        require(window is None or window >= 32, "window", window, "must be at least 32 pixels")
        require(crf_iterations >= 0, "crf_iterations", crf_iterations, "must not be negative")
        if crf_iterations:
            lattice_crf()  # a missing package is reported before the training, not after it
        require_positive("test_scales", test_scales)
        recipe = Recipe(
            optimizer, lr, momentum, weight_decay, poly_power, new_layers, lr_milestones, lr_warmup, scale_lr
        )
        super().__init__(num_classes, made(network or partial(SmpNet), num_classes), recipe, start)
        self.criterion = criterion if criterion is not None else CrossEntropyLoss()
        set_over_processes(self.criterion)
        self.window = window
        self.test_flip, self.test_scales = test_flip, tuple(test_scales)
        self.crf_iterations, self.crf = crf_iterations, crf or DenseCRF()
        self._refines = True
        self.predicted_phi: tuple[int, ...] | None = None  # classes whose φ `predict` returns; None is all
        self.val_loss = MeanMetric()
        self.val_counts = CountSums(num_classes)
        self.test_images = PerImage(num_classes)
        self.initial_counts = CountSums(num_classes)
        self.unchanged = Overlap(num_classes)

    def forward(self, image: Tensor) -> SegOutput:
        """Return the scores of a B×3×H×W image with values in [0, 1]."""
        output = checked(self.network(image), self.network, image, self.num_classes)
        self._refines = bool(output.steps)
        return output

    def train_output(self, batch: dict[str, Any]) -> SegOutput:
        """Return the network's output for a training batch."""
        return self(batch["image"])

    def losses(self, output: SegOutput, target: Tensor) -> dict[str, Tensor]:
        """Return the terms of the training loss by name; ``loss`` is minimised, and sums over all supervised scores."""
        return {"loss": sum_of(self.loss_of(logits, target) for logits in (output.logits, *output.auxiliary))}

    def loss_of(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the criterion's loss of one prediction, B×C×H×W logits.

        Raises:
            ArgumentError: If the loss is not a floating-point scalar, or passes no gradient to the logits.
        """
        loss = self.criterion(logits, target)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(type(loss).__name__)
            raise ArgumentError(f"criterion must give a scalar tensor, not {found}")
        if logits.requires_grad and not loss.requires_grad:
            raise ArgumentError("criterion gives a loss that does not depend on the scores, or is detached from them")
        return loss

    def phi(self, logits: Tensor) -> Tensor:
        """Return the level-set function of every class, B×C×H×W, positive inside: P - ½ (Kim 2019, section 3.2)."""
        return torch.softmax(logits.float(), 1) - 0.5

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the training loss of a batch of images and masks."""
        try:
            output = self.train_output(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            # After a global pooling, as in DeepLab, batch-norm has one value per image and channel, and one is too few.
            raise InputError(
                "this network cannot train on one image of this size at a time: data.batch_size must be 2 or more, or "
                "data.crop_size larger (which does not help a network with a global pooling)"
            ) from error
        terms = self.losses(output, batch["mask"])
        self.log_losses(terms, len(batch["image"]))
        self.log_scales()
        return terms["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Score one batch, and return the predictions and logits for the panels."""
        logits = self.infer(batch["image"])
        prediction = logits.argmax(1)
        self.val_counts.update(prediction, batch["mask"])
        loss = self.losses(SegOutput(logits), batch["mask"])["loss"]
        counted = (batch["index"] >= 0).sum()  # the copies that fill up a rank's share have index -1
        self.val_loss.update(loss, counted)
        return {"prediction": prediction, "logits": logits}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Score one batch, and return the predictions and logits for the panels, and the seconds of inference."""
        start = self.clock()
        logits = self.infer(batch["image"])
        prediction = logits.argmax(1)
        seconds = self.clock() - start
        self.test_images.update(prediction, batch["mask"], batch["index"])
        unrefined = self.unrefined(batch["image"])
        if unrefined is not None:
            self._compare(unrefined.argmax(1), prediction, batch["mask"])
        return {"prediction": prediction, "logits": logits, "seconds": seconds}

    def _compare(self, unrefined: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Score the prediction before the refinement, and count the valid pixels whose label it leaves unchanged."""
        self.initial_counts.update(unrefined, target)
        self.unchanged.update(prediction, unrefined.masked_fill(target == IGNORE_INDEX, IGNORE_INDEX))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return labels (B×H×W) and level-set functions at the size of the image's file.

        The level-set functions are B×C×H×W, or only those of the classes in ``predicted_phi``.
        """
        size, image = (int(batch["size"][0][0]), int(batch["size"][1][0])), batch["image"]
        if image.shape[-2:] == size and self._is_large(image) and not self._looks_again():
            labels, phi = self._predict_by_bands(image)
        else:
            logits = self.infer(as_numbers(image))
            if logits.shape[-2:] != size:
                logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
            labels, phi = logits.argmax(1), self._wanted_phi(logits)
        return {"prediction": labels, "phi": phi, "path": batch["path"]}

    def _predict_by_bands(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Predict a large image band by band, so that only its bytes, its labels and the wanted φ are held in full."""
        assert self.window is not None
        labels = image.new_empty(len(image), *image.shape[-2:], dtype=torch.uint8)
        phi: Tensor | None = None
        for rows, logits in bands(lambda part: self.final_scores(as_numbers(part)), image, self.window):
            labels[:, rows] = logits.argmax(1)
            values = self._wanted_phi(logits)
            if phi is None:
                phi = values.new_empty(*values.shape[:2], *image.shape[-2:])
            phi[:, :, rows] = values
        assert phi is not None
        return labels, phi

    def _wanted_phi(self, logits: Tensor) -> Tensor:
        phi = self.phi(logits)
        return phi if self.predicted_phi is None else phi[:, list(self.predicted_phi)]

    def _is_large(self, image: Tensor) -> bool:
        return self.window is not None and max(image.shape[-2:]) > self.window

    def _looks_again(self) -> bool:
        """Return whether scores come from flipped or scaled views or a CRF."""
        return self.test_flip or tuple(self.test_scales) != (1.0,) or self.crf_iterations > 0

    def infer(self, image: Tensor) -> Tensor:
        """Return the logits of whole images."""
        return self.whole(self.final_scores, image)

    def final_scores(self, image: Tensor) -> Tensor:
        """Return the scores from which labels are predicted, B×C×H×W, of one pass through the network."""
        return self(image).logits

    def unrefined(self, image: Tensor) -> Tensor | None:
        """Return the scores before the refinement, for a comparison with the same weights; None for a plain network."""
        return None

    def whole(self, scores: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Return the scores of whole images, with the windows, views and CRF that are set; in ``fit`` windows only."""
        whole = partial(self._in_windows, scores)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            return whole(image)
        logits = mean_of_views(whole, image, self.test_flip, self.test_scales)
        if not self.crf_iterations:
            return logits
        pixels = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        probabilities = logits.float().softmax(1).cpu().numpy()
        refined = [self.crf(p, rgb, self.crf_iterations) for p, rgb in zip(probabilities, pixels, strict=True)]
        return torch.from_numpy(np.stack(refined)).clamp_min(1e-8).log().to(logits.device)

    def evolution(self, image: Tensor) -> list[Tensor]:
        """Return the scores of whole images after every refinement step; a plain network has none."""

        def every(part: Tensor) -> Tensor:
            steps = self.steps_of(part)
            return torch.cat(steps, 1) if steps else part[:, :0]

        # The first forward pass has shown whether the network has steps. A plain network need not run again.
        scores = self._in_windows(every, image) if self._refines else image[:, :0]
        return list(torch.split(scores, self.num_classes, 1)) if scores.shape[1] else []

    def steps_of(self, image: Tensor) -> list[Tensor]:
        """Return the scores after every step of one pass through the network."""
        return [step.last for step in self(image).steps]

    def test_counts(self) -> dict[str, Tensor]:
        """Return the counts of every image for the report's bootstrap, and reset them: call this only once."""
        counts: dict[str, Tensor] = self.test_images.compute()
        self.test_images.reset()
        return counts

    def evolving_objects(self, image: Tensor, names: tuple[str, ...], count: int) -> list[EvolvingObject]:
        """Return the evolutions of the classes in a 3×H×W image that change most, for pictures; empty by default."""
        return []

    def on_validation_epoch_end(self) -> None:
        """Log the scores over the validation split."""
        self._log_scores("val", self.val_counts.compute())
        self.val_counts.reset()
        # Lightning's own reduction is not used, because it rounds the mean number of images per rank to an integer.
        self.log("val/loss", self.val_loss.compute())
        self.val_loss.reset()

    def on_test_epoch_end(self) -> None:
        """Log the scores over the test split; names with ``initial_`` are scores before the refinement."""
        self._log_scores("test", {name: counts.sum(0) for name, counts in self.test_images.compute().items()})
        if self.unchanged.update_count:
            initial = scores_of_sums(self.initial_counts.compute())
            means = {f"test/initial_{name}": mean for name, (mean, _) in initial.items()}
            means["test/changed_pixels"] = 1 - self.unchanged.compute()["accuracy"]
            self.log_dict({name: value for name, value in means.items() if not bool(value.isnan())})
            self.initial_counts.reset()
            self.unchanged.reset()

    def _in_windows(self, scores: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        if self.window is not None and self._is_large(image):
            return sliding_window(scores, image, self.window)
        return scores(image)

    def _log_scores(self, stage: str, sums: dict[str, Tensor]) -> None:
        scores, values = scores_of_sums(sums), dict[str, Tensor]()
        for row in of_kind("semantic"):
            if row.name in scores:
                values[f"{stage}/{row.name}"], by_class = scores[row.name]
                if stage == "test" and row.classes and by_class is not None:
                    named = zip(self.class_names(), by_class, strict=True)
                    values |= {f"test/{row.classes}/{name}": score for name, score in named}
        if bool(values[f"{stage}/miou"].isnan()):
            raise InputError(f"the {stage} split cannot be scored: every pixel of its masks is void")
        # A class without a pixel (or boundary pixel) has no score. It is left out of the log, because 0 would be wrong.
        self.log_dict({name: value for name, value in values.items() if not bool(value.isnan())})


def level_set_is_a_criterion(weight: float) -> None:
    """Refuse the older argument ``level_set_weight`` of two methods: the level-set loss is now a criterion."""
    if weight:
        raise ArgumentError(
            "level_set_weight is now an argument of the loss: set model.criterion to CrossEntropyLevelSetLoss and "
            f"model.criterion.level_set_weight to {weight:g}"
        )


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more scalars."""
    return torch.stack(list(losses)).sum()
