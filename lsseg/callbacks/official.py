"""Computes the scores of a data set's own evaluation, in addition to this project's scores."""

import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lsseg.callbacks.instances import object_records, save_server_labels, save_server_objects
from lsseg.data import LVIS, Cityscapes, CityscapesInstances, DataModule
from lsseg.errors import InputError
from lsseg.files import write_json
from lsseg.metrics.cityscapes import cityscapes_object_scores, cityscapes_pixel_scores, known_only, require_scripts
from lsseg.metrics.coco import lvis_scores


class Official(ABC):
    """Defines the evaluation of one data set.

    Args:
        data: The data module.
        folder: Folder in which all processes save one or several files for each test image.
    """

    def __init__(self, data: Any, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.source = data.source(data.test_split)
        self.check()

    def check(self) -> None:  # noqa: B027, most need nothing
        """Raise an ``InputError`` if something that the evaluation needs is missing."""

    @abstractmethod
    def save(self, outputs: Any, i: int, index: int) -> None:
        """Save the prediction for image ``i`` of a batch, whose place in the split is ``index``."""

    @abstractmethod
    def scores(self, images: int) -> dict[str, float]:
        """Score the first ``images`` images of the split, whose predictions are all saved."""


class CityscapesPixels(Official):
    """Computes Cityscapes' IoU and iIoU of classes and categories."""

    def check(self) -> None:
        """Check that the scripts and both truth files of every image exist."""
        require_scripts()
        for _, truth in self.source.pairs:
            instances = truth.with_name(truth.name.replace("_labelIds", "_instanceIds"))
            if not truth.name.endswith("_labelIds.png") or not instances.is_file():
                raise InputError(
                    f"{truth}: Cityscapes' own scores need *_labelIds.png and, beside it, *_instanceIds.png"
                )

    def save(self, outputs: Any, i: int, index: int) -> None:
        """Save the labels as official numbers."""
        labels = outputs["prediction"][i].cpu().numpy()
        save_server_labels(labels, self.data.file_values, self.folder / f"{self.source.name(index)}.png")

    def scores(self, images: int) -> dict[str, float]:
        """Compute the scores by the official scripts."""
        pairs = self.source.pairs[:images]
        return cityscapes_pixel_scores([(self.folder / f"{image.stem}.png", truth) for image, truth in pairs])


class CityscapesObjects(Official):
    """Computes Cityscapes' AP and AP50 of objects."""

    def check(self) -> None:
        """Check that the scripts are installed."""
        require_scripts()

    def save(self, outputs: Any, i: int, index: int) -> None:
        """Save the text file and the masks of an image."""
        save_server_objects(outputs["objects"][i], self.data.file_values, self.folder, self.source.name(index))

    def scores(self, images: int) -> dict[str, float]:
        """Compute the scores by the official scripts."""
        pairs = self.source.pairs[:images]
        return cityscapes_object_scores(
            [(self.folder / f"{image.stem}.txt", truth) for image, truth in pairs], self.folder
        )


class LvisObjects(Official):
    """Computes LVIS's AP, which is called AP* if the categories are COCO's."""

    def save(self, outputs: Any, i: int, index: int) -> None:
        """Save the objects as in COCO's result files."""
        number = {label: category for category, label in self.data.labels(self.data.test_split).items()}
        records = []
        for record in object_records(outputs["objects"][i], None, self.data.class_names, contours=False):
            if record["category_id"] in number:  # the file may lack some of COCO's categories
                image = self.source.images[index]["id"]
                records.append({**record, "image_id": image, "category_id": number[record["category_id"]]})
        write_json(self.folder / f"{index}.json", records)

    def scores(self, images: int) -> dict[str, float]:
        """Compute the scores by faster-coco-eval."""
        file, known = self.data.annotations(self.data.test_split), self.data.labels(self.data.test_split)
        shown = self.source.images[:images]
        truth = {
            "images": shown,
            "annotations": [thing for image in shown for thing in file.annotations[image["id"]]],
            "categories": [category for category in file.categories if category["id"] in known],
        }
        found = [json.loads((self.folder / f"{index}.json").read_text()) for index in range(images)]
        return lvis_scores(truth, [record for records in found for record in records])


OFFICIAL: dict[type[DataModule[Any]], type[Official]] = {
    Cityscapes: CityscapesPixels,
    CityscapesInstances: CityscapesObjects,
    LVIS: LvisObjects,
}


class OfficialScores(pl.Callback):
    """Adds official scores, such as ``official_miou``, to the scores that ``test`` writes into ``test.json``.

    Cityscapes has IoU and iIoU of classes and categories, or AP of instances, by its scripts (extra ``cityscapes``).
    LVIS has its AP, which is AP* for COCO's categories. A configuration needs
    ``trainer: {callbacks: [OfficialScores]}``.
    """

    def __init__(self) -> None:
        self._official: Official | None = None
        self._images = 0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Choose the evaluation of the data set, and check before any training that it is possible."""
        if stage not in ("fit", "test"):  # predictions need no truth
            return
        data = trainer.datamodule
        kind = next((official for known, official in OFFICIAL.items() if isinstance(data, known)), None)
        if kind is None:
            names = ", ".join(known.__name__ for known in OFFICIAL)
            raise InputError(f"OfficialScores: data {type(data).__name__} has no official scores; use {names}")
        if getattr(data, "resize", None) is not None:
            raise InputError(
                "OfficialScores: data.resize must be null, because official scores need images of the original size"
            )
        self._official = kind(data, Path(trainer.default_root_dir) / "official")

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make an empty folder for the predictions."""
        assert self._official is not None
        if trainer.is_global_zero:
            shutil.rmtree(self._official.folder, ignore_errors=True)
            self._official.folder.mkdir(parents=True)
        trainer.strategy.barrier()
        self._images = 0

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Save the predictions of a batch."""
        assert self._official is not None
        for i, index in enumerate(batch["index"].tolist()):
            if index >= 0:
                self._official.save(outputs, i, index)
                self._images = max(self._images, index + 1)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Score all predictions on one process, and send the scores or the error to all processes."""
        assert self._official is not None
        most = torch.tensor(self._images, device=pl_module.device)
        images = int(trainer.strategy.reduce(most, reduce_op="max"))
        trainer.strategy.barrier()
        scores: dict[str, float] = {}
        problem = ""
        if trainer.is_global_zero:
            try:
                scores = known_only(self._official.scores(images))
            except InputError as error:
                problem = str(error)
            self._clear(trainer)
        scores, problem = trainer.strategy.broadcast((scores, problem))
        if problem:
            raise InputError(problem)
        pl_module.log_dict({f"test/official_{name}": value for name, value in scores.items()})

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Remove the files of a test that was interrupted."""
        if trainer.is_global_zero:
            self._clear(trainer)

    def _clear(self, trainer: pl.Trainer) -> None:
        if self._official is not None and self._official.folder.is_dir():
            shutil.rmtree(self._official.folder, ignore_errors=True)
            if trainer.fast_dev_run and not any(self._official.folder.parent.iterdir()):
                self._official.folder.parent.rmdir()
