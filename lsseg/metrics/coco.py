"""Computes COCO's average precision of masks and boxes, and LVIS's (Gupta 2019), by a maintained evaluator."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask
from torch import Tensor
from torchmetrics import Metric

from lsseg.metrics.instances import DETECTIONS, Found

# Sizes by the area in pixels: all, small, medium, large.
AREAS = ("", "_small", "_medium", "_large")
RANGES = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))


class CocoAP(Metric):
    """Computes AP, AP50, AP75 and AP by size of masks, and AP of boxes, with the values of the official evaluator.

    torchmetrics' own wrapper of the evaluator leaves out images without objects, and with them the false positives
    there.

    Args:
        num_classes: C.
        detections: Most detections of an image and class that count; the official number is 100.
        boxes: Whether boxes are scored, too.
    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(self, num_classes: int, detections: int = DETECTIONS, boxes: bool = True) -> None:
        super().__init__()
        self.num_classes, self.detections, self.boxes = num_classes, detections, boxes
        # Each image is one line of JSON as bytes, because ranks can gather only tensors.
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, found: Sequence[Found], truth: Sequence[Found], index: Tensor) -> None:
        """Add images.

        Args:
            found: For every image: ``masks`` (n×H×W bool), ``boxes`` (n×4), ``scores`` (n), ``labels`` (n).
            truth: For every image: ``masks`` (m×H×W bool), ``boxes`` (m×4), ``labels`` (m), ``crowd`` (m bool).
            index: The images' places in the data set; images with a negative place do not count.
        """
        for image, own, theirs in zip(index.tolist(), found, truth, strict=True):
            if image >= 0:
                size = list(theirs["masks"].shape[-2:])
                line = {"image": image, "size": size, "found": _objects(own), "truth": _objects(theirs)}
                data = np.frombuffer((json.dumps(line) + "\n").encode(), np.uint8).copy()
                self.lines.append(torch.from_numpy(data).to(self.device))
            else:  # A rank without a single image must have a tensor of the right type to send.
                self.lines.append(torch.zeros(0, dtype=torch.uint8, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the scores in [0, 1], with NaN where there is nothing to find.

        The names are ``mask_ap``, ``mask_ap50``, ``mask_ap75``, ``mask_ap_small``, ``mask_ap_medium``,
        ``mask_ap_large``, ``mask_ap_by_class`` (C, the AP of each class), and ``box_ap`` if boxes are scored.
        """
        lines: Any = self.lines
        parts = [lines] if isinstance(lines, Tensor) else lines  # The state is one tensor after ranks are joined.
        text = b"".join(part.cpu().numpy().tobytes() for part in parts)
        images = [json.loads(line) for line in text.splitlines()]
        truth, found = self._data_sets(sorted(images, key=lambda entry: entry["image"]))
        precision = self._evaluate(truth, found, "segm")
        scores = {f"mask_ap{name}": _mean(precision[:, :, :, place]) for place, name in enumerate(AREAS)}
        scores |= {"mask_ap50": _mean(precision[0, :, :, 0]), "mask_ap75": _mean(precision[5, :, :, 0])}
        scores["mask_ap_by_class"] = torch.stack([_mean(precision[:, :, c, 0]) for c in range(self.num_classes)])
        if self.boxes:
            scores["box_ap"] = _mean(self._evaluate(truth, found, "bbox")[:, :, :, 0])
        return scores

    def _data_sets(self, images: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        truth: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        for entry in images:
            for target, key in ((truth, "truth"), (found, "found")):
                for thing in entry[key]:
                    code = {"size": entry["size"], "counts": thing.pop("counts")}
                    area = float(coco_mask.area(code))
                    shared = {"id": len(target) + 1, "image_id": entry["image"], "segmentation": code, "area": area}
                    target.append({**shared, **thing})
        data = {
            "info": {},
            "images": [{"id": e["image"], "height": e["size"][0], "width": e["size"][1]} for e in images],
            "annotations": truth,
            "categories": [{"id": label, "name": str(label)} for label in range(self.num_classes)],
        }
        return data, found

    def _evaluate(self, truth: dict[str, Any], found: list[dict[str, Any]], kind: str) -> npt.NDArray[np.float64]:
        """Return precision at T thresholds, 101 recalls, C classes, four sizes; -1 where there is nothing to find."""
        if not found:
            return self._nothing_found(truth["annotations"])
        if kind == "bbox":  # The evaluator takes outline and area from the key that is left.
            found = [{k: v for k, v in thing.items() if k != "segmentation"} for thing in found]
        else:
            found = [{k: v for k, v in thing.items() if k != "bbox"} for thing in found]
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO(truth)
            evaluation = COCOeval_faster(known, known.loadRes(found), kind, print_function=lambda *_: None)
            evaluation.params.imgIds = sorted(image["id"] for image in truth["images"])
            evaluation.params.maxDets = [self.detections]
            evaluation.evaluate()
            evaluation.accumulate()
        precision: npt.NDArray[np.float64] = evaluation.eval["precision"][..., -1]
        return precision

    def _nothing_found(self, objects: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
        """Return precision 0 wherever there is something to find, because the evaluator takes no empty list."""
        precision = np.full((10, 101, self.num_classes, len(AREAS)), -1.0)
        for thing in objects:
            for place, (low, high) in enumerate(RANGES):
                if low <= thing["area"] <= high and not thing["iscrowd"]:
                    precision[:, :, thing["category_id"], place] = 0
        return precision


def _objects(things: Found) -> list[dict[str, Any]]:
    """Return run-length codes, boxes (left, top, width, height), categories, and scores or crowd flags."""
    masks = things["masks"].cpu().numpy().astype(np.uint8)
    codes = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0))) if len(masks) else []
    boxes = things["boxes"].double().cpu().numpy()
    result = []
    for k, code in enumerate(codes):
        left, top, right, bottom = boxes[k].tolist()
        thing = {
            "counts": code["counts"].decode(),
            "bbox": [left, top, right - left, bottom - top],
            "category_id": int(things["labels"][k]),
        }
        extra = {"score": float(things["scores"][k])} if "scores" in things else {"iscrowd": int(things["crowd"][k])}
        result.append({**thing, **extra})
    return result


def _mean(precision: npt.NDArray[np.float64]) -> Tensor:
    valid = precision[precision > -1]
    return torch.tensor(float(valid.mean()) if valid.size else float("nan"), dtype=torch.float64)


NAMES = {"AP_all": "ap", "AP_50": "ap50", "AP_75": "ap75", "AP_small": "ap_small", "AP_medium": "ap_medium"}
NAMES |= {"AP_large": "ap_large", "APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent"}
LVIS_DETECTIONS = 300  # most detections of an image, over all its categories
NEEDED = ("image_id", "category_id", "segmentation", "score")


def lvis_scores(truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, float]:
    """Return the AP of masks in [0, 1], without the scores for which there is nothing to find.

    An image counts for the categories that are annotated in it or known to be absent from it. Where a category is not
    annotated exhaustively, detections that match nothing do not count as errors. If the truth has only COCO's 80
    categories, ``ap`` is the AP* of Homayounfar 2020.

    Args:
        truth: The content of an LVIS file: ``images`` with ``neg_category_ids`` and ``not_exhaustive_category_ids``,
            ``annotations``, ``categories`` with ``frequency``.
        found: Objects as in COCO's result files: ``image_id``, ``category_id``, ``segmentation`` (run-length code),
            ``score``.
    """
    if not found:
        return {"ap": 0.0}
    known = {category["id"] for category in truth["categories"]}
    data = {key: truth[key] for key in ("images", "categories")} | {"info": {}}
    # The evaluator adds keys to the objects that it gets, so it gets copies.
    data["annotations"] = [{**thing} for thing in truth["annotations"] if thing["category_id"] in known]
    found = _best([{key: thing[key] for key in NEEDED} for thing in found])
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(data)
        detections = objects.loadRes(found)
        evaluation = COCOeval_faster(objects, detections, "segm", lvis_style=True, print_function=lambda *_: None)
        evaluation.params.maxDets = [LVIS_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores: dict[str, float] = evaluation.stats_as_dict
    return {ours: scores[theirs] for theirs, ours in NAMES.items() if scores.get(theirs, -1) > -1}


def _best(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the best detections of each image, as LVIS's own evaluator counts them."""
    kept: list[dict[str, Any]] = []
    count: Counter[Any] = Counter()
    for thing in sorted(found, key=lambda thing: -thing["score"]):
        count[thing["image_id"]] += 1
        if count[thing["image_id"]] <= LVIS_DETECTIONS:
            kept.append(thing)
    return kept
