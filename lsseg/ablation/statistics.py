"""Is the difference between two methods more than the luck of the test images?

Legend: R resamples, N test images. A score of a run is a function of how often each
test image counts: it maps R×N weights to R numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Scored = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
RESAMPLES = 10_000
FEWEST_SEEDS = 3  # of an interval over seeds
CHUNK = 1_000  # resamples at a time: R×C×K float64 stays small for 150 classes


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
