from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from lsseg.functional import boundary_f1, class_iou
from lsseg.metrics import scores
from lsseg.metrics.scores import Difference, Summed, resampling_weights


def counts(seed, images=12, classes=3, shift=0):
    """Overlap counts of two methods of which one is better by ``shift`` pixels an image and class."""
    g = np.random.default_rng(seed)
    truth = g.integers(40, 60, (images, classes))
    both = g.integers(10, 30, (images, classes)) + shift
    return np.stack([both, truth, truth], -1)


def paired_difference(ours, theirs, class_score, resamples):
    sides = [[partial(Summed("all", class_score), {"all": c}) for c in side] for side in (ours, theirs)]
    return scores.paired_difference(*sides, len(ours[0]), resamples)


def brute_miou(overlap):
    """NumPy, a loop over classes."""
    total = overlap.sum(0)
    return np.mean([both / (truth + prediction - both) for both, truth, prediction in total])


def test_mean_and_interval_equal_a_plain_bootstrap():
    ours, theirs = [counts(0, shift=3), counts(1, shift=3)], [counts(2), counts(3)]
    found = paired_difference(ours, theirs, class_iou, resamples=400)
    expected = np.mean([brute_miou(a) - brute_miou(b) for a, b in zip(ours, theirs, strict=True)])
    assert found.mean == pytest.approx(expected)
    differences = []
    for weights in resampling_weights(12, 400):
        drawn = np.repeat(np.arange(12), weights.astype(int))
        pairs = zip(ours, theirs, strict=True)
        differences.append(np.mean([brute_miou(a[drawn]) - brute_miou(b[drawn]) for a, b in pairs]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))


def test_the_interval_covers_as_often_as_it_says():
    """Many experiments in which the two methods are equally good: 0 lies outside in about 5 % of them."""
    outside = 0
    for seed in range(200):
        found = paired_difference([counts(seed, 40)], [counts(1000 + seed, 40)], class_iou, resamples=300)
        outside += not found.low <= 0 <= found.high
    assert 2 <= outside <= 24


def test_pairing_cancels_what_is_hard_about_an_image():
    g = np.random.default_rng(0)
    base = counts(0, 60)
    better = base.copy()
    better[..., 0] += g.integers(0, 3, base.shape[:2])
    paired = paired_difference([better], [base], class_iou, resamples=500)
    unpaired = paired_difference([better], [base[g.permutation(60)]], class_iou, resamples=500)
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)


def test_equal_methods_differ_by_exactly_nothing():
    same = [counts(0)]
    found = paired_difference(same, same, class_iou, resamples=50)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_class_that_a_resample_lacks_is_left_out():
    """Class 2 occurs in one image only."""
    rare = counts(0)
    rare[1:, 2] = 0
    assert np.isfinite(paired_difference([rare + 1 * (rare > 0)], [rare], class_iou, resamples=200).low)
    boundary = np.zeros((5, 2, 4), int)
    boundary[0, 0] = (3, 4, 3, 5)
    assert paired_difference([boundary], [boundary], boundary_f1, resamples=20).mean == 0
    assert torch.isnan(boundary_f1(torch.zeros(2, 4))).all()


def test_interval_over_seeds_is_that_of_a_t_test():
    by_seed = (0.2, 1.5, -0.4, 0.9, 0.3)
    found = Difference(float(np.mean(by_seed)), 0.0, 1.0, by_seed).times(100)
    known = ttest_1samp(100 * np.array(by_seed), 0).confidence_interval(0.95)
    assert found.over_seeds == pytest.approx((known.low, known.high), rel=1e-9)
    assert Difference(0.0, 0.0, 0.0, (1.0, -1.0)).over_seeds is None
    assert Difference(0.0, 0.0, 0.0, (1.0, -1.0, float("nan"))).over_seeds is None


def test_different_seeds_are_refused():
    with pytest.raises(ValueError, match="must have the same seeds, but have 2 and 1 seeds"):
        paired_difference([counts(0), counts(1)], [counts(2)], class_iou, resamples=10)
