import numpy as np
import pytest

from lsseg.functional.instances import FOUND, IGNORED, INVENTED, average_precision, match_detections


def test_the_best_detection_chooses_first_and_the_next_takes_what_is_left():
    overlap = np.array([[0.9, 0.8], [0.85, 0.6], [0.9, 0.55]])
    chosen, what = match_detections(overlap, np.array([False, False]), np.array([0.5]))
    assert chosen.tolist() == [[0, 1, -1]]
    assert what.tolist() == [[FOUND, FOUND, INVENTED]]


def test_a_crowd_is_taken_last_and_by_any_number():
    overlap = np.array([[0.9, 0.6], [0.9, 0.6], [0.7, 0.1]])
    _, what = match_detections(overlap, np.array([True, False]), np.array([0.5]))
    assert what.tolist() == [[FOUND, IGNORED, IGNORED]]


def test_no_detections_and_no_objects():
    for shape in ((0, 3), (3, 0), (0, 0)):
        chosen, what = match_detections(np.zeros(shape), np.zeros(shape[1], bool))
        assert chosen.shape == what.shape == (10, shape[0])
        assert not what.any()


def test_average_precision_by_hand():
    what = np.array([[FOUND, INVENTED, FOUND]], np.int8)
    # recall ½ at precision 1 (51 of 101 levels), then 1 at precision 2/3
    found = average_precision(np.array([0.9, 0.8, 0.7]), what, 2)
    assert found[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert np.isnan(average_precision(np.zeros(0), np.zeros((1, 0), np.int8), 0)).all()
    assert average_precision(np.zeros(0), np.zeros((1, 0), np.int8), 3).tolist() == [0.0]


def test_weights_stand_for_repetition():
    g = np.random.default_rng(0)
    image = g.integers(0, 6, 40)
    scores, what = g.random(40), g.integers(0, 3, (10, 40)).astype(np.int8)
    objects = g.integers(3, 9, 6)
    weights = np.array([2, 0, 1, 3, 1, 0])
    repeated = np.repeat(np.arange(40), weights[image])
    by_weight = average_precision(scores, what, float(weights @ objects), weights[image].astype(float))
    plain = average_precision(scores[repeated], what[:, repeated], float(weights @ objects))
    np.testing.assert_allclose(by_weight, plain, atol=0.02)  # copies of one score lie between two precisions
    np.testing.assert_allclose(
        average_precision(scores, what, objects.sum(), np.ones(40)), average_precision(scores, what, objects.sum())
    )
