"""The log that is always there: one JSON line per row, only ever appended to."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
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
