"""Reports an unexpected error of a library: one line goes to the screen, and the traceback goes to a file."""

import logging
import os
import re
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsseg.errors import ArgumentError, InputError

CHATTERS = (
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
)
# The keys that name no class in a configuration, by the class that each belongs to.
OWN_KEYS = {"WandbRun": "wandb", "Panels": "panels", "SavePredictions": "predictions", "DenseCRF": "model.crf"}
PLAIN = (bool, int, float, str)
LONGEST = 500  # characters of a message about a library's error


@dataclass
class Place:
    """Holds the run folder and the configuration of a command, which messages about errors need.

    Args:
        folder: The run folder; None until it is known.
        config: The resolved configuration in plain values; None until it is known.
    """

    folder: Path | None = None
    config: Any = None


def told(error: BaseException, place: Place) -> str:
    """Write the traceback of an exception to a file and describe the exception in one line.

    Args:
        error: The exception.
        place: The run folder and the configuration. The traceback goes to ``log.txt`` in the folder, or to a temporary
            file if the folder is None.

    Returns:
        The configuration key if one is known, the exception's class, its message, and the file with the traceback.
    """
    key = key_of(error, place.config)
    log = _keep("".join(traceback.format_exception(error)), place.folder)
    where = f"the traceback is in {log}" if log else "--debug shows the traceback"
    return f"{f'{key}: ' if key else ''}{described(error)} ({where})"


def located(error: ArgumentError, place: Place) -> InputError:
    """Put the configuration key of the argument's class in front of the error's message."""
    key, message = key_of(error, place.config), original(error)
    return InputError(f"{key}.{message}" if key else message)


def original(error: InputError) -> str:
    """Return the message without the traceback in which a worker process of a data loader wraps it."""
    return re.split(rf"{type(error).__name__}: ", str(error).strip())[-1]


def described(error: BaseException) -> str:
    r"""Return class and message in one line; for an error in a loader's process, those of the original error.

    >>> described(KeyError("a\n  b"))
    "KeyError: 'a\\n b'"
    >>> described(RuntimeError("Caught it.\nTraceback (most recent call last):\n  File x\nValueError: no"))
    'ValueError: no'
    """
    message = str(error).strip()
    if "Traceback (most recent call last)" in message:
        return _clipped(message.splitlines()[-1])
    return _clipped(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def key_of(error: BaseException, config: Any) -> str | None:
    """Return the configuration key of the class in which an exception was raised, or None if no class is found.

    A class whose import path is in the message comes first, then the innermost class in the traceback.

    Args:
        error: The exception.
        config: The resolved configuration.
    """
    classes = _classes(config, "")
    named = [key for path, key, _ in classes if path in str(error)]
    if named:
        return named[-1]
    of_classes: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path, key, arguments in classes:
        of_classes.setdefault(path.rpartition(".")[2], []).append((key, arguments))
    keys: dict[str, list[tuple[str, dict[str, Any]]]] = {name: [(key, {})] for name, key in OWN_KEYS.items()}
    keys |= of_classes
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made = frame.f_locals.get("self")
        known = getattr(made, "__dict__", {}) | frame.f_locals
        names = [kind.__name__ for kind in type(made).__mro__]
        found = next((_key_with(known, keys[name]) for name in names if name in keys), found)
    return found


def _key_with(values: dict[str, Any], candidates: list[tuple[str, dict[str, Any]]]) -> str:
    """Return the key whose arguments agree with the values of an object; the first one where several do, or none."""

    def differ(arguments: dict[str, Any]) -> bool:
        both = [(values[name], value) for name, value in arguments.items() if name in values]
        return any(own != given for own, given in both if isinstance(own, PLAIN) and isinstance(given, PLAIN))

    return min(candidates, key=lambda candidate: differ(candidate[1]))[0]


def _classes(config: Any, key: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the class paths below a configuration, with their keys and arguments; those in a list have its key."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    if isinstance(config, dict):
        if isinstance(config.get("class_path"), str):
            found.append((config["class_path"], key, config.get("init_args") or {}))
        for name, value in config.items():
            inner = key if name == "init_args" else f"{key}.{name}".lstrip(".")
            found.extend(_classes(value, inner))
    elif isinstance(config, list):
        for value in config:
            found.extend(_classes(value, key))
    return found


def _keep(text: str, folder: Path | None) -> Path | None:
    """Append the text to the folder's log or write a temporary file; return the path, or None if writing fails."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / "log.txt"
            with log.open("a") as file:  # another process may write to this file, too
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}")
            return log
        descriptor, name = tempfile.mkstemp(prefix="lsseg-", suffix=".log.txt", text=True)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        return Path(name)
    except OSError:  # the disk is full or read-only, which may itself be the error to report
        return None


def _clipped(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def raised_by_lightning(error: Exception) -> bool:
    """Return whether Lightning itself refused a value (a trainer option, the seed): then no traceback is needed."""
    return any(f"/{package}/" in place_of(error) for package in ("pytorch_lightning", "lightning_fabric"))


def place_of(error: Exception) -> str:
    """Return the path of the source file that raised the error."""
    return traceback.extract_tb(error.__traceback__)[-1].filename


def of_a_lost_process(error: RuntimeError) -> bool:
    """Return whether the communication with another process of a distributed run failed."""
    import torch  # not at the top, because the dispatch of a command must not import torch

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and bool(re.search("gloo|NCCL|[Cc]onnection (reset|closed)|[Pp]rocess group", str(error)))


def _worth_saying(record: logging.LogRecord) -> bool:
    return not any(
        chatter in record.getMessage() for chatter in ("litlogger", "litmodels", "`weights_only` was not set", "TPU")
    )


def silence_chatter() -> None:
    """Print warnings as one line, and hide messages of libraries that do not help a user of this command."""
    warnings.formatwarning = lambda message, *_: f"lsseg: warning: {message}\n"
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # this hint is wrong for generated data
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # normal for a resumed run
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")  # caused by Lightning, not by the user
    # A test has no checkpoint callbacks, because it saves no checkpoint.
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # logged values are already equal on all ranks
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # normal for frozen batch-norm
    # Jobs of submitit do not start their processes with srun, on purpose.
    warnings.filterwarnings("ignore", ".*srun. command is available on your system but is not used.*")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended.*")
    for name in CHATTERS:
        logging.getLogger(name).addFilter(_worth_saying)
