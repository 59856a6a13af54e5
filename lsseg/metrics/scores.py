"""The one table of scores: what they are called, which classes have them, and how counts of images make them.

Tasks log by it; progress, a test's table, suites, their pages and their statistics read it. A new score of label maps
is a row below and, where no counts of it are made yet, a function in :data:`~lsseg.metrics.counts.COUNTERS`. A new
score of instances is a row below and what a metric in :class:`~lsseg.tasks.level_set_rcnn.InstanceScores` returns.

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
Unit = Literal["%", "ms"]
RESAMPLES = 10_000
FEWEST_SEEDS = 3  # of an interval over seeds
CHUNK = 1_000  # resamples at a time: R×C×K float64 stays small for 150 classes
UNITS: dict[Unit, float] = {"%": 100, "ms": 1000}  # factors of shares and of seconds


@dataclass(frozen=True)
class Summed:
    """A score of label maps, formed of counts that are summed over images.

    Attributes:
        counts: Their name in :data:`~lsseg.metrics.counts.COUNTERS`.
        formula: Maps summed counts (… in front) to scores of the classes, …×C with NaN for a class without one, or to
            one score, ….
    """

    counts: str
    formula: Callable[[Tensor], Tensor]

    def __call__(self, counts: Counts, weights: Floats) -> Floats:
        """The score, R, where N images count as often as ``weights``, R×N, say: the mean over classes."""
        own = counts[self.counts]
        summed = torch.from_numpy(weights @ own.reshape(len(own), -1).astype(float))
        scores: Floats = self.formula(summed.view(-1, *own.shape[1:])).reshape(len(weights), -1).nanmean(1).numpy()
        return scores


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        name: The name in logs, files and suites.
        label: The name in tables.
        kind: The kind of tasks that have it; costs belong to both.
        unit: It is kept as a share, or in seconds, and shown in this unit.
        higher_is_better: Whether a higher value is better.
        of_images: The score on any selection of the test images; without it, it is known of the whole split only.
        compared: Whether tables show differences to the baseline, with an interval over the test images.
        classes: What a class's score is called, before a slash and the class (``iou``); nothing where it has none.
        class_label: The name in tables by class; without it suites have no such table.
        trained: Whether it is measured during training, too.
        curve: Whether it has a learning curve, and a place in progress lines.
        in_suites: Whether a suite's table has a column of it.
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
        """A value in the unit in which tables show it."""
        return UNITS[self.unit] * value


def _boundary(place: int, counts: Tensor) -> Tensor:
    """Boundary F at one of the radii, …×C, of counts …×radii×C×4."""
    return boundary_f1(counts[..., place, :, :])


_semantic = partial(Score, kind="semantic")
_instances = partial(Score, kind="instances")
# In the order of tables. The first of a kind is what methods are compared by, the second compared one stands beside it.
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
]


def of_kind(kind: str) -> list[Score]:
    """The scores of a kind of tasks, in the order of tables."""
    return [score for score in SCORES if score.kind == kind]


def better_is_higher(name: str) -> bool:
    """Whether a higher value of a score is better; of one that the table does not have, too.

    >>> better_is_higher("miou"), better_is_higher("test_seconds_per_image"), better_is_higher("own")
    (True, False, True)
    """
    return next((score.higher_is_better for score in (*SCORES, *COSTS) if score.name == name), True)


def can_be_cited(name: str, scores: Iterable[Score]) -> bool:
    """Whether a paper's number may be given for it: a score, a cost, or a score of a class.

    >>> can_be_cited("miou", SCORES), can_be_cited("iou/road", SCORES), can_be_cited("dice", SCORES)
    (True, True, False)
    """
    first, of_class, _ = name.partition("/")
    if of_class:
        return any(score.class_label and score.classes == first for score in scores)
    return any(score.name == name and score.in_suites for score in (*scores, *COSTS))


def scores_of_sums(sums: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Scores by name, of counts that are summed over images: the mean over classes, and each class's (C) or None.

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
    """A difference and its bootstrap 95 % interval, in the units of the score.

    Attributes:
        mean: Over seeds, on the test images as they are.
        low: Of the interval.
        high: Of the interval.
        by_seed: The difference of each seed.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds (Student's t); None of fewer than three.

        It says what other trainings might have shown on these test images, where low and high say what these trainings
        might have shown on others.
        """
        values = np.array(self.by_seed)
        if len(values) < FEWEST_SEEDS or not np.isfinite(values).all():
            return None
        reach = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
        return self.mean - reach, self.mean + reach

    def times(self, factor: float) -> "Difference":
        """The same in other units."""
        by_seed = tuple(factor * value for value in self.by_seed)
        return Difference(factor * self.mean, factor * self.low, factor * self.high, by_seed)


def resampling_weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.float64]:
    """How often each of N images is drawn in each resample, R×N."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)


def paired_difference(
    ours: Sequence[Scored], baseline: Sequence[Scored], images: int, resamples: int = RESAMPLES
) -> Difference:
    """Difference of the mean score of two methods, with a bootstrap interval over the test images.

    A data set's score is no mean over images, so each selection of images is scored as a data set. Each resample draws
    the same images for both methods and all seeds: what is hard about an image cancels. The interval says what other
    test images might have shown, not other seeds.

    Args:
        ours: The score of each seed.
        baseline: The same of the other method, for the same seeds and images.
        images: N.
        resamples: R.

    Raises:
        ValueError: If the two do not have the same seeds.
    """
    if len(ours) != len(baseline):
        raise ValueError(f"the two methods do not have the same seeds: {len(ours)} and {len(baseline)}")

    def differences(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([a(weights) - b(weights) for a, b in zip(ours, baseline, strict=True)])

    by_seed = differences(np.ones((1, images)))[:, 0]
    weights = resampling_weights(images, resamples)
    drawn = np.concatenate([differences(weights[i : i + CHUNK]).mean(0) for i in range(0, resamples, CHUNK)])
    known = drawn[~np.isnan(drawn)]  # a resample can lack what is scored
    low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
    return Difference(float(by_seed.mean()), float(low), float(high), tuple(map(float, by_seed)))
