"""The log that is always there: one JSON line per row, only ever appended to."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

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
        self._checked = False

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._close_torn_line()
        row = {"step": step or 0, **{name: float(value) for name, value in metrics.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _close_torn_line(self) -> None:
        """End the line that a kill cut short, so that the next row is not lost with it."""
        if self._checked or not self.path.is_file():
            return
        self._checked = True
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self.path.open("a") as file:
                file.write("\n")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the CSV view of a run that ended well: a row per step, a column per metric."""
        rows = read_jsonl(self.path)
        if rows and status == "success":
            table = pd.DataFrame(rows).groupby("step", sort=True).last()
            write_text(self.path.with_suffix(".csv"), table.to_csv())
