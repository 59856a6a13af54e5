"""LVIS's average precision (Gupta 2019), by a kept evaluator."""

import contextlib
import io
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster

NAMES = {"AP_all": "ap", "AP_50": "ap50", "AP_75": "ap75", "AP_small": "ap_small", "AP_medium": "ap_medium"}
NAMES |= {"AP_large": "ap_large", "APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent"}
DETECTIONS = 300  # of an image
NEEDED = ("image_id", "category_id", "segmentation", "score")


def lvis_scores(truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, float]:
    """AP of masks in [0, 1]; scores of which there is nothing to be found are left out.

    An image counts for the categories that are annotated in it or known to be absent from it; where a category is
    annotated but not exhaustively, what matches nothing is not held against the detector. Of a truth that has COCO's
    80 categories only, ``ap`` is the AP* of Homayounfar 2020.

    Args:
        truth: An LVIS file's content: ``images`` with ``neg_category_ids`` and ``not_exhaustive_category_ids``,
            ``annotations``, ``categories`` with ``frequency``.
        found: Objects as in COCO's result files: ``image_id``, ``category_id``, ``segmentation`` (run-length code),
            ``score``.
    """
    if not found:
        return {"ap": 0.0}
    known = {category["id"] for category in truth["categories"]}
    data = {key: truth[key] for key in ("images", "categories")} | {"info": {}}
    # Copies: the evaluator adds to what it is given.
    data["annotations"] = [{**thing} for thing in truth["annotations"] if thing["category_id"] in known]
    found = [{key: thing[key] for key in NEEDED} for thing in found]
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(data)
        detections = objects.loadRes(found)
        evaluation = COCOeval_faster(objects, detections, "segm", lvis_style=True, print_function=lambda *_: None)
        evaluation.params.maxDets = [DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores: dict[str, float] = evaluation.stats_as_dict
    return {ours: scores[theirs] for theirs, ours in NAMES.items() if scores.get(theirs, -1) > -1}
