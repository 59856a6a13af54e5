"""Loads a finished run in Python: its task with the trained weights, and its data."""

from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from lsseg.data import DataModule
from lsseg.data.loading import Images
from lsseg.errors import InputError
from lsseg.files import read_yaml
from lsseg.parser import Parser, drop_weights, own_errors
from lsseg.tasks import Task
from lsseg.tasks.start import read_checkpoint, refuse_other_classes


class LoadedRun(NamedTuple):
    """Holds the task and the data of a run.

    Attributes:
        task: The task with its weights, in evaluation mode.
        data: The data set of the run's configuration.
    """

    task: Task
    data: DataModule[Any]

    def predict(self, image: str | Path) -> dict[str, Tensor]:
        """Segment one image file.

        Args:
            image: Path of the image.

        Returns:
            For label maps ``labels`` (H×W) and ``phi`` (C×H×W, positive inside). For instances ``masks`` (n×H×W bool),
            ``boxes`` (n×4: left, top, right, bottom), ``scores`` and ``labels``, best first. H×W is the file's size.

        Raises:
            InputError: If it is not a path, or the path is not a file.
        """
        if not isinstance(image, str | PathLike):
            raise InputError(f"expected the path of an image file, not {type(image).__name__}: save the image first")
        if not Path(image).is_file():
            raise InputError(f"{image} is not a file: expected an image file")
        sample = Images(Path(image), self.data.predict_transform(), self.data.value_range)[0]
        batch = self.task.transfer_batch_to_device(default_collate([sample]), self.task.device, 0)
        with torch.inference_mode():
            found = self.task.predict_step(batch, 0)
        if self.task.kind == "instances":
            objects: dict[str, Tensor] = found["objects"][0]
            return objects
        return {"labels": found["prediction"][0], "phi": found["phi"][0]}


def load_run(folder: str | Path, checkpoint: str = "last.ckpt") -> LoadedRun:
    """Load a run from its folder, for use in notebooks and figures.

    Args:
        folder: The run folder, which holds ``config.yaml``.
        checkpoint: Name of the checkpoint in the folder.

    Raises:
        InputError: If a file is missing or broken, or if the data cannot be found or has other classes.
    """
    folder = Path(folder)
    wanted = run_config(folder, checkpoint)
    content = read_checkpoint(folder / checkpoint)
    parser = Parser()
    parser.add_lightning_class_args(Task, "model", subclass_mode=True)
    parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
    parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
    try:
        parsed = parser.parse_object(wanted)
        drop_weights(parsed.model)
        with own_errors(wanted):
            made = parser.instantiate_classes(parsed)
        refuse_other_classes(content, made.data.class_names)
        made.model.on_load_checkpoint(content)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    made.model.load_state_dict(content["state_dict"])
    return LoadedRun(made.model.eval(), made.data)


def run_config(folder: Path, checkpoint: str = "last.ckpt") -> dict[str, Any]:
    """Return the keys ``model`` and ``data`` of a run's configuration, as they were saved.

    Args:
        folder: The run folder.
        checkpoint: Name of the checkpoint that must be in the folder.

    Raises:
        InputError: If a file is missing, or if ``config.yaml`` is not the configuration of a run.
    """
    for name in ("config.yaml", checkpoint):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: expected a finished run")
    try:
        config = read_yaml(folder / "config.yaml")
        return {key: config[key] for key in ("model", "data")}
    except (LookupError, TypeError) as error:
        raise InputError(
            f"{folder / 'config.yaml'} is not the configuration of a run: it must have the keys model and data"
        ) from error
