"""Draws panels of a few images: truth, prediction, errors at boundaries, φ with its zero contour, and all steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from lsseg.callbacks.drawing import bytes_of, colorize, evolution_panel, hardest_class, panel, steps_panel
from lsseg.callbacks.instances import SURE, draw_objects, objects_panel, true_masks
from lsseg.errors import InputError, require
from lsseg.functional.instances import paste_masks
from lsseg.tasks.base import EvolvingObject

OBJECTS = 3  # objects in a picture of evolutions


class Panels(pl.Callback):
    """Saves panels of the first images of a split as PNG in the run folder, and in W&B if it is on.

    Each validation draws one image and replaces its last panel in the folder (W&B keeps the history). For every test
    panel the plain image, truth and prediction are saved, too, for the report's comparison of methods. A network that
    refines label maps has a second picture of its steps, ``…-steps.png`` (Zhang 2019, figure 7). Evolutions of objects
    or by Chan-Vese have another picture, ``…-evolution.png``, with contours by iteration, features and hyperparameters.
    Panels of instances show the true and the found objects.

    Args:
        images: Number of test images; 0 draws no validation image, either.
        phi_class: Name of the class whose φ is shown; null picks the class that is segmented worst in each image.
    """

    def __init__(self, images: int = 4, phi_class: str | None = None) -> None:
        require(images >= 0, "images", images, "must not be negative")
        self.images = images
        self.phi_class = phi_class

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the class exists before anything runs."""
        names = trainer.datamodule.class_names
        if self.phi_class is not None and self.phi_class not in names:
            raise InputError(f"panels.phi_class {self.phi_class!r} is not a class; the data has {', '.join(names)}")

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw the first validation image."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, outputs, batch, "val", min(1, self.images))

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw the first test images."""
        self._draw(trainer, pl_module, outputs, batch, "test", self.images)

    def _draw(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, stage: str, count: int) -> None:
        chosen = [i for i, index in enumerate(batch["index"].tolist()) if 0 <= index < count]
        if not chosen or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        (Path(trainer.default_root_dir) / "panels").mkdir(parents=True, exist_ok=True)
        if task.kind == "instances":
            self._draw_instances(trainer, task, outputs, batch, stage, chosen)
        else:
            self._draw_labels(trainer, task, outputs, batch, stage, chosen)

    def _draw_labels(
        self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, stage: str, chosen: list[int]
    ) -> None:
        data = trainer.datamodule
        folder = Path(trainer.default_root_dir) / "panels"
        phi = task.phi(outputs["logits"][chosen]).cpu().numpy()
        steps = task.evolution(batch["image"][chosen])
        for place, (i, values) in enumerate(zip(chosen, phi, strict=True)):
            image = batch["image"][i].permute(1, 2, 0).float().cpu().numpy()
            truth, prediction = batch["mask"][i].cpu().numpy(), outputs["prediction"][i].cpu().numpy()
            shown = self._shown(truth, prediction, data.class_names)
            name, file = batch["name"][i], _file_name(batch["name"][i])
            title = f"{name}, step {max(trainer.global_step, task.trained_steps)}"
            figure = panel(image, truth, prediction, values, data.class_names, data.palette, shown, title)
            _save(figure, folder / f"{stage}-{file}.png", f"panels/{stage}", title, trainer)
            if steps:
                labels = [step[place].argmax(0).cpu().numpy() for step in steps]
                phis = [task.phi(step[place : place + 1])[0, shown].cpu().numpy() for step in steps]
                colours = (data.class_names, data.palette)
                figure = steps_panel(image, truth, labels, phis, shown, *colours, title, task.first_step)
                _save(figure, folder / f"{stage}-{file}-steps.png", f"panels/{stage}_steps", title, trainer)
            self._draw_evolution(
                trainer, image, task.evolving_objects(batch["image"][i], data.class_names, OBJECTS), stage, file, title
            )
            if stage == "test":
                parts = {
                    "image": bytes_of(image).round().astype(np.uint8),
                    "truth": colorize(truth, data.palette),
                    "prediction": colorize(prediction, data.palette),
                }
                _save_plain(parts, folder, file)

    def _draw_instances(
        self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, stage: str, chosen: list[int]
    ) -> None:
        """Draw the objects with a score of at least ½ on the image as the network saw it."""
        folder = Path(trainer.default_root_dir) / "panels"
        for i in chosen:
            found = outputs["detections"][i]
            image = batch["image"][i].permute(1, 2, 0).float().cpu().numpy()
            size = image.shape[:2]
            sure = int((found.scores >= SURE).sum())
            masks = {
                name: paste_masks(phi[:sure], found.boxes[:sure], size).cpu().numpy()
                for name, phi in (("initial", found.masks.initial), ("final", found.masks.final))
            }
            if task.network.evolution == "none":
                masks.pop("initial")
            name, file = batch["name"][i], _file_name(batch["name"][i])
            title = f"{name}, step {max(trainer.global_step, task.trained_steps)}"
            truth = true_masks(batch["instances"][i], size)
            figure = objects_panel(image, truth, list(masks.items()), title)
            _save(figure, folder / f"{stage}-{file}.png", f"panels/{stage}", title, trainer)
            evolving = task.evolving_objects(batch["image"][i], found, trainer.datamodule.class_names, OBJECTS)
            self._draw_evolution(trainer, image, evolving, stage, file, title)
            if stage == "test":
                parts = {
                    "image": bytes_of(image).round().astype(np.uint8),
                    "truth": draw_objects(image, truth),
                    "prediction": draw_objects(image, masks["final"]),
                }
                _save_plain(parts, folder, file)

    def _draw_evolution(
        self, trainer: pl.Trainer, image: Any, objects: list[EvolvingObject], stage: str, file: str, title: str
    ) -> None:
        if objects:
            path = Path(trainer.default_root_dir) / "panels" / f"{stage}-{file}-evolution.png"
            _save(evolution_panel(image, objects, title), path, f"panels/{stage}_evolution", title, trainer)

    def _shown(self, truth: Any, prediction: Any, names: tuple[str, ...]) -> int:
        if self.phi_class is not None:
            return names.index(self.phi_class)
        return hardest_class(truth, prediction, len(names))


def _file_name(name: str) -> str:
    """Turn an image's name, which may be a path, into a part of a file name."""
    return name.replace("/", "__")


def _save(figure: Figure, path: Path, key: str, title: str, trainer: pl.Trainer) -> None:
    """Save a figure in the run folder, and in W&B if it is on."""
    figure.savefig(path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [str(path)], caption=[title])


def _save_plain(parts: dict[str, Any], folder: Path, file: str) -> None:
    """Save each picture in its own file, for the report's comparison of methods."""
    for part, picture in parts.items():
        Image.fromarray(picture).save(folder / f"plain-{file}-{part}.png")
