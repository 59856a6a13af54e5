"""Holds the table of all scores: their names, whether classes have them, and how they are computed from counts.

Tasks log the scores of this table. Progress lines, the table of a test, suites, and their pages and statistics read it.
A new score of label maps needs a row below and, if it needs new counts, a function in
:data:`~lsseg.metrics.counts.COUNTERS`. A new score of instances needs a row below, and a metric in
:class:`~lsseg.tasks.level_set_rcnn.InstanceScores` must return it.

Legend: N test images, R selections of them, C classes, … leading dimensions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor

from lsseg.functional import boundary_f1, class_iou, pixel_accuracy
from lsseg.metrics.counts import RADII
from lsseg.metrics.instances import af_of_images, ap_of_images

Floats = npt.NDArray[np.float64]
Counts = dict[str, npt.NDArray[Any]]  # of the test images, by name
Scored = Callable[[Floats], Floats]  # how often each test image counts, R×N → the score, R
Unit = Literal["%", "ms", "MB"]
RESAMPLES = 10_000
FEWEST_SEEDS = 3  # needed for an interval over seeds
CHUNK = 1_000  # resamples at a time, so that R×C×K float64 stays small for 150 classes
UNITS: dict[Unit, float] = {"%": 100, "ms": 1000, "MB": 1e-6}  # factors from shares, seconds and bytes


@dataclass(frozen=True)
class Summed:
    """Computes a score of label maps from counts that are summed over images.

    Attributes:
        counts: The name of the counts in :data:`~lsseg.metrics.counts.COUNTERS`.
        formula: Maps summed counts with leading dimensions … to the scores of the classes, …×C with NaN for a class
            without a score, or to one score, ….
    """

    counts: str
    formula: Callable[[Tensor], Tensor]

    def __call__(self, counts: Counts, weights: Floats) -> Floats:
        """Return the mean score over classes, R values; ``weights``, R×N, says how often each image counts."""
        own = counts[self.counts]
        summed = torch.from_numpy(weights @ own.reshape(len(own), -1).astype(float))
        scores: Floats = self.formula(summed.view(-1, *own.shape[1:])).reshape(len(weights), -1).nanmean(1).numpy()
        return scores


@dataclass(frozen=True)
class Score:
    """Describes one score.

    Attributes:
        name: The name in logs, files and suites.
        label: The name in tables.
        kind: The kind of tasks that have the score; empty for costs, which tasks of both kinds have.
        unit: The unit in which tables show the score, which is stored as a share, in seconds or in bytes.
        higher_is_better: Whether a higher value is better.
        of_images: Computes the score on any selection of the test images; if None, only the whole split has the score.
        compared: Whether tables show differences to the baseline, with an interval over the test images.
        classes: The name of class scores, before a slash and the class (``iou``); empty if classes have no score.
        class_label: The name in tables by class; if it is empty, suites have no such table.
        trained: Whether the score is measured during training, too.
        curve: Whether the score has a learning curve and a place in progress lines.
        in_suites: Whether a suite's table has a column of the score.
    """

    name: str
    label: str
    kind: Literal["semantic", "instances", ""] = ""
    unit: Unit = "%"
    higher_is_better: bool = True
    of_images: Callable[[Counts, Floats], Floats] | None = None
    compared: bool = False
    classes: str = ""
    class_label: str = ""
    trained: bool = False
    curve: bool = False
    in_suites: bool = True

    def shown(self, value: float) -> float:
        """Return a value in the unit in which tables show it."""
        return UNITS[self.unit] * value


def _boundary(place: int, counts: Tensor) -> Tensor:
    """Return boundary F at radius number ``place``, …×C, from counts …×radii×C×4."""
    return boundary_f1(counts[..., place, :, :])


_semantic = partial(Score, kind="semantic")
_instances = partial(Score, kind="instances")
# Tables keep this order. Methods are compared by the first score of a kind; the second compared one stands beside it.
SCORES: list[Score] = [
    _semantic(
        "miou",
        "mIoU",
        of_images=Summed("overlap", class_iou),
        compared=True,
        classes="iou",
        class_label="IoU",
        trained=True,
        curve=True,
    ),
    *(
        _semantic(
            f"boundary_f1_{radius}px",
            f"boundary F {radius}px",
            of_images=Summed("boundary", partial(_boundary, place)),
            compared=True,
            classes=f"boundary_f1_{radius}px",
            class_label=f"boundary F {radius}px" if radius == 1 else "",
            trained=True,
            curve=radius == 1,
        )
        for place, radius in enumerate(RADII)
    ),
    _semantic("accuracy", "accuracy", of_images=Summed("overlap", pixel_accuracy), trained=True),
    _semantic("initial_miou", "mIoU before refining"),
    _semantic("initial_boundary_f1_1px", "boundary F 1px before refining"),
    _semantic("changed_pixels", "labels changed by refining"),
    _semantic("official_iiou", "iIoU"),
    _semantic("official_category_miou", "category IoU"),
    _semantic("official_category_iiou", "category iIoU"),
    _instances(
        "mask_ap",
        "AP",
        of_images=ap_of_images,
        compared=True,
        classes="mask_ap",
        class_label="AP",
        trained=True,
        curve=True,
    ),
    _instances("initial_mask_ap", "AP of φ⁰"),
    _instances("mask_ap50", "AP50", trained=True),
    _instances("mask_ap75", "AP75", trained=True, curve=True),
    *(_instances(f"mask_ap_{s}", f"AP {s}", trained=True, in_suites=False) for s in ("small", "medium", "large")),
    _instances("af1", "AF 1px", of_images=partial(af_of_images, 0), compared=True),
    _instances("initial_af1", "AF 1px of φ⁰"),
    _instances("af2", "AF 2px", of_images=partial(af_of_images, 1), compared=True),
    _instances("box_ap", "AP of boxes", trained=True),
    _instances("true_box_iou", "mask IoU on true boxes"),
    _instances("initial_true_box_iou", "mask IoU on true boxes of φ⁰"),
    _instances("true_box_f1", "boundary F 1px on true boxes"),
    _instances("initial_true_box_f1", "boundary F 1px on true boxes of φ⁰"),
    _instances("official_ap", "official AP", classes="official_ap", class_label="official AP"),
    _instances("official_ap50", "official AP50"),
]
COSTS = [
    Score("train_seconds_per_image", "train ms/image", unit="ms", higher_is_better=False),
    Score("test_seconds_per_image", "test ms/image", unit="ms", higher_is_better=False),
    Score("train_peak_bytes", "training, peak MB", unit="MB", higher_is_better=False),
]


def of_kind(kind: str) -> list[Score]:
    """Return the scores of a kind of tasks, in the order of tables."""
    return [score for score in SCORES if score.kind == kind]


def better_is_higher(name: str) -> bool:
    """Return whether a higher value of a score is better; True for a score that the table does not have.

    >>> better_is_higher("miou"), better_is_higher("test_seconds_per_image"), better_is_higher("own")
    (True, False, True)
    """
    return next((score.higher_is_better for score in (*SCORES, *COSTS) if score.name == name), True)


def can_be_cited(name: str, scores: Iterable[Score]) -> bool:
    """Return whether a paper's number may be given for a name: that of a score, a cost, or a score of a class.

    >>> can_be_cited("miou", SCORES), can_be_cited("iou/road", SCORES), can_be_cited("dice", SCORES)
    (True, True, False)
    """
    first, of_class, _ = name.partition("/")
    if of_class:
        return any(score.class_label and score.classes == first for score in scores)
    return any(score.name == name and score.in_suites for score in (*scores, *COSTS))


def scores_of_sums(sums: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return scores by name from counts summed over images: the mean over classes, and each class's score (C) or None.

    Args:
        sums: Sums by the names of :data:`~lsseg.metrics.counts.COUNTERS`.
    """
    scores: dict[str, tuple[Tensor, Tensor | None]] = {}
    for score in of_kind("semantic"):
        if isinstance(score.of_images, Summed):
            value = score.of_images.formula(sums[score.of_images.counts])
            scores[score.name] = (value.nanmean(), value) if value.ndim else (value, None)
    return scores


@dataclass(frozen=True)
class Difference:
    """Holds a difference and its bootstrap 95 % interval, in the units of the score.

    Attributes:
        mean: Mean over seeds, on the test images as they are.
        low: Lower end of the interval.
        high: Upper end of the interval.
        by_seed: The difference of each seed.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean over seeds (Student's t).

        It is None for fewer than three seeds, or if a difference is not finite. The interval says what other trainings
        might have shown on these test images. ``low`` and ``high`` say what these trainings might have shown on others.
        """
        values = np.array(self.by_seed)
        if len(values) < FEWEST_SEEDS or not np.isfinite(values).all():
            return None
        reach = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
        return self.mean - reach, self.mean + reach

    def times(self, factor: float) -> "Difference":
        """Return the difference in other units."""
        by_seed = tuple(factor * value for value in self.by_seed)
        return Difference(factor * self.mean, factor * self.low, factor * self.high, by_seed)


def resampling_weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return how often each of N images is drawn in each resample, R×N."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)


def paired_difference(
    ours: Sequence[Scored], baseline: Sequence[Scored], images: int, resamples: int = RESAMPLES
) -> Difference:
    """Return the difference of the mean scores of two methods, with a bootstrap interval over the test images.

    A data set's score is not a mean over images, so each selection of images is scored as a data set. Each resample
    draws the same images for both methods and all seeds, so that the difficulty of an image cancels. The interval says
    what other test images might have shown, not what other seeds might have shown.

    Args:
        ours: The score of each seed, as a function of how often the images count.
        baseline: The scores of the other method, for the same seeds and images.
        images: N.
        resamples: R.

    Raises:
        ValueError: If the two do not have the same seeds.
    """
    if len(ours) != len(baseline):
        raise ValueError(f"the two methods must have the same seeds, but have {len(ours)} and {len(baseline)} seeds")

    def differences(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([a(weights) - b(weights) for a, b in zip(ours, baseline, strict=True)])

    by_seed = differences(np.ones((1, images)))[:, 0]
    weights = resampling_weights(images, resamples)
    drawn = np.concatenate([differences(weights[i : i + CHUNK]).mean(0) for i in range(0, resamples, CHUNK)])
    known = drawn[~np.isnan(drawn)]  # A resample can lack everything that is scored.
    low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
    return Difference(float(by_seed.mean()), float(low), float(high), tuple(map(float, by_seed)))
