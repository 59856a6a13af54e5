"""A finished run in Python: its task with the trained weights, and its data."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lsseg.cli.lightning import Parser, drop_weights, own_errors
from lsseg.data import DataModule
from lsseg.errors import InputError
from lsseg.tasks import Task
from lsseg.tasks.start import read_checkpoint


class LoadedRun(NamedTuple):
    """What a run was made of.

    Attributes:
        task: With its weights, in evaluation mode.
        data: As the run's configuration says.
    """

    task: Task
    data: DataModule[Any]


def load_run(folder: str | Path, checkpoint: str = "last.ckpt") -> LoadedRun:
    """Load a run from its folder, as notebooks and figures want it.

    Args:
        folder: Of a run, with its ``config.yaml``.
        checkpoint: The file of weights in it.

    Raises:
        InputError: If a file is missing or broken, or the data cannot be found.
    """
    folder = Path(folder)
    for name in ("config.yaml", checkpoint):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is no finished run: it has no {name}")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        wanted = {key: config[key] for key in ("model", "data")}
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise InputError(f"{folder / 'config.yaml'} is no configuration of a run") from error
    content = read_checkpoint(folder / checkpoint)
    parser = Parser()
    parser.add_lightning_class_args(Task, "model", subclass_mode=True)
    parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
    parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
    parsed = parser.parse_object(wanted)
    drop_weights(parsed.model)
    with own_errors():
        made = parser.instantiate_classes(parsed)
    made.model.on_load_checkpoint(content)
    made.model.load_state_dict(content["state_dict"])
    return LoadedRun(made.model.eval(), made.data)
