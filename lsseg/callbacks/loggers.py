"""The two logs of a run: JSON lines, only ever appended to, and Weights & Biases, without prompts, hangs or junk."""

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
    """``metrics.jsonl`` in the run's folder, and ``metrics.csv``, a view of it, when the run ends.

    A killed run loses at most the line it was writing; a resumed run appends, and of rows with the same step and keys
    the last one counts.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.jsonl"
        self._started = False
        self._file = (0, 0)

    @property
    def name(self) -> str:
        """Empty: the run's folder is the name."""
        return ""

    @property
    def version(self) -> str:
        """Empty: a run has one log."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration is saved as YAML beside the log."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        if not self._started:
            self._start()
        row = {"step": step or 0, **{name: float(value) for name, value in metrics.items()}}
        try:
            with self.path.open("r+") as file:  # not "a", which would make a new one
                if self._identity(file.fileno()) != self._file:
                    raise FileNotFoundError
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(row) + "\n")
        except FileNotFoundError as error:  # what followed would look like a whole run, or be another run's
            raise InputError(f"{self.path} is gone: it was deleted or moved during the run") from error

    def _start(self) -> None:
        """Make the file; end the line that a kill cut short, so that the next row is not lost with it."""
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
        """Which file it is, whatever its name."""
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the CSV view of a run that ended well: a row per step, a column per metric."""
        rows = read_jsonl(self.path)
        if rows and status == "success":
            table = pd.DataFrame(rows).groupby("step", sort=True).last()
            write_text(self.path.with_suffix(".csv"), table.to_csv())


class WandbRun(WandbLogger):
    """A W&B run: offline unless the user is logged in.

    Args:
        save_dir: The folder into which the ``wandb`` folder goes.
        project: W&B project.
        name: Name of the run; null takes the name of the run's folder.
        id: Id of the run; a run started again under the same id goes on. Null lets W&B choose.
        group: Runs of one suite share it.
        job_type: Shown in W&B's tables.
        tags: Shown in W&B's tables.
        mode: ``auto`` is what ``WANDB_MODE`` says, else online where a key is stored, else offline.

    Raises:
        InputError: If it is to be online, and nobody is logged in.
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
        # Offline rows reach the disk within 2 s instead of 15, so that a killed run keeps them; without a network an
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
        self._wandb_init.pop("anonymous", None)  # set by Lightning, deprecated by wandb
        Path(save_dir).mkdir(parents=True, exist_ok=True)

    def where(self) -> str:
        """Where the run's log is, in a line for people; empty where there is none."""
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
    """Whether there is a key for W&B, in the environment or in the netrc file, or a token in a file."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    own = os.environ.get("WANDB_BASE_URL")
    host = urlsplit(own).hostname if own else "wandb"  # `wandb login --host` names it in settings of its own
    given = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    return bool(given) or (netrc.is_file() and str(host) in netrc.read_text())
