"""Writes the two logs of a run: JSON lines, which are only appended to, and Weights & Biases without prompts."""

import json
import os
import shlex
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pandas as pd
import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from lsseg.errors import InputError
from lsseg.files import read_jsonl, write_text


class JsonlLogger(Logger):
    """Writes ``metrics.jsonl`` into the run folder and, when the run has succeeded, the same rows as ``metrics.csv``.

    A killed run loses at most the line that it was writing. A resumed run appends rows. Of several rows with the same
    step and keys, the last one counts.

    Args:
        save_dir: The run folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.jsonl"
        self._started = False
        self._file = (0, 0)

    @property
    def name(self) -> str:
        """Return an empty name, because the run folder names the log."""
        return ""

    @property
    def version(self) -> str:
        """Return an empty version, because a run has only one log."""
        return ""

    @property
    def save_dir(self) -> str:
        """Return the run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because the resolved configuration is saved as YAML beside the log."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        if not self._started:
            self._start()
        row = {"step": step or 0, **{name: float(value) for name, value in metrics.items()}}
        try:
            with self.path.open("r+") as file:  # mode "a" would create a missing file
                if self._identity(file.fileno()) != self._file:
                    raise FileNotFoundError
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(row) + "\n")
        except FileNotFoundError as error:  # a new file would look like a whole run's log
            raise InputError(f"{self.path} is gone: it was deleted or moved during the run") from error

    def _start(self) -> None:
        """Create the file, or end a line that a kill cut short, so that the next row starts on a new line."""
        self._started = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.write(b"\n")
            self._file = self._identity(file.fileno())

    @staticmethod
    def _identity(descriptor: int) -> tuple[int, int]:
        """Return the device and inode numbers, which identify a file under any name."""
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the CSV file of a successful run, with a row per step and a column per metric."""
        rows = read_jsonl(self.path)
        if rows and status == "success":
            table = pd.DataFrame(rows).groupby("step", sort=True).last()
            write_text(self.path.with_suffix(".csv"), table.to_csv())


class WandbRun(WandbLogger):
    """Logs to W&B, offline unless the user is logged in.

    Args:
        save_dir: The folder in which the ``wandb`` folder is made.
        project: W&B project.
        name: Name of the run; null takes the name of the run's folder.
        id: Id of the run; a run that is started again with the same id continues. Null lets W&B choose an id.
        group: Group of the run; runs of one suite share it.
        job_type: Job type in W&B's tables.
        tags: Tags in W&B's tables.
        mode: ``auto`` takes ``WANDB_MODE`` if it is set, else ``online`` if the user is logged in, else ``offline``.

    Raises:
        InputError: If the mode is ``online`` and the user is not logged in.
    """

    def __init__(
        self,
        save_dir: str = ".",
        project: str = "lsseg",
        name: str | None = None,
        id: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    ) -> None:
        chosen = _mode(mode)
        if chosen == "online" and not logged_in():
            raise InputError(
                "wandb.mode online needs a login: run `wandb login` or set WANDB_API_KEY, or give --wandb.mode offline"
            )
        # Offline rows reach the disk within 2 s instead of 15, so that a killed run keeps them. Without a network an
        # online run gives up after 20 s instead of 100.
        settings = wandb.Settings(init_timeout=20, console="off", x_transaction_log_flush_interval=2)
        super().__init__(
            name=name or Path(save_dir).resolve().name,
            save_dir=save_dir,
            id=id,
            project=project,
            group=group,
            job_type=job_type,
            tags=tags,
            mode=chosen,
            resume="allow",
            settings=settings,
        )
        self._wandb_init.pop("anonymous", None)  # Lightning sets it, but wandb has deprecated it
        Path(save_dir).mkdir(parents=True, exist_ok=True)

    def where(self) -> str:
        """Return a sentence that says where the run's log is, or an empty text if W&B is disabled."""
        settings = self.experiment.settings
        if settings.mode == "disabled":
            return ""
        if settings.mode == "offline":
            return f"its W&B log is in {settings.sync_dir}; `wandb sync {shlex.quote(settings.sync_dir)}` sends it"
        return f"its W&B log is at {self.experiment.url}"


def _mode(mode: str) -> str:
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Return whether W&B has a key in the environment or the netrc file, or an identity token in a file."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    own = os.environ.get("WANDB_BASE_URL")
    # `wandb login --host` stores another host in wandb's own settings, which are not read here.
    host = urlsplit(own).hostname if own else "wandb"
    given = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    return bool(given) or (netrc.is_file() and str(host) in netrc.read_text())
