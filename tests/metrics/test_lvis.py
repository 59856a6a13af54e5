"""LVIS's average precision against a plain implementation of its rules."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from lsseg.metrics.coco import lvis_scores

SIZE = (40, 60)
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def code(mask):
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


def box(g):
    mask = np.zeros(SIZE, bool)
    top, left = g.integers(0, 25), g.integers(0, 40)
    mask[top : top + g.integers(6, 15), left : left + g.integers(6, 20)] = True
    return mask


def scene(seed, images=12, categories=4):
    """Objects with every kind of annotation, and detections that are shifted, of the wrong class, or invented."""
    g = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": 3 * c, "name": str(c), "frequency": "rcf"[c % 3]} for c in range(1, categories + 1)]
    found, masks = [], {}
    for image in range(1, images + 1):
        present = g.choice(categories, 2, replace=False) + 1
        absent = [c for c in range(1, categories + 1) if c not in present]
        truth["images"].append(
            {
                **{"id": image, "height": SIZE[0], "width": SIZE[1]},
                "neg_category_ids": [3 * c for c in absent if g.random() < 0.6],
                "not_exhaustive_category_ids": [3 * c for c in present if g.random() < 0.4],
            }
        )
        for category in present:
            for _ in range(g.integers(1, 4)):
                mask = box(g)
                number = len(truth["annotations"]) + 1
                masks["truth", number] = mask
                truth["annotations"].append(
                    {
                        **{"id": number, "image_id": image, "category_id": 3 * int(category)},
                        **{"segmentation": code(mask), "area": float(mask.sum()), "bbox": [0, 0, 1, 1]},
                    }
                )
                near = np.roll(mask, g.integers(-2, 3), 1)
                kind = int(category) if g.random() < 0.8 else int(g.integers(1, categories + 1))
                found.append((image, 3 * kind, near, float(g.random())))
        for _ in range(3):
            found.append((image, 3 * int(g.integers(1, categories + 1)), box(g), float(g.random())))
    for number, (_, _, mask, _) in enumerate(found):
        masks["found", number] = mask
    return truth, found, masks


def overlap(one, other):
    return np.sum(one & other) / np.sum(one | other)


def plain_ap(truth, found, masks):
    """AP over categories by the rules as LVIS states them, with nothing fast about it."""
    by_category = []
    for category in (c["id"] for c in truth["categories"]):
        scores, hits, judged, objects = [], [], [], 0
        for image in truth["images"]:
            theirs = [a for a in truth["annotations"] if (a["image_id"], a["category_id"]) == (image["id"], category)]
            if not theirs and category not in image["neg_category_ids"]:
                continue
            objects += len(theirs)
            own = [(n, f) for n, f in enumerate(found) if f[:2] == (image["id"], category)]
            own.sort(key=lambda entry: -entry[1][3])
            first = len(scores)
            scores += [entry[3] for _, entry in own]
            hits += [np.zeros(10, bool) for _ in own]
            exhaustive = category not in image["not_exhaustive_category_ids"]
            for t, threshold in enumerate(THRESHOLDS):
                free = {a["id"] for a in theirs}
                for row, (number, _) in enumerate(own, start=first):
                    overlaps = [(overlap(masks["found", number], masks["truth", k]), k) for k in free]
                    best, chosen = max(overlaps, default=(0, None))
                    if best >= threshold:
                        free.remove(chosen)
                        hits[row][t] = True
            judged += [row | exhaustive for row in hits[first:]]
        if not objects:
            continue
        order = np.argsort(-np.array(scores), kind="stable")
        hits, judged = np.array(hits)[order], np.array(judged)[order]
        values = []
        for t in range(10):
            true, false = np.cumsum(hits[:, t]), np.cumsum(~hits[:, t] & judged[:, t])
            recall, precision = true / objects, true / np.maximum(true + false, 1e-9)
            values.append([precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)])
        by_category.append(np.mean(values))
    return float(np.mean(by_category))


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_plain_implementation(seed):
    truth, found, masks = scene(seed)
    records = [
        {"image_id": i, "category_id": c, "segmentation": code(mask), "score": s, "bbox": [0, 0, 1, 1]}
        for i, c, mask, s in found
    ]
    assert lvis_scores(truth, records)["ap"] == pytest.approx(plain_ap(truth, found, masks), abs=1e-9)


def test_what_is_not_judged_costs_nothing():
    truth, found, _ = scene(0)
    records = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": a["segmentation"], "score": 0.9}
        for a in truth["annotations"]
    ]
    assert lvis_scores(truth, records)["ap"] == pytest.approx(1)
    image = truth["images"][0]
    there = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
    unjudged = next(c["id"] for c in truth["categories"] if c["id"] not in there)
    image["neg_category_ids"] = []
    extra = {"image_id": image["id"], "category_id": unjudged, "segmentation": code(found[0][2]), "score": 1.0}
    assert lvis_scores(truth, [*records, extra])["ap"] == pytest.approx(1)
    image["neg_category_ids"] = [unjudged]
    assert lvis_scores(truth, [*records, extra])["ap"] < 1
    assert lvis_scores(truth, []) == {"ap": 0.0}


@pytest.mark.parametrize(
    ("seed", "ap", "ap75", "rare"),
    [(0, 0.353267, 0.381038, 0.363138), (1, 0.324861, 0.353845, 0.306941), (2, 0.276942, 0.270332, 0.188406)],
)
def test_figures_of_the_official_package(seed, ap, ap75, rare):
    """Those of lvis 0.5.3 on the same files, which does not run with today's NumPy (taken with 1.26)."""
    truth, found, _ = scene(seed, images=40, categories=6)
    records = [{"image_id": i, "category_id": c, "segmentation": code(m), "score": s} for i, c, m, s in found]
    scores = lvis_scores(truth, records)
    assert (scores["ap"], scores["ap75"], scores["ap_rare"]) == pytest.approx((ap, ap75, rare), abs=1e-6)


def test_of_an_image_the_best_300_detections_count_whatever_their_categories():
    truth, found, _ = scene(0)
    records = [{"image_id": i, "category_id": c, "segmentation": code(m), "score": s} for i, c, m, s in found]
    image, (one, other) = truth["images"][0]["id"], [c["id"] for c in truth["categories"][:2]]
    own = [record for record in records if record["image_id"] == image]
    crowd = [{**own[0], "category_id": one if k % 2 else other, "score": 2.0 + k} for k in range(300)]
    without = [record for record in records if record["image_id"] != image]
    assert lvis_scores(truth, [*records, *crowd]) == lvis_scores(truth, [*without, *crowd])
    assert lvis_scores(truth, [*records, *crowd[1:]]) != lvis_scores(truth, [*without, *crowd[1:]])
