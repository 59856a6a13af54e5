"""Saves a run's configuration, and refuses values that harm a run or that cannot change when a run is resumed."""

import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.plugins.environments import SLURMEnvironment

from lsseg.arguments import nearest
from lsseg.callbacks import BestCheckpoint, PeriodicCheckpoint, WandbRun
from lsseg.errors import InputError
from lsseg.files import read_yaml, write_json, write_text
from lsseg.metrics.scores import of_kind
from lsseg.parser import ConfigDumper
from lsseg.tasks.start import refuse_changes

# The weights and the states of optimiser and schedule belong to the values of these keys.
FIXED = (
    *("optimizer", "lr", "momentum", "weight_decay", "poly_power", "lr_milestones", "lr_warmup", "new_layers"),
    *("scale_lr", "network"),
)
WEIGHTS = ("criterion", "class_weights")  # fixed, too, if the checkpoint holds the weights of the classes
FREE = ("encoder_weights", "start", "checkpoint")  # may change: the initial weights, and whether memory is saved


# A saved configuration keeps null values, and leaves out keys that are computed from others.
AS_SAVED = {"skip_none": False, "skip_link_targets": True}


class SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration and the environment in the run folder.

    Args:
        args: Lightning's own arguments.
        resolved: The configuration in plain values, as it was before a checkpoint replaced the encoder's weights.
        options: Lightning's own options.
    """

    def __init__(self, *args: Any, resolved: dict[str, Any], **options: Any) -> None:
        super().__init__(*args, **options)
        self._resolved = resolved

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` and ``environment.json``; any stage but ``fit`` keeps the files of an existing run."""
        folder = Path(trainer.default_root_dir)
        resumed = stage == "fit" and bool(self.config.get("ckpt_path"))
        if (folder / "config.yaml").exists() and stage != "fit":
            return
        # The run folder and the resumed checkpoint do not describe the experiment.
        trainer_keys = self._resolved["trainer"] | {"default_root_dir": None}
        config = self._resolved | {"trainer": trainer_keys, "ckpt_path": None}
        again = f"-{time.strftime('%Y%m%d-%H%M%S')}" if resumed and (folder / "config.yaml").exists() else ""
        write_text(folder / f"config{again}.yaml", yaml.dump(config, Dumper=ConfigDumper, sort_keys=False))
        write_json(folder / f"environment{again}.json", describe_environment())
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                # The configuration has its own key, because a sweep locks the keys that its parameters name.
                logger.experiment.config.update({"cfg": config}, allow_val_change=True)


class KeepModel(pl.Callback):
    """Keeps the model's configuration in the run's checkpoints, and compares it with that of a resumed checkpoint.

    Args:
        model: The resolved configuration below ``model``.
    """

    def __init__(self, model: dict[str, Any]) -> None:
        self.model = model

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the model's configuration to the checkpoint."""
        checkpoint["model"] = self.model

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare the configurations, also if Lightning itself chose the checkpoint, as it does for a requeued job."""
        if trainer.state.fn == "fit" and "model" in checkpoint:
            refuse_other_keys(checkpoint, checkpoint["model"], self.model)


def refuse_other_model(path: Path, checkpoint: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse to resume with changed keys of ``model`` that the state in a checkpoint would silently overrule.

    Args:
        path: Path of the checkpoint. If it is of an older version without a configuration, ``config.yaml`` beside it is
            read.
        checkpoint: Content of the checkpoint.
        model: The resolved configuration below ``model`` of the resumed run.

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
    """Compare two configurations below ``model`` and refuse differences that a resumed run cannot have.

    Args:
        checkpoint: Content of the checkpoint, which shows whether it holds the weights of the classes.
        trained: The configuration with which the checkpoint was trained.
        model: The configuration of the resumed run.

    Raises:
        InputError: If a key differs that cannot change.
    """
    before, now = (config.get("init_args") or {} for config in (trained, model))
    weighted = any(key.startswith("criterion.") for key in checkpoint["state_dict"])
    fixed = (*FIXED, *(WEIGHTS if weighted else ()))
    found: list[tuple[str, Any, Any]] = []
    for key in fixed:
        if key in before and key in now:  # other versions of lsseg have other keys
            found.extend(differences(f"model.{key}", before[key], now[key]))
    if any(key == "model.optimizer" for key, *_ in found) or now.get("optimizer") == "adamw":
        found = [change for change in found if change[0] != "model.momentum"]  # AdamW has no momentum
    refuse_changes(found)


def differences(key: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys that differ between two configurations, with both values; different classes yield only their key.

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
    """Return a class's name without its module, which may differ between versions; return another value as it is."""
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
    """Return the command, time, platform and package versions and, in a git checkout, the commit and changed files."""
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
    """Refuse forked or spawned processes, because they share the scores' memory and count every pixel again.

    Args:
        strategy: The name of a strategy, or a class and its arguments, in plain values.

    Raises:
        InputError: If the strategy starts its processes in this way.
    """
    options = strategy.get("init_args") or {} if isinstance(strategy, dict) else {}
    method = options.get("start_method") or "popen"
    name = strategy if isinstance(strategy, str) else f"with start_method {method}"
    if method != "popen" or any(word in name for word in ("spawn", "fork", "notebook")):
        raise InputError(
            f"trainer.strategy {name} must not be used, because the scores would count every pixel again: use ddp"
        )


def refuse_own_names(callbacks: list[Any], folder: Path) -> None:
    """Refuse a configured ``ModelCheckpoint`` that would write the files that a run itself writes.

    Args:
        callbacks: All callbacks that write checkpoints.
        folder: The run folder.

    Raises:
        InputError: If there is such a callback.
    """
    for callback in callbacks:
        names = {str(callback.filename), *(["last"] if callback.save_last else [])} & {"best", "last"}
        own = isinstance(callback, BestCheckpoint | PeriodicCheckpoint)
        if names and not own and callback.dirpath and Path(callback.dirpath).resolve() == folder.resolve():
            raise InputError(
                f"trainer.callbacks: a ModelCheckpoint writes {names.pop()}.ckpt, which the run itself writes: "
                "set another dirpath or filename"
            )


def refuse_unknown_monitors(callbacks: list[Any], task: Any) -> None:
    """Refuse a callback that monitors a validation score which no validation will have.

    Lightning reports such a callback only after the first validation. Nothing is refused if the task or a callback is
    not from this project or Lightning, because a user's own class may log further names.

    Args:
        callbacks: All callbacks of the run.
        task: The task that is trained.

    Raises:
        InputError: If there is such a callback; the message names the callback, its monitor, and the nearest score.
    """
    if not all(type(one).__module__.startswith(("lsseg.", "pytorch_lightning.")) for one in (task, *callbacks)):
        return
    known = [f"val/{score.name}" for score in of_kind(task.kind) if score.trained]
    known += ["val/loss"] if task.kind == "semantic" else []
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(callback, ModelCheckpoint) and monitor in ("epoch", "step"):  # it knows these two itself
            continue
        if monitor is not None and monitor not in known and not monitor.startswith("train/"):
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__} has monitor {monitor!r}, which is not a "
                f"validation score{nearest(monitor, known)}; the scores are {', '.join(known)}"
            )


def check_intervals(trainer: Any) -> None:
    """Refuse intervals of 0, by which Lightning divides, and warn of one that is longer than the training."""
    for key in ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches"):
        if trainer[key] == 0 and trainer[key] is not False:
            hint = " (trainer.limit_val_batches 0 turns validation off)" if "val_check" in key else ""
            raise InputError(f"trainer.{key} must be above 0{hint}")
    interval, batches = trainer["val_check_interval"], trainer["max_steps"] * (trainer["accumulate_grad_batches"] or 1)
    by_batches = trainer["check_val_every_n_epoch"] is None and not trainer["fast_dev_run"]  # else Lightning refuses it
    if by_batches and isinstance(interval, int) and 0 < batches < interval:
        warnings.warn(
            f"trainer.val_check_interval {interval} is longer than the training of {batches} batches: without a "
            "validation there is no best.ckpt",
            stacklevel=2,
        )


def requeued(folder: Path) -> bool:
    """Return whether Lightning itself resumes from the checkpoint that it saved when the SLURM job's time was up."""
    saved = [path.stat().st_mtime for path in folder.glob("hpc_ckpt_*.ckpt")]
    last = folder / "last.ckpt"
    return SLURMEnvironment.detect() and bool(saved) and (not last.exists() or max(saved) >= last.stat().st_mtime)


def missing(folders: Iterable[Path]) -> list[Path]:
    """Return those folders that do not exist."""
    return [folder for folder in folders if not folder.exists()]


def made(folder: Path) -> bool:
    """Make a folder; return False if it exists already."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
