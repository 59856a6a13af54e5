"""Is the difference between two methods more than the luck of the test images?

Legend: R resamples, N test images, C classes, K numbers of a class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RESAMPLES = 10_000
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

    def times(self, factor: float) -> "Difference":
        """The same in other units."""
        by_seed = tuple(factor * value for value in self.by_seed)
        return Difference(factor * self.mean, factor * self.low, factor * self.high, by_seed)


def resampling_weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.float64]:
    """How often each of N images is drawn in each resample, R×N."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)


def paired_difference(
    ours: Sequence[npt.NDArray[np.int64]],
    baseline: Sequence[npt.NDArray[np.int64]],
    class_score: Callable[[Tensor], Tensor],
    resamples: int = RESAMPLES,
) -> Difference:
    """Difference of the mean score of two methods, with a bootstrap interval over the test images.

    A data set's score is no mean over images, so the counts of the drawn images are summed before they are scored. Each
    resample draws the same images for both methods and all seeds: what is hard about an image cancels. The interval
    says what other test images might have shown, not other seeds.

    Args:
        ours: One array of counts for each seed, N×C×K.
        baseline: The same of the other method, for the same seeds and images.
        class_score: Maps …×C×K counts to …×C scores, NaN for a class without one.
        resamples: R.

    Raises:
        ValueError: If the two do not have the same seeds and images.
    """
    shapes = {counts.shape for counts in (*ours, *baseline)}
    if len(shapes) != 1 or len(ours) != len(baseline):
        raise ValueError(f"the two methods were not tested on the same images and seeds: {shapes}")
    images = next(iter(shapes))[0]
    weights = resampling_weights(images, resamples)
    by_seed = _differences(np.ones((1, images)), ours, baseline, class_score)[:, 0]
    chunks = [weights[i : i + CHUNK] for i in range(0, resamples, CHUNK)]
    drawn = np.concatenate([_differences(chunk, ours, baseline, class_score).mean(0) for chunk in chunks])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Difference(float(by_seed.mean()), float(low), float(high), tuple(map(float, by_seed)))


def _differences(
    weights: npt.NDArray[np.float64],
    ours: Sequence[npt.NDArray[np.int64]],
    baseline: Sequence[npt.NDArray[np.int64]],
    class_score: Callable[[Tensor], Tensor],
) -> npt.NDArray[np.float64]:
    """Score of ours minus the baseline's, seeds × resamples."""

    def score(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        summed = weights @ counts.reshape(len(counts), -1).astype(float)
        result: npt.NDArray[np.float64] = (
            class_score(torch.from_numpy(summed.reshape(-1, *counts.shape[1:]))).nanmean(-1).numpy()
        )
        return result

    return np.array([score(a) - score(b) for a, b in zip(ours, baseline, strict=True)])
