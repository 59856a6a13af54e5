"""What is refused of a configuration before anything is made of it."""

from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

from lsseg.arguments import nearest
from lsseg.callbacks import BestCheckpoint, PeriodicCheckpoint
from lsseg.errors import InputError
from lsseg.metrics.scores import of_kind


def check_files(argv: list[str]) -> None:
    """Name the configuration file that is no YAML, or misspells a class's keys; the parser's own message does not.

    Args:
        argv: The arguments of the command line.

    Raises:
        InputError: Naming the file.
    """
    for name, value in zip(argv, [*argv[1:], ""], strict=True):
        path = Path(value if name in ("--config", "-c") else name.partition("--config=")[2])
        if path.is_file():
            try:
                content = yaml.safe_load(path.read_text())
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
            check_class_keys(content, path)


def check_class_keys(content: Any, path: Path, key: str = "") -> None:
    """Refuse what a configuration file has beside a class and its arguments.

    Args:
        content: What the file, or a part of it, holds.
        path: The file.
        key: Key of the part.

    Raises:
        InputError: Naming the key.
    """
    if isinstance(content, list):
        for value in content:
            check_class_keys(value, path, key)
    elif isinstance(content, dict):
        right = ("class_path", "init_args", "dict_kwargs")
        for name, value in content.items():
            if not content.keys().isdisjoint(right[:2]) and name not in right:
                where = f"{key}.{name}".lstrip(".")
                raise InputError(f"{path}: {where} is no key of a class{nearest(str(name), right)}")
            check_class_keys(value, path, f"{key}.{name}".lstrip("."))


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
