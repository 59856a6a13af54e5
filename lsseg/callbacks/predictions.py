"""Saves predictions in files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image

from lsseg.callbacks.drawing import evolution_panel, overlay, steps_panel
from lsseg.callbacks.instances import draw_objects, object_map, object_records, save_server_labels, save_server_objects
from lsseg.data.source import read_image
from lsseg.data.transforms import as_numbers
from lsseg.errors import InputError
from lsseg.files import write_json, write_whole

OBJECTS = 4  # objects in a picture of evolutions


class SavePredictions(pl.Callback):
    """Saves ``NAME.png`` (palette PNG of labels), ``NAME_overlay.png`` and, on request, φ of every image.

    For instances it saves ``NAME.png`` (a number for each object, the best object is 1), ``NAME_overlay.png``, and
    ``NAME.json``, which holds the objects as in COCO's result files.

    Args:
        output: Folder for the files; null is ``predictions`` in the folder of this command, RUN/predict-TIME.
        phi: Names of classes whose level-set function is saved, too, as ``NAME_phi_CLASS.npy`` (float32, H×W, positive
            inside) and as a picture, ``NAME_phi_CLASS.png``; ``[all]`` saves every class.
        steps: Whether to save the steps of a network that refines its prediction: the labels after every step,
            ``NAME_step1.png`` …, and ``NAME_steps.png``, a picture of all steps with the zero contour of φ. It shows
            the first class in ``phi`` or, by default, the class that the steps change most. The image passes through
            the network a second time. Instances, and labels with a Chan-Vese evolution, have ``NAME_evolution.png``
            with contours by iteration, features and hyperparameters; instances have no pictures of labels.
        contours: Whether to add the subpixel contours of instances to ``NAME.json``, by marching squares on φ.
        score: Least score of an object that is saved.
        submission: Whether to save only the files that the data set's server takes (Cityscapes, CityscapesInstances,
            ADE20K), with instances of any score.
    """

    def __init__(
        self,
        output: str | None = None,
        phi: list[str] | None = None,
        steps: bool = False,
        contours: bool = False,
        score: float = 0.5,
        submission: bool = False,
    ) -> None:
        if not 0 <= score <= 1:
            raise InputError(f"predictions.score must lie in 0..1, not {score}")
        self.output = output
        self.phi = phi or []
        self.steps = steps
        self.contours = contours
        self.score = score
        self.submission = submission
        self._names: dict[str, str] = {}  # path of an image → name of its files

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Check the class names and the files' names before anything runs."""
        names = trainer.datamodule.class_names
        unknown = [name for name in self.phi if name not in (*names, "all")]
        if unknown:
            raise InputError(f"predictions.phi {unknown[0]!r} is not a class; the data has {', '.join(names)}")
        instances = pl_module.kind == "instances"
        if instances and self.phi:
            raise InputError("predictions.phi is only for label maps; for instances use predictions.contours")
        if not instances and self.contours:
            raise InputError("predictions.contours is only for instances; for label maps use predictions.phi")
        if instances and self.steps and pl_module.network.evolution == "none":
            raise InputError("predictions.steps must be false, because this network has no steps: it predicts once")
        if self.submission and trainer.datamodule.file_values is None:
            raise InputError(
                f"predictions.submission: {type(trainer.datamodule).__name__} has no known server format; "
                "use it with Cityscapes, CityscapesInstances or ADE20K"
            )
        if stage == "predict" and not instances:
            pl_module.predicted_phi = tuple(k for k, name in enumerate(names) if {name, "all"} & set(self.phi))
        if stage == "predict":
            images = trainer.datamodule.predict_images()
            self._names = dict(zip(map(str, images.paths), images.names, strict=True))
            self._check_collisions(self._folder(trainer), images.paths, images.names)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Save the files of one batch."""
        for i, path in enumerate(map(Path, outputs["path"])):
            steps = self._steps_of(pl_module, outputs, batch, i) if self.steps and pl_module.kind == "semantic" else []
            stem = self._folder(trainer) / (path.stem if self.submission else self._names[str(path)])
            if self.submission:
                self._submit(pl_module, outputs, i, path.stem, trainer.datamodule.file_values, self._folder(trainer))
            elif pl_module.kind == "instances":
                self._save_objects(pl_module, outputs, batch, i, path, trainer.datamodule, stem)
            else:
                self._save_image(pl_module, outputs, batch, i, path, trainer.datamodule, stem, steps)

    @staticmethod
    def _submit(task: Any, outputs: Any, i: int, stem: str, file_values: tuple[int, ...], folder: Path) -> None:
        if task.kind == "instances":
            save_server_objects(outputs["objects"][i], file_values, folder, stem)
        else:
            save_server_labels(outputs["prediction"][i].cpu().numpy(), file_values, folder / f"{stem}.png")

    @staticmethod
    def _steps_of(task: Any, outputs: Any, batch: Any, i: int) -> list[Any]:
        """Return the scores of every step at the size of the image's file."""
        image, size = as_numbers(batch["image"][i : i + 1]), outputs["prediction"].shape[-2:]
        scores = [F.interpolate(s.float(), size, mode="bilinear", align_corners=False) for s in task.evolution(image)]
        if not scores:
            raise InputError("predictions.steps must be false, because this network has no steps: it predicts once")
        return scores

    def _save_image(
        self, task: Any, outputs: Any, batch: Any, i: int, path: Path, data: Any, stem: Path, steps: list[Any]
    ) -> None:
        names, palette = data.class_names, data.palette
        labels = outputs["prediction"][i].cpu().numpy().astype(np.uint8)
        self._save_labels(labels, palette, beside(stem, ".png"))
        pixels = read_image(path, data.value_range)
        write_whole(Image.fromarray(overlay(pixels, labels, palette)).save, beside(stem, "_overlay.png"))
        for values, label in zip(outputs["phi"][i], task.predicted_phi, strict=True):
            ending = f"_phi_{names[label].replace('/', '_')}"
            self._save_phi(values.cpu().numpy().astype(np.float32), beside(stem, ending))
        if steps:
            self._save_steps(task, as_numbers(batch["image"][i : i + 1]), steps, pixels, data, stem)

    def _save_objects(self, task: Any, outputs: Any, batch: Any, i: int, path: Path, data: Any, stem: Path) -> None:
        names = data.class_names
        found, objects = outputs["detections"][i], outputs["objects"][i]
        sure = int((found.scores >= self.score).sum())  # the best come first
        objects = {key: values[:sure] for key, values in objects.items()}
        masks = objects["masks"].cpu().numpy()
        pixels = read_image(path, data.value_range)
        write_whole(Image.fromarray(object_map(masks, pixels.shape[:2])).save, beside(stem, ".png"))
        write_whole(Image.fromarray(draw_objects(pixels, masks)).save, beside(stem, "_overlay.png"))
        records = object_records(objects, found.masks.final[:sure], names, self.contours)
        write_json(beside(stem, ".json"), records)
        if self.steps:
            evolving = task.evolving_objects(as_numbers(batch["image"][i]), found, names, min(sure, OBJECTS))
            if evolving:
                moved = [thing._replace(box=tuple(objects["boxes"][k].tolist())) for k, thing in enumerate(evolving)]
                write_whole(evolution_panel(pixels, moved, stem.name).savefig, beside(stem, "_evolution.png"))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print where the files are."""
        if trainer.is_global_zero:
            count = len(trainer.predict_dataloaders.dataset)
            print(f"{count} prediction(s) in {self._folder(trainer)}")

    @staticmethod
    def _check_collisions(folder: Path, images: list[Path], names: list[str]) -> None:
        if folder.resolve() in {path.resolve().parent for path in images}:
            raise InputError(f"predictions.output {folder} holds the images themselves; choose another folder")
        stems = set(names)
        for stem in stems:
            derived = re.fullmatch(r"(.+)_(overlay|steps|step\d+|evolution|phi_.+)", stem)
            if derived and derived[1] in stems:
                raise InputError(
                    f"data.images: the {derived[2]} of {derived[1]} and the labels of {stem} would have the same file "
                    "name"
                )

    def _folder(self, trainer: pl.Trainer) -> Path:
        return Path(self.output).expanduser() if self.output else Path(trainer.default_root_dir) / "predictions"

    def _save_steps(self, task: Any, image: Any, scores: list[Any], pixels: Any, data: Any, stem: Path) -> None:
        labels = [s[0].argmax(0).cpu().numpy().astype(np.uint8) for s in scores]
        for number, one in enumerate(labels, start=task.first_step):
            self._save_labels(one, data.palette, beside(stem, f"_step{number}.png"))
        named = [data.class_names.index(name) for name in self.phi if name != "all"]
        shown = named[0] if named else _most_changed(labels)
        phi = [task.phi(s)[0, shown].cpu().numpy() for s in scores]
        names, palette = data.class_names, data.palette
        figure = steps_panel(pixels, None, labels, phi, shown, names, palette, stem.name, task.first_step)
        write_whole(figure.savefig, beside(stem, "_steps.png"))
        evolving = task.evolving_objects(image[0], names, OBJECTS)
        if evolving:
            small = image[0].permute(1, 2, 0).float().cpu().numpy()
            write_whole(evolution_panel(small, evolving, stem.name).savefig, beside(stem, "_evolution.png"))

    @staticmethod
    def _save_labels(labels: Any, palette: Any, path: Path) -> None:
        picture = Image.fromarray(labels)
        picture.putpalette([channel for color in palette for channel in color])  # grey values become indices
        write_whole(picture.save, path)

    @staticmethod
    def _save_phi(values: Any, stem: Path) -> None:
        write_whole(lambda part: np.save(part, values), beside(stem, ".npy"))
        reach = float(np.abs(values).max()) or 1.0
        colors = colormaps["RdBu_r"](values / (2 * reach) + 0.5)[..., :3]
        write_whole(Image.fromarray((colors * 255).round().astype(np.uint8)).save, beside(stem, ".png"))


def beside(stem: Path, ending: str) -> Path:
    """Return the path of an image's file: the name, which may contain dots, and an ending."""
    return stem.with_name(stem.name + ending)


def _most_changed(labels: list[Any]) -> int:
    """Return the class that gains and loses most pixels from the first to the last step, else the most common one."""
    first, last = labels[0], labels[-1]
    moved = np.bincount(np.concatenate([first[first != last], last[first != last]]), minlength=1)
    return int(moved.argmax()) if moved.any() else int(np.bincount(last.ravel()).argmax())
