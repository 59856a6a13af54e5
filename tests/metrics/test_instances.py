import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lsseg.functional.instances import FOUND, THRESHOLDS, average_precision
from lsseg.metrics import AverageBoundaryF1, CocoAP, InstanceMatches
from lsseg.metrics.instances import HEAD, pair_boundary_f1

CLASSES = 3
SIZE = (60, 70)


def random_masks(g, count):
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks:
        y, x = g.integers(0, 45, 2)
        height, width = g.integers(5, 25, 2)
        mask[y : y + height, x : x + width] = True
    return masks


def boxes_of(masks):
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return torch.tensor(np.array(boxes, np.float32).reshape(-1, 4))


def random_images(seed, images=10, crowds=0.15, digits=2):
    """Objects, and detections that are shifted copies of them and inventions, with ties; one image has no objects."""
    g = np.random.default_rng(seed)
    found, truth = [], []
    for i in range(images):
        count = 0 if i == 3 else int(g.integers(1, 8))
        masks, labels = random_masks(g, count), g.integers(0, CLASSES, count)
        crowd = g.random(count) < crowds
        shifted = np.concatenate([np.roll(masks, g.integers(-3, 4, 2), (1, 2)), random_masks(g, 4)])
        kinds = np.concatenate([labels, g.integers(0, CLASSES, 4)])
        scores = torch.from_numpy(g.random(len(shifted)).round(digits))
        found.append(
            {
                "masks": torch.from_numpy(shifted),
                "scores": scores,
                "labels": torch.from_numpy(kinds),
                "boxes": boxes_of(shifted),
            }
        )
        truth.append(
            {
                "masks": torch.from_numpy(masks),
                "labels": torch.from_numpy(labels),
                "crowd": torch.from_numpy(crowd),
                "boxes": boxes_of(masks),
            }
        )
    return found, truth


def official(found, truth, kind="segm"):
    """pycocotools' own evaluation: precision T×101×C×areas×detections."""
    objects, results = [], []
    for i, (own, theirs) in enumerate(zip(found, truth, strict=True)):
        for side, target in ((theirs, objects), (own, results)):
            for k in range(len(side["labels"])):
                code = coco_mask.encode(np.asfortranarray(side["masks"][k].numpy().astype(np.uint8)))
                left, top, right, bottom = side["boxes"][k].tolist()
                record = {"image_id": i, "category_id": int(side["labels"][k])}
                record["bbox"] = [left, top, right - left, bottom - top]
                if target is objects:
                    record |= {"id": len(objects) + 1, "area": float(coco_mask.area(code)), "segmentation": code}
                    record["iscrowd"] = int(side["crowd"][k])
                else:
                    record["score"] = float(side["scores"][k])
                    if kind == "segm":
                        record.pop("bbox")
                        record["segmentation"] = code
                target.append(record)
    known = COCO()
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(found))]
    categories = [{"id": label, "name": str(label)} for label in range(CLASSES)]
    known.dataset = {"info": {}, "images": images, "annotations": objects, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"]


def mean(precision):
    return precision[precision > -1].mean()


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_the_official_one(seed):
    found, truth = random_images(seed)
    metric = CocoAP(CLASSES)
    for i in range(10):  # one at a time
        metric.update(found[i : i + 1], truth[i : i + 1], torch.tensor([i]))
    scores = metric.compute()
    precision = official(found, truth)[..., -1]
    assert float(scores["mask_ap"]) == pytest.approx(mean(precision[..., 0]), abs=1e-12)
    assert float(scores["mask_ap50"]) == pytest.approx(mean(precision[0, ..., 0]), abs=1e-12)
    assert float(scores["mask_ap75"]) == pytest.approx(mean(precision[5, ..., 0]), abs=1e-12)
    assert float(scores["mask_ap_small"]) == pytest.approx(mean(precision[..., 1]), abs=1e-12)
    for label in range(CLASSES):
        assert float(scores["mask_ap_by_class"][label]) == pytest.approx(mean(precision[:, :, label, 0]), abs=1e-12)
    boxes = official(found, truth, "bbox")[..., 0, -1]
    assert float(scores["box_ap"]) == pytest.approx(mean(boxes), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_matches_give_the_official_precision(seed):
    found, truth = random_images(seed)
    metric = InstanceMatches(CLASSES)
    metric.update(found, truth, torch.arange(10))
    rows = {name: part.numpy() for name, part in metric.compute().items()}
    steps = len(THRESHOLDS)
    precision = official(found, truth)[..., 0, -1]
    for label in range(CLASSES):
        own = rows["detections"][rows["detections"][:, 1] == label]
        what = own[:, len(HEAD) : len(HEAD) + steps].T.astype(np.int8)
        ours = average_precision(own[:, 2], what, rows["objects"][:, 1 + label].sum())
        np.testing.assert_allclose(ours, precision[:, :, label].mean(1), atol=1e-12)


def brute_boundary_f1(one, other, radius):
    """Boundary F of two masks, pixel by pixel."""

    def boundary(mask):
        places = set()
        for y, x in zip(*np.nonzero(mask), strict=True):
            around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            if any(0 <= v < mask.shape[0] and 0 <= u < mask.shape[1] and not mask[v, u] for v, u in around):
                places.add((y, x))
        return places

    def share(own, theirs):
        near = sum(any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in theirs) for y, x in own)
        return near / len(own) if own else 0.0

    first, second = boundary(one), boundary(other)
    if not first and not second:
        return 1.0
    precision, recall = share(first, second), share(second, first)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("radius", [1, 2])
def test_af_is_what_a_loop_over_everything_gives(radius):
    found, truth = random_images(5, images=6)
    metric = AverageBoundaryF1(CLASSES, radius)
    metric.update(found, truth, torch.arange(6))
    matches = InstanceMatches(CLASSES, (radius,))
    matches.update(found, truth, torch.arange(6))
    cells = {(label, t): [] for label in range(CLASSES) for t in range(len(THRESHOLDS))}
    for i, (own, theirs) in enumerate(zip(found, truth, strict=True)):
        for label in range(CLASSES):
            order = [d for d in range(len(own["labels"])) if own["labels"][d] == label]
            order.sort(key=lambda d: -float(own["scores"][d]))
            there = [k for k in range(len(theirs["labels"])) if theirs["labels"][k] == label]
            for t, threshold in enumerate(THRESHOLDS):
                free = set(there)
                for d in order:
                    mask = own["masks"][d].numpy()
                    best, most = None, threshold
                    for k in there:
                        other = theirs["masks"][k].numpy()
                        overlap = (mask & other).sum() / (mask | other).sum()
                        if k in free and not theirs["crowd"][k] and overlap >= most:
                            best, most = k, overlap
                    if best is not None:
                        free.discard(best)
                        cells[label, t].append(brute_boundary_f1(mask, theirs["masks"][best].numpy(), radius))
        assert i < 6
    by_class = [[np.mean(cells[label, t]) for t in range(10) if cells[label, t]] for label in range(CLASSES)]
    expected = np.mean([np.mean(values) for values in by_class if values])
    scores = metric.compute()
    assert float(scores["af"]) == pytest.approx(expected, abs=1e-12)
    assert int(scores["left_out"]) == sum(not values for values in cells.values())


def test_masks_that_fill_the_image_agree():
    full = np.ones((5, 6), bool)
    assert pair_boundary_f1(full, full, 1) == 1.0
    half = full.copy()
    half[:, 3:] = False
    assert pair_boundary_f1(full, half, 1) == 0.0
    assert pair_boundary_f1(half, half, 1) == 1.0


def test_copies_that_fill_up_a_rank_do_not_count():
    found, truth = random_images(1, images=4)
    scores = []
    for index in ([0, 1, 2, 3], [0, 1, 2, 3, -1]):
        ap, af = CocoAP(CLASSES), AverageBoundaryF1(CLASSES, 1)
        places = [i if i >= 0 else 0 for i in index]
        for metric in (ap, af):
            metric.update([found[i] for i in places], [truth[i] for i in places], torch.tensor(index))
        scores.append((float(ap.compute()["mask_ap"]), float(af.compute()["af"])))
    assert scores[0] == scores[1]


def test_the_order_of_images_does_not_matter():
    found, truth = random_images(2)
    rows = []
    for order in (range(10), reversed(range(10))):
        metric = InstanceMatches(CLASSES)
        for i in order:
            metric.update([found[i]], [truth[i]], torch.tensor([i]))
        rows.append(metric.compute())
    for name in rows[0]:
        torch.testing.assert_close(rows[0][name], rows[1][name], rtol=0, atol=0, equal_nan=True)


def test_nothing_at_all():
    metric, matches = CocoAP(CLASSES), InstanceMatches(CLASSES)
    nothing = {
        "masks": torch.zeros(0, 5, 6, dtype=torch.bool),
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0).long(),
    }
    own, theirs = {**nothing, "scores": torch.zeros(0)}, {**nothing, "crowd": torch.zeros(0, dtype=torch.bool)}
    for m in (metric, matches):
        m.update([own], [theirs], torch.tensor([0]))
    assert torch.isnan(metric.compute()["mask_ap"])
    assert matches.compute()["detections"].shape == (0, 33)
    _, truth = random_images(0, images=1)
    metric.update([own], truth, torch.tensor([1]))  # objects, none of them found
    assert float(metric.compute()["mask_ap"]) == 0


def test_more_than_a_hundred_detections_count_where_they_may():
    masks = np.zeros((150, *SIZE), bool)
    for k in range(150):
        y, x = divmod(k, 15)
        masks[k, 6 * y : 6 * y + 4, 4 * x : 4 * x + 3] = True
    labels = torch.zeros(150, dtype=torch.long)
    things = {"masks": torch.from_numpy(masks), "labels": labels, "boxes": boxes_of(masks)}
    found = {**things, "scores": torch.linspace(1, 0.5, 150)}
    truth = {**things, "crowd": torch.zeros(150, dtype=torch.bool)}
    for most, least in ((100, 0.6), (150, 0.99)):
        metric, matches = CocoAP(1, most), InstanceMatches(1, detections=most)
        for m in (metric, matches):
            m.update([found], [truth], torch.tensor([0]))
        assert least < float(metric.compute()["mask_ap"]) <= least + 0.1
        assert (matches.compute()["detections"][:, 3] == FOUND).sum() == most
