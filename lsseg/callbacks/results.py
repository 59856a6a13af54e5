"""Saves the results of a test: its scores, the counts of every image, and pictures of the best and worst images.

Legend: N images, C classes, H×W pixels, K steps.
"""

import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
import wandb
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

from lsseg.callbacks.drawing import overlay, with_contours
from lsseg.callbacks.instances import SURE, draw_objects, object_map, true_masks
from lsseg.callbacks.progress import Stopwatch
from lsseg.errors import require
from lsseg.files import write_json
from lsseg.functional import class_iou
from lsseg.functional.instances import FOUND, THRESHOLDS, paste_masks
from lsseg.metrics.instances import HEAD
from lsseg.metrics.scores import of_kind


class TestResults(pl.Callback):
    """Writes ``test_images.npz`` (counts of each image), ``gallery/`` and, last, ``test.json`` (scores, speed, size).

    ``test.json`` appears whole or not at all, so its presence means that the run is finished.

    Args:
        gallery: Number of the best, and of the worst, test images that are saved as pictures.
    """

    __test__ = False  # pytest would take this class for a test because of its name

    def __init__(self, gallery: int = 0) -> None:
        require(gallery >= 0, "gallery", gallery, "must not be negative")
        self.gallery = gallery
        self.seconds = 0.0
        self.images = 0
        self._batches = 0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the time and the number of images."""
        self.seconds, self.images, self._batches = 0.0, 0, 0

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the time of a batch; the first one, which warms up, only counts if it is the only one."""
        self._batches += 1
        if self._batches == 2:
            self.seconds, self.images = 0.0, 0
        self.seconds += outputs["seconds"]
        self.images += len(batch["image"])

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write all files, log a table to W&B if it is on, and print the scores."""
        counts = {name: part.cpu().numpy() for name, part in pl_module.test_counts().items()}
        counts["index"] = counts["index"].reshape(-1)  # torchmetrics turns a single number into a scalar
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        split = trainer.datamodule.test_split
        source = trainer.datamodule.source(split)
        names = np.array([source.name(int(i)) for i in counts["index"]])
        classes = np.array(trainer.datamodule.class_names)
        np.savez_compressed(folder / "test_images.npz", names=names, classes=classes, **counts)
        save_gallery(trainer, pl_module, counts, self.gallery)
        scores = {
            k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")
        }
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                table = wandb.Table(columns=["score", "value"], data=[[k, v] for k, v in scores.items()])
                logger.experiment.log({"test/table": table})
        watch = next((c for c in trainer.callbacks if isinstance(c, Stopwatch)), None)
        result = {
            "kind": pl_module.kind,
            "scores": scores,
            "train_seconds_per_image": watch.seconds_per_image if watch and watch.images else None,
            "train_peak_bytes": watch.peak_bytes if watch else None,
            "test_seconds_per_image": self.seconds / self.images,
            "parameters": sum(p.numel() for p in pl_module.network.parameters()),
            "step": max(trainer.global_step, pl_module.trained_steps),
            "test_split": split,
            "test_images": len(names),
            "classes": classes.tolist(),
            "device": _device(pl_module.device),
        }
        write_json(folder / "test.json", result)
        console = Console(markup=False)
        tables = {"semantic": _table, "instances": _instance_table}
        console.print(tables[pl_module.kind](scores, classes.tolist()))
        official = {name.removeprefix("official_"): x for name, x in scores.items() if name.startswith("official_")}
        if official:
            console.print(
                "official scores (%): " + ", ".join(f"{name} {_percent(x)}" for name, x in official.items()),
                soft_wrap=True,
            )
        console.print(f"{len(names)} {split} images; everything is in {folder}", highlight=False, soft_wrap=True)


def _table(scores: dict[str, float], classes: list[str]) -> Table:
    """Return a table of every class's scores and their means, in percent."""
    columns = [score for score in of_kind("semantic") if score.classes]
    table = Table("class", title=f"pixel accuracy {100 * scores.get('accuracy', float('nan')):.2f} %")
    for score in columns:
        table.add_column(f"{score.class_label or score.label} (%)", justify="right")
    for label in classes:
        table.add_row(label, *(_percent(scores.get(f"{score.classes}/{label}")) for score in columns))
    table.add_section()
    table.add_row("mean", *(_percent(scores.get(score.name)) for score in columns))
    return table


def _instance_table(scores: dict[str, float], classes: list[str]) -> Table:
    """Return a table of the scores of the final masks and, if there are any, of the initial masks."""
    both = "initial_mask_ap" in scores
    table = Table("", title="mask scores (%)")
    for title in ("final", "initial") if both else ("",):
        table.add_column(title, justify="right")
    own = [score for score in of_kind("instances") if not score.name.startswith(("initial_", "official_"))]
    rows = {score.label: score.name for score in own}
    if len(classes) > 1:
        rows |= {f"AP {name}": f"mask_ap/{name}" for name in classes}
    for label, name in rows.items():
        values = [scores.get(name), *([scores.get(f"initial_{name}")] if both else [])]
        table.add_row(label, *map(_percent, values))
    return table


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.2f}"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


LONGEST = 640  # largest side of a picture, in pixels
Frame = tuple[str, npt.NDArray[np.uint8]]


def save_gallery(trainer: pl.Trainer, task: Any, counts: dict[str, npt.NDArray[Any]], count: int) -> None:
    """Write ``gallery/`` and, last, ``gallery/gallery.json`` into the run folder.

    Args:
        trainer: The trainer, after a test.
        task: The tested task.
        counts: Counts of every test image, from the task's ``test_counts``.
        count: Number of the best, and of the worst, images.
    """
    folder = Path(trainer.default_root_dir) / "gallery"
    shutil.rmtree(folder, ignore_errors=True)  # the gallery of an earlier test
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
    """Return the score of every image, N numbers in [0, 1]; NaN if there was nothing to segment.

    For label maps it is the mean IoU of the classes in the image's truth or prediction. For instances it is the F1 of
    the detections with a score of at least ½, averaged over the IoU thresholds .50:.05:.95.
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
    """Draw every step of the only image of a batch, or only its prediction if there are no steps."""
    task.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        return (_label_frames if task.kind == "semantic" else _object_frames)(trainer, task, batch)


def _label_frames(trainer: pl.Trainer, task: Any, batch: dict[str, Any]) -> list[Frame]:
    image, truth = batch["image"][0].permute(1, 2, 0).float().cpu().numpy(), batch["mask"][0].cpu().numpy()
    final = task.infer(batch["image"])[0].argmax(0).cpu().numpy()
    maps = [step[0].argmax(0).cpu().numpy() for step in task.evolution(batch["image"])]
    named = [(f"step {number}", labels) for number, labels in enumerate(maps, start=task.first_step)] if maps else []
    if not maps or (maps[-1] != final).any():  # other views or a CRF have changed the labels
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
    titles = [f"φ after {number} iterations" for number in range(len(steps))]
    named = list(zip((moving[0].labels or titles) if moving else [], steps, strict=True))
    if not named or task.test_flip or tuple(task.test_scales) != (1.0,):
        named.append(("prediction", found.masks.final[:sure]))
    picture = image.permute(1, 2, 0).float().cpu().numpy()
    truth = object_map(true_masks(batch["instances"][0], size), size)
    outlined = with_contours(picture, truth)
    return [(label, draw_objects(outlined, paste_masks(phi, boxes, size).cpu().numpy())) for label, phi in named]
