"""A run's configuration: what is refused of it, how it is saved, and what of it may change when the run goes on."""

import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback

from lsseg.arguments import nearest
from lsseg.callbacks import BestCheckpoint, PeriodicCheckpoint, WandbRun
from lsseg.errors import InputError
from lsseg.files import read_yaml, write_json, write_text
from lsseg.metrics.scores import of_kind
from lsseg.parser import ConfigDumper
from lsseg.tasks.start import refuse_changes

# The optimiser's and the schedule's state, and the weights, are those of these keys.
FIXED = (
    *("optimizer", "lr", "momentum", "weight_decay", "poly_power", "lr_milestones", "lr_warmup", "new_layers"),
    *("scale_lr", "network"),
)
WEIGHTS = ("criterion", "class_weights")  # where the checkpoint holds the weights of the classes
FREE = ("encoder_weights", "start", "checkpoint")  # what a network started from, and how it saves memory


AS_SAVED = {"skip_none": False, "skip_link_targets": True}  # a configuration with all that it was made of


class SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration and the environment in the run's own folder.

    Args:
        args: What Lightning gives.
        resolved: The configuration in plain values, before a checkpoint replaced the encoder's weights in it.
        options: What Lightning gives.
    """

    def __init__(self, *args: Any, resolved: dict[str, Any], **options: Any) -> None:
        super().__init__(*args, **options)
        self._resolved = resolved

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` and ``environment.json``; a test inside a run's folder leaves the run's own alone."""
        folder = Path(trainer.default_root_dir)
        resumed = stage == "fit" and bool(self.config.get("ckpt_path"))
        if (folder / "config.yaml").exists() and stage != "fit":
            return
        # Where a run was written and from what it was resumed is no part of what it is.
        trainer_keys = self._resolved["trainer"] | {"default_root_dir": None}
        config = self._resolved | {"trainer": trainer_keys, "ckpt_path": None}
        again = f"-{time.strftime('%Y%m%d-%H%M%S')}" if resumed and (folder / "config.yaml").exists() else ""
        write_text(folder / f"config{again}.yaml", yaml.dump(config, Dumper=ConfigDumper, sort_keys=False))
        write_json(folder / f"environment{again}.json", describe_environment())
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                # Under a key of its own: a sweep locks keys with the names of its parameters.
                logger.experiment.config.update({"cfg": config}, allow_val_change=True)


class KeepModel(pl.Callback):
    """Keeps the model's configuration in the run's checkpoints, and compares them when a run goes on.

    Args:
        model: The resolved configuration below ``model``.
    """

    def __init__(self, model: dict[str, Any]) -> None:
        self.model = model

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the configuration."""
        checkpoint["model"] = self.model

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare, whatever chose the checkpoint (Lightning finds that of a requeued job by itself)."""
        if trainer.state.fn == "fit" and "model" in checkpoint:
            refuse_other_keys(checkpoint, checkpoint["model"], self.model)


def refuse_other_model(path: Path, checkpoint: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse to go on with keys of ``model`` that the state in a checkpoint would silently overrule.

    Args:
        path: The checkpoint's file. One of an older version holds no configuration: the file beside it does.
        checkpoint: Content of the checkpoint.
        model: The resolved configuration below ``model`` of the run that goes on.

    Raises:
        InputError: If there are such keys.
    """
    beside = path.parent / "config.yaml"
    trained = checkpoint.get("model")
    if trained is None and beside.is_file():
        content = read_yaml(beside)
        trained = content.get("model") if isinstance(content, dict) else None
    if isinstance(trained, dict):
        refuse_other_keys(checkpoint, trained, model)


def refuse_other_keys(checkpoint: dict[str, Any], trained: dict[str, Any], model: dict[str, Any]) -> None:
    """Compare two configurations below ``model``.

    Args:
        checkpoint: What it holds says whether the weights of the classes are among it.
        trained: What the checkpoint was trained with.
        model: What is given now.

    Raises:
        InputError: If a key differs that cannot change.
    """
    before, now = (config.get("init_args") or {} for config in (trained, model))
    weighted = any(key.startswith("criterion.") for key in checkpoint["state_dict"])
    fixed = (*FIXED, *(WEIGHTS if weighted else ()))
    found: list[tuple[str, Any, Any]] = []
    for key in fixed:
        if key in before and key in now:  # versions differ in their keys
            found.extend(differences(f"model.{key}", before[key], now[key]))
    if any(key == "model.optimizer" for key, *_ in found) or now.get("optimizer") == "adamw":
        found = [change for change in found if change[0] != "model.momentum"]  # AdamW has none
    refuse_changes(found)


def differences(key: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The keys of two configurations that differ, with both values; of two classes only the classes.

    >>> net = {"class_path": "DMLS", "init_args": {"steps": 2, "encoder_weights": "imagenet"}}
    >>> list(differences("model.network", net, {"class_path": "DMLS", "init_args": {"steps": 3}}))
    [('model.network.steps', 2, 3)]
    >>> list(differences("model.network", net, {"class_path": "SmpNet"}))
    [('model.network', 'DMLS', 'SmpNet')]
    """
    if not (_is_class(before) and _is_class(now)):
        if before != now:
            yield key, _name(before), _name(now)
        return
    if _name(before) != _name(now):
        yield key, _name(before), _name(now)
        return
    one, other = (config.get("init_args") or {} for config in (before, now))
    for name in one:
        if name in other and name not in FREE:
            yield from differences(f"{key}.{name}", one[name], other[name])


def _is_class(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def _name(value: Any) -> Any:
    """A class by its name: where this project keeps its classes differs between versions."""
    return str(value["class_path"]).rpartition(".")[2] if _is_class(value) else value


PACKAGES = (
    "lsseg",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "segmentation-models-pytorch",
    "numpy",
)


def describe_environment() -> dict[str, Any]:
    """Command, time, machine, package versions and, in a git checkout, commit and whether files were changed."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed_files": _git("status", "--porcelain", "--untracked-files=no"),
    }


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def refuse_forks(strategy: Any) -> None:
    """Refuse processes that are copies of this one: they share the scores' memory and count every pixel again.

    Args:
        strategy: The name of a strategy, or a class and its arguments, in plain values.

    Raises:
        InputError: If it starts its processes so.
    """
    options = strategy.get("init_args") or {} if isinstance(strategy, dict) else {}
    method = options.get("start_method") or "popen"
    name = strategy if isinstance(strategy, str) else f"with start_method {method}"
    if method != "popen" or any(word in name for word in ("spawn", "fork", "notebook")):
        raise InputError(f"trainer.strategy {name} is not for this command, whose scores it would spoil: take ddp")


def refuse_own_names(callbacks: list[Any], folder: Path) -> None:
    """Refuse a checkpoint of the configuration's that would write the files that a run itself writes.

    Args:
        callbacks: All that write checkpoints.
        folder: The run's.

    Raises:
        InputError: If there is one.
    """
    for callback in callbacks:
        names = {str(callback.filename), *(["last"] if callback.save_last else [])} & {"best", "last"}
        own = isinstance(callback, BestCheckpoint | PeriodicCheckpoint)
        if names and not own and callback.dirpath and Path(callback.dirpath).resolve() == folder.resolve():
            raise InputError(
                f"trainer.callbacks: a ModelCheckpoint writes {names.pop()}.ckpt, as the run itself does: give it "
                "another dirpath or filename"
            )


def refuse_unknown_monitors(callbacks: list[Any], task: Any) -> None:
    """Refuse a callback that waits for a validation score which no validation will have.

    Lightning says so after the first validation only. Where a task or a callback of the user's own may log further
    names, it is left to say it.

    Args:
        callbacks: All of the run's.
        task: What is trained.

    Raises:
        InputError: Naming the callback, its key, and the nearest name that there is.
    """
    if not all(type(one).__module__.startswith(("lsseg.", "pytorch_lightning.")) for one in (task, *callbacks)):
        return
    known = [f"val/{score.name}" for score in of_kind(task.kind) if score.trained]
    known += ["val/loss"] if task.kind == "semantic" else []
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(callback, ModelCheckpoint) and monitor in ("epoch", "step"):  # which it knows by itself
            continue
        if monitor is not None and monitor not in known and not monitor.startswith("train/"):
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__} has monitor {monitor!r}, which is no score of a "
                f"validation{nearest(monitor, known)}; there are {', '.join(known)}"
            )
