"""What happens step by step: progress lines and bars, the time that training takes, the state of random generators."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar

from lsseg.data.loading import derived_seed, global_seed
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


EVENTS = 200  # kept at most before a GPU is asked what they took


class Stopwatch(pl.Callback):
    """Seconds spent in training steps (forward, backward, optimiser; not waiting for data) and the images they took.

    The first steps of a process, which allocate and warm up, are not counted. The sums travel with the checkpoint.
    """

    WARM_UP = 3

    def __init__(self) -> None:
        self.images = 0
        self._seconds = 0.0
        self._steps = 0
        self._start: Any = None
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """Sum over the counted steps; asking for it waits for a GPU."""
        self._collect()
        return self._seconds

    @property
    def seconds_per_image(self) -> float:
        """Mean over the counted steps of this process's images; NaN before the first."""
        return self.seconds / self.images if self.images else float("nan")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Start the clock."""
        self._start = self._now(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock."""
        self._steps += 1
        if self._steps > self.WARM_UP:
            self._add(self._start, self._now(pl_module))
            self.images += len(batch["image"])

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the sums of the interrupted run."""
        self._seconds, self.images = state_dict["seconds"], state_dict["images"]

    def _add(self, start: Any, end: Any) -> None:
        if isinstance(end, torch.cuda.Event):
            self._events.append((start, end))
            if len(self._events) >= EVENTS:
                self._collect()
        else:
            self._seconds += end - start

    def _collect(self) -> None:
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events = []

    @staticmethod
    def _now(module: pl.LightningModule) -> Any:
        """An event of the GPU, which is not waited for at every step; the time elsewhere."""
        if module.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class StepSeed(pl.Callback):
    """Seeds torch before every training step from (seed, step, rank).

    What dropout and its like draw then does not depend on what happened before the step, so a resumed run repeats the
    uninterrupted one.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Seed this step."""
        loop = trainer.fit_loop.epoch_loop
        # The step under which Lightning logs; going on from a run that had ended, it counts one too many.
        loop._batches_that_stepped = trainer.global_step
        step = loop.total_batch_idx
        torch.manual_seed(derived_seed(global_seed(), step, trainer.global_rank))
