"""Progress that suits where it is read: bars on a terminal, lines in a log."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar

from lsseg.metrics.scores import SCORES


class PlainProgress(ProgressBar):
    """One line at every epoch's end, and every ``seconds`` in between.

    Args:
        seconds: Least time between two lines of an epoch.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._last = 0.0
        self._enabled = True

    def disable(self) -> None:
        """Print nothing (ranks above 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print where the epoch is, now and then."""
        if time.monotonic() - self._last >= self.seconds:
            self._say(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the validation scores."""
        if not trainer.sanity_checking:
            self._say(trainer, pl_module, tuple(f"val/{score.name}" for score in SCORES if score.curve))

    def _say(self, trainer: pl.Trainer, module: pl.LightningModule, scores: tuple[str, ...] = ()) -> None:
        if not self._enabled:
            return
        self._last = time.monotonic()
        shown = {
            k: v for k, v in self.get_metrics(trainer, module).items() if isinstance(v, int | float) and k != "v_num"
        }
        shown |= {name: float(trainer.callback_metrics[name]) for name in scores if name in trainer.callback_metrics}
        numbers = " ".join(f"{name} {value:.4g}" for name, value in shown.items())
        steps = f"/{int(trainer.estimated_stepping_batches)}" if trainer.state.fn == "fit" else ""
        print(f"epoch {trainer.current_epoch} step {trainer.global_step}{steps} {numbers}", flush=True)


class Bars(RichProgressBar):
    """Lightning's rich bars, told how long a training lasts that is measured in steps (they would show epoch 1/-2)."""

    _fetched = 0.0

    def _get_train_description(self, current_epoch: int) -> str:
        steps = int(self.trainer.estimated_stepping_batches)
        return f"Epoch {current_epoch}, step {self.trainer.global_step}/{steps}"

    def _update_metrics(self, *arguments: Any, **options: Any) -> None:
        """A few times a second: every number shown has to be fetched from the device."""
        if time.monotonic() - self._fetched >= 0.3:
            self._fetched = time.monotonic()
            super()._update_metrics(*arguments, **options)


def progress_bar() -> ProgressBar:
    """Rich bars on a terminal, plain lines elsewhere."""
    return Bars() if sys.stdout.isatty() else PlainProgress()
