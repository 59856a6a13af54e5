"""The best and the worst test images of a run, with contours, step by step where the network refines its prediction.

Legend: N images, C classes, H×W pixels, K steps.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from PIL import Image

from lsseg.callbacks.drawing import overlay, with_contours
from lsseg.callbacks.instances import draw_objects, object_map, true_masks
from lsseg.files import write_json
from lsseg.functional import class_iou
from lsseg.functional.boxes import paste_masks
from lsseg.functional.matching import FOUND, THRESHOLDS
from lsseg.metrics.instances import HEAD

LONGEST = 640  # pixels of a picture's side
SURE = 0.5  # least score of an object that is drawn and counted
Frame = tuple[str, npt.NDArray[np.uint8]]


def save_gallery(trainer: pl.Trainer, task: Any, counts: dict[str, npt.NDArray[Any]], count: int) -> None:
    """Write ``gallery/`` and, last, ``gallery/gallery.json`` into the run's folder.

    Args:
        trainer: After a test.
        task: What was tested.
        counts: Counts of every test image, as :meth:`test_counts` gives them.
        count: How many of the best, and of the worst.
    """
    folder = Path(trainer.default_root_dir) / "gallery"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier test
    scores = image_scores(task.kind, counts)
    order = np.argsort(scores, kind="stable")
    order = order[~np.isnan(scores[order])]
    count = min(count, len(order) // 2)
    if not count:
        return
    folder.mkdir(parents=True)
    data = trainer.datamodule
    samples = data.samples(data.source(data.test_split), training=False)
    entries = []
    for which, chosen in (("worst", order[:count]), ("best", order[::-1][:count])):
        for rank, place in enumerate(chosen, start=1):
            batch = trainer.precision_plugin.convert_input(data.collate([samples[int(counts["index"][place])]]))
            frames = _frames(trainer, task, trainer.strategy.batch_to_device(batch))
            files = []
            for number, (label, picture) in enumerate(frames):
                files.append({"file": f"{which}{rank}-{number}.jpg", "label": label})
                small = Image.fromarray(picture)
                small.thumbnail((LONGEST, LONGEST))
                small.save(folder / files[-1]["file"], quality=88)
            name = batch["name"][0]
            entries.append({"which": which, "name": name, "score": float(scores[place]), "frames": files})
    write_json(folder / "gallery.json", entries)


def image_scores(kind: str, counts: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """How well every image is segmented, N, in [0, 1]; NaN where there was nothing to segment.

    Label maps: the mean IoU of the classes that are in its truth or prediction. Instances: F1 of the objects found with
    a score of at least one half, mean over the IoU thresholds .50:.05:.95.
    """
    if kind == "semantic":
        iou = class_iou(torch.from_numpy(counts["overlap"])).double()
        return iou.nanmean(-1).numpy()
    rows = counts["detections"][counts["detections"][:, 2] >= SURE]
    place = np.searchsorted(counts["index"], rows[:, 0])
    hits = (rows[:, len(HEAD) : len(HEAD) + len(THRESHOLDS)] == FOUND).mean(1)
    images = len(counts["index"])
    drawn = np.bincount(place, minlength=images) + counts["objects"].sum(1)
    with np.errstate(invalid="ignore"):
        return 2 * np.bincount(place, hits, minlength=images) / drawn


def _frames(trainer: pl.Trainer, task: Any, batch: dict[str, Any]) -> list[Frame]:
    """A picture of every step of the only image of a batch, or of its prediction alone."""
    task.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        return (_label_frames if task.kind == "semantic" else _object_frames)(trainer, task, batch)


def _label_frames(trainer: pl.Trainer, task: Any, batch: dict[str, Any]) -> list[Frame]:
    image, truth = batch["image"][0].permute(1, 2, 0).float().cpu().numpy(), batch["mask"][0].cpu().numpy()
    final = task.infer(batch["image"])[0].argmax(0).cpu().numpy()
    maps = [step[0].argmax(0).cpu().numpy() for step in task.evolution(batch["image"])]
    named = [(f"step {number}", labels) for number, labels in enumerate(maps, start=task.first_step)] if maps else []
    if not maps or (maps[-1] != final).any():  # with other views, or behind a CRF
        named.append(("prediction", final))
    palette = trainer.datamodule.palette
    return [(label, overlay(with_contours(image, truth), labels, palette, 0.4)) for label, labels in named]


def _object_frames(trainer: pl.Trainer, task: Any, batch: dict[str, Any]) -> list[Frame]:
    image = batch["image"][0]
    found = task(batch["image"])[0]
    sure = int((found.scores >= SURE).sum())
    boxes, size = found.boxes[:sure], image.shape[-2:]
    moving = task.evolving_objects(image, found, trainer.datamodule.class_names, sure) if sure else []
    steps = [torch.stack(phi) for phi in zip(*(thing.phi for thing in moving), strict=True)]
    named = [(f"φ after {number} iterations", phi) for number, phi in enumerate(steps)]
    if not named or task.test_flip or tuple(task.test_scales) != (1.0,):
        named.append(("prediction", found.masks.final[:sure]))
    picture = image.permute(1, 2, 0).float().cpu().numpy()
    truth = object_map(true_masks(batch["instances"][0], size), size)
    outlined = with_contours(picture, truth)
    return [(label, draw_objects(outlined, paste_masks(phi, boxes, size).cpu().numpy())) for label, phi in named]
