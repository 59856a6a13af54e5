import numpy as np
import pytest
import torch

from lsseg.metrics import AverageBoundaryF1, CocoAP, InstanceMatches
from lsseg.metrics.scores import of_kind

CLASSES = 2


def images(count, seed=0):
    """Discs, and what a mediocre detector makes of them; no two scores are equal."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :50]
    found, truth = [], []
    for _ in range(count):
        places = g.integers(8, 32, (int(g.integers(1, 5)), 2))
        radii = g.integers(4, 8, len(places))
        shifts = g.integers(-2, 3, places.shape)
        masks = [np.hypot(y - a, x - b) < r for (a, b), r in zip(places, radii, strict=True)]
        guesses = [np.hypot(y - a, x - b) < r for (a, b), r in zip(places + shifts, radii, strict=True)]
        labels = torch.from_numpy(g.integers(0, CLASSES, len(places)))
        boxes = torch.zeros(len(places), 4)
        own, theirs = (torch.from_numpy(np.stack(m)) for m in (guesses, masks))
        found.append(
            {"masks": own, "labels": labels, "scores": torch.from_numpy(g.random(len(places))), "boxes": boxes}
        )
        truth.append(
            {"masks": theirs, "labels": labels, "crowd": torch.zeros(len(places), dtype=torch.bool), "boxes": boxes}
        )
    return found, truth


def expected(found, truth, order):
    """The metrics' own scores of a data set in which images are repeated."""
    own, theirs, index = [found[i] for i in order], [truth[i] for i in order], torch.arange(len(order))
    ap, scores = CocoAP(CLASSES, boxes=False), {}
    ap.update(own, theirs, index)
    scores["mask_ap"] = float(ap.compute()["mask_ap"])
    for radius in (1, 2):
        af = AverageBoundaryF1(CLASSES, radius)
        af.update(own, theirs, index)
        scores[f"af{radius}"] = float(af.compute()["af"])
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_under_weights_are_those_of_repeated_images(seed):
    found, truth = images(8, seed)
    metric = InstanceMatches(CLASSES)
    index = torch.tensor([3, 5, 8, 9, 20, 21, 30, 31])  # as of a subset
    metric.update(found, truth, index)
    rows = {name: part.numpy() for name, part in metric.compute().items()}
    weights = np.array([[1] * 8, [2, 0, 1, 3, 1, 0, 1, 0], [0, 1, 0, 1, 4, 1, 0, 1]], float)
    counts = {"detections": rows["detections"], "objects": rows["objects"][:, 1:], "index": index.numpy()}
    compared = {score.name: score.of_images for score in of_kind("instances") if score.of_images}
    assert list(compared) == ["mask_ap", "af1", "af2"]
    for score, of_images in compared.items():
        ours = of_images(counts, weights)
        for weight, value in zip(weights, ours, strict=True):
            order = np.repeat(np.arange(8), weight.astype(int))
            # Copies of one detection share a score; where both find something, the order of equals does not matter.
            assert value == pytest.approx(expected(found, truth, order)[score], abs=1e-9)


def test_a_class_that_no_drawn_image_holds_is_left_out():
    found, truth = images(3)
    truth[0]["labels"][:] = found[0]["labels"][:] = 1
    for i in (1, 2):
        truth[i]["labels"][:] = found[i]["labels"][:] = 0
    metric = InstanceMatches(CLASSES)
    metric.update(found, truth, torch.arange(3))
    rows = {name: part.numpy() for name, part in metric.compute().items()}
    counts = {"detections": rows["detections"], "objects": rows["objects"][:, 1:], "index": np.arange(3)}
    values = of_kind("instances")[0].of_images(counts, np.array([[0.0, 1, 1], [0.0, 0, 0]]))
    assert values[0] == pytest.approx(expected(found, truth, [1, 2])["mask_ap"])
    assert np.isnan(values[1])
