from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsseg.functional import boundary_counts, boundary_f1, confusion_matrix, label_boundary
from lsseg.metrics import BoundaryF1


def brute_boundary(labels):
    """Pixel by pixel, neighbour by neighbour."""
    height, width = labels.shape
    boundary = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= ny < height and 0 <= nx < width
                if inside and labels[y, x] != 255 and labels[ny, nx] not in (255, labels[y, x]):
                    boundary[y, x] = True
    return boundary


def brute_counts(prediction, target, classes, radius):
    """All pairs of pixels, Euclidean distances."""
    prediction = np.where(target == 255, 255, prediction)
    void = np.argwhere(target == 255)
    counts = np.zeros((classes, 4), dtype=int)
    maps = [(prediction, brute_boundary(prediction)), (target, brute_boundary(target))]
    for side, (own, other) in enumerate((maps, maps[::-1])):
        for label in range(classes):
            theirs = np.argwhere(other[1] & (other[0] == label))
            for pixel in np.argwhere(own[1] & (own[0] == label)):
                if len(void) and ((void - pixel) ** 2).sum(1).min() <= radius**2:
                    continue
                counts[label, 2 * side + 1] += 1
                counts[label, 2 * side] += bool(len(theirs)) and ((theirs - pixel) ** 2).sum(1).min() <= radius**2
    return counts


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 13), st.integers(1, 17), st.integers(2, 4), st.integers(0, 4), st.booleans()
)
def test_counts_equal_brute_force(seed, height, width, classes, radius, with_void):
    g = np.random.default_rng(seed)
    blocks = g.integers(0, classes, (2, height // 3 + 1, width // 3 + 1))
    prediction, target = np.kron(blocks, np.ones((1, 3, 3), dtype=int))[:, :height, :width]
    if with_void:
        target = np.where(g.random(target.shape) < 0.03, 255, target)
    ours = boundary_counts(torch.from_numpy(prediction)[None], torch.from_numpy(target)[None], classes, radius)
    np.testing.assert_array_equal(ours[0].numpy(), brute_counts(prediction, target, classes, radius))


def test_boundary_equals_brute_force_and_ignores_the_edge():
    labels = np.random.default_rng(0).integers(0, 3, (9, 14))
    labels[2:4, 5:9] = 255
    np.testing.assert_array_equal(label_boundary(torch.from_numpy(labels)[None])[0].numpy(), brute_boundary(labels))
    assert not label_boundary(torch.zeros(1, 5, 6, dtype=torch.long)).any()


def shifted_squares(shift):
    target = torch.zeros(1, 20, 30, dtype=torch.long)
    target[:, 5:15, 8:20] = 1
    return target.roll(shift, 2), target


def test_f_rises_with_the_tolerance():
    prediction, target = shifted_squares(2)
    scores = [float(boundary_f1(boundary_counts(prediction, target, 2, r))[0, 1]) for r in (0, 1, 2, 3)]
    assert scores == sorted(scores)
    assert scores[0] < 1
    assert scores[2] == 1


def test_scores_without_boundaries():
    plain, square = torch.zeros(1, 20, 30, dtype=torch.long), shifted_squares(0)[1]
    assert boundary_f1(boundary_counts(plain, plain, 2, 1)).isnan().all()
    assert boundary_f1(boundary_counts(plain, square, 2, 1)).tolist() == [[0, 0]]
    far = torch.zeros_like(plain)
    far[:, 0:2, 0:2] = 1
    assert float(boundary_f1(boundary_counts(far, square, 2, 1))[0, 1]) == 0


def test_metric_does_not_depend_on_how_the_data_is_divided():
    g = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(0, 4, (2, 6, 16, 12), generator=g)
    whole, parts = BoundaryF1(4, 2), BoundaryF1(4, 2)
    whole.update(prediction, target)
    for i in (0, 1, 3):
        parts.update(prediction[i : i + 1 + i // 3 * 2], target[i : i + 1 + i // 3 * 2])
    parts.update(prediction[2:3], target[2:3])
    assert whole.counts.tolist() == parts.counts.tolist()
    torch.testing.assert_close(whole.compute(), boundary_f1(boundary_counts(prediction, target, 4, 2).sum(0)))


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="radius must be at least 0, not -1"):
        BoundaryF1(3, -1)


def test_labels_of_any_integer_type():
    prediction, target = torch.randint(0, 4, (2, 3, 16, 12), generator=torch.Generator().manual_seed(0))
    target[:, 2:5, 3:9] = 255
    counts = boundary_counts(prediction, target, 4, 2)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(boundary_counts(prediction.to(dtype), target.to(dtype), 4, 2), counts)


@pytest.mark.parametrize(("part", "label"), [("prediction", 4), ("prediction", -1), ("target", 4), ("target", -1)])
def test_labels_of_no_class_are_refused(part, label):
    labels = {"prediction": torch.zeros(1, 4, 5, dtype=torch.long), "target": torch.zeros(1, 4, 5, dtype=torch.long)}
    labels[part][0, 1, 2] = label
    with pytest.raises(ValueError, match=rf"{part} holds the label {label}, but labels must lie in 0\.\.3"):
        confusion_matrix(*labels.values(), 4)
    labels["target"][0, 1, 2] = 255  # void, where the prediction does not matter
    assert confusion_matrix(*labels.values(), 4).sum() == 19


@pytest.mark.parametrize("counts", [confusion_matrix, partial(boundary_counts, radius=1)])
@pytest.mark.parametrize("given", [torch.zeros(2, 3, 4, 5), torch.zeros(1, 4, 5).long(), torch.zeros(2, 4, 5)])
def test_maps_that_are_no_labels_of_one_shape_are_refused(counts, given):
    with pytest.raises(ValueError, match="must be integer labels B×H×W of one shape"):
        counts(given, torch.zeros(2, 4, 5, dtype=torch.long), 3)
