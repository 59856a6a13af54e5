"""What a test leaves behind for the report."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

from lsseg.callbacks.gallery import save_gallery
from lsseg.callbacks.stopwatch import Stopwatch
from lsseg.errors import require
from lsseg.files import write_json
from lsseg.metrics.scores import of_kind


class TestResults(pl.Callback):
    """Writes ``test_images.npz`` (counts of each image), ``gallery/`` and, last, ``test.json`` (scores, speed, size).

    ``test.json`` appears whole or not at all, so its presence means that the run is finished.

    Args:
        gallery: How many of the best and of the worst test images are kept as pictures.
    """

    __test__ = False  # not a test class, whatever its name begins with

    def __init__(self, gallery: int = 0) -> None:
        require(gallery >= 0, "gallery", gallery, "must not be negative")
        self.gallery = gallery
        self.seconds = 0.0
        self.images = 0
        self._batches = 0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting."""
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
        """Write both files, and a table to W&B where it is on."""
        counts = {name: part.cpu().numpy() for name, part in pl_module.test_counts().items()}
        counts["index"] = counts["index"].reshape(-1)  # torchmetrics makes a scalar of a single number
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
            "test_seconds_per_image": self.seconds / self.images,
            "parameters": sum(p.numel() for p in pl_module.network.parameters()),
            "step": max(trainer.global_step, pl_module.trained_steps),
            "test_split": split,
            "test_images": len(names),
            "classes": classes.tolist(),
            "device": _device(pl_module.device),
        }
        write_json(folder / "test.json", result)
        console = Console()
        tables = {"semantic": _table, "instances": _instance_table}
        console.print(tables[pl_module.kind](scores, classes.tolist()))
        official = {name.removeprefix("official_"): x for name, x in scores.items() if name.startswith("official_")}
        if official:
            console.print(
                "official: " + ", ".join(f"{name} {_percent(x)}" for name, x in official.items()), soft_wrap=True
            )
        console.print(f"{len(names)} {split} images; everything is in {folder}", highlight=False, soft_wrap=True)


def _table(scores: dict[str, float], classes: list[str]) -> Table:
    """Scores of every class in percent, and their means."""
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
    """The scores of the final masks, beside those of the initial ones where there are both."""
    both = "initial_mask_ap" in scores
    table = Table("", title="masks, %")
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
