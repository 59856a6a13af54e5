"""What a library raises that nobody expected: one line on the screen, and the traceback in a file."""

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
LONGEST = 500  # characters of a library's message


@dataclass
class Place:
    """Where a command is.

    Args:
        folder: Folder of the run, once it is known.
        config: The resolved configuration in plain values, once it is known.
    """

    folder: Path | None = None
    config: Any = None


def told(error: BaseException, place: Place) -> str:
    """Keep the traceback of an exception, and say in one line what it is.

    Args:
        error: Whatever was raised.
        place: Where the command is: ``log.txt`` of the run's folder takes the traceback, a temporary file where there
            is no folder.

    Returns:
        The key that led there where one is known, class, message, and the file.
    """
    key = key_of(error, place.config)
    log = _keep("".join(traceback.format_exception(error)), place.folder)
    where = f"the traceback is in {log}" if log else "--debug shows the traceback"
    return f"{f'{key}: ' if key else ''}{described(error)} ({where})"


def located(error: ArgumentError, place: Place) -> InputError:
    """An error that names an argument, with the key of its class in front."""
    key, message = key_of(error, place.config), original(error)
    return InputError(f"{key}.{message}" if key else message)


def original(error: InputError) -> str:
    """The message itself: a loader's worker process sends it wrapped in its traceback."""
    return re.split(r"(?:Input|Argument)Error: ", str(error).strip())[-1]


def described(error: BaseException) -> str:
    r"""Class and message in one line; of an exception of a loader's process, those of the original.

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
    """The key of the class, among those of a configuration, in which an exception was raised.

    Args:
        error: It is the innermost of the classes that its traceback passes, or one that its message names.
        config: The resolved configuration.
    """
    classes = _classes(config, "")
    named = [key for path, key, _ in classes if path in str(error)]
    if named:
        return named[-1]
    keys: dict[str, list[tuple[str, dict[str, Any]]]] = {name: [(key, {})] for name, key in OWN_KEYS.items()}
    for path, key, arguments in classes:
        keys.setdefault(path.rpartition(".")[2], []).append((key, arguments))
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
    """Append to the folder's log, or write a file of its own; None where nothing can be written."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / "log.txt"
            with log.open("a") as file:  # which another process may be writing, too
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}")
            return log
        descriptor, name = tempfile.mkstemp(prefix="lsseg-", suffix=".log.txt", text=True)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        return Path(name)
    except OSError:  # a full or read-only disk, perhaps the very one that failed
        return None


def _clipped(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def raised_by_lightning(error: Exception) -> bool:
    """Whether Lightning itself refused a value (a trainer option, the seed), so that no traceback is needed."""
    return any(f"/{package}/" in place_of(error) for package in ("pytorch_lightning", "lightning_fabric"))


def place_of(error: Exception) -> str:
    """The file that raised it."""
    return traceback.extract_tb(error.__traceback__)[-1].filename


def of_a_lost_process(error: RuntimeError) -> bool:
    """Whether a message to another process of a distributed run failed."""
    import torch  # not where a command is only dispatched

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and bool(re.search("gloo|NCCL|[Cc]onnection (reset|closed)|[Pp]rocess group", str(error)))


def _worth_saying(record: logging.LogRecord) -> bool:
    return not any(
        chatter in record.getMessage() for chatter in ("litlogger", "litmodels", "`weights_only` was not set", "TPU")
    )


def silence_chatter() -> None:
    """Leave out what libraries say that is no news to a user of this command."""
    warnings.formatwarning = lambda message, *_: f"lsseg: warning: {message}\n"
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # a hint, wrong where data is generated
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # resuming
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning's own use of torch
    warnings.filterwarnings(
        "ignore", ".*callbacks used to create the checkpoint need to be provided.*"
    )  # tests save none
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # what is logged is the same on all ranks already
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen batch-norm
    warnings.filterwarnings("ignore", ".*srun. command is available on your system but is not used.*")  # by submitit
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended.*")
    for name in CHATTERS:
        logging.getLogger(name).addFilter(_worth_saying)
