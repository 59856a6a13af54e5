"""Defines callbacks for every step: progress lines and bars, the time of training, and seeds of random generators."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar

from lsseg.data.loading import derived_seed, global_seed
from lsseg.metrics.scores import SCORES
from lsseg.process import memory


class PlainProgress(ProgressBar):
    """Prints one line after every validation, and one every ``seconds`` of training.

    Args:
        seconds: Least time between two lines during training.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._last = 0.0
        self._enabled = True

    def disable(self) -> None:
        """Stop printing, as on ranks above 0."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print the progress if ``seconds`` have passed since the last line."""
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
    """Shows Lightning's rich bars with the number of training steps.

    If a training is limited by steps, Lightning's own bars would show "epoch 1/-2".
    """

    _fetched = 0.0

    def _get_train_description(self, current_epoch: int) -> str:
        steps = int(self.trainer.estimated_stepping_batches)
        return f"Epoch {current_epoch}, step {self.trainer.global_step}/{steps}"

    def _update_metrics(self, *arguments: Any, **options: Any) -> None:
        """Update the numbers only a few times a second, because each has to be fetched from the device."""
        if time.monotonic() - self._fetched >= 0.3:
            self._fetched = time.monotonic()
            super()._update_metrics(*arguments, **options)


def progress_bar() -> ProgressBar:
    """Return rich bars on a terminal, and plain lines elsewhere."""
    return Bars() if sys.stdout.isatty() else PlainProgress()


EVENTS = 200  # number of steps after which their times are read from the GPU


class Stopwatch(pl.Callback):
    """Measures the seconds in training steps (forward, backward, optimiser; without waits for data) and the memory.

    The first steps of a process, which allocate and warm up, are not counted. The sums are saved in checkpoints.

    Attributes:
        images: Number of images in the counted steps.
        peak_bytes: The most memory that tensors had on the GPU or, on a CPU, that the first process had while it
            trained and validated. None before the end of a training, and where neither can be read.
    """

    WARM_UP = 3

    def __init__(self) -> None:
        self.images = 0
        self.peak_bytes: int | None = None
        self._seconds = 0.0
        self._steps = 0
        self._start: Any = None
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """Return the sum over the counted steps; this waits for a GPU."""
        self._collect()
        return self._seconds

    @property
    def seconds_per_image(self) -> float:
        """Return the mean over the images of this process in the counted steps; NaN before the first."""
        return self.seconds / self.images if self.images else float("nan")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Start the clock."""
        self._start = self._now(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the time and the images of the step, unless it is one of the first."""
        self._steps += 1
        if self._steps > self.WARM_UP:
            self._add(self._start, self._now(pl_module))
            self.images += len(batch["image"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the peak of the memory."""
        on_gpu = pl_module.device.type == "cuda"
        self.peak_bytes = torch.cuda.max_memory_allocated(pl_module.device) if on_gpu else memory("VmHWM")

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the sums of the interrupted run."""
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
        """Return an event on a GPU, so that no step waits for the GPU; on other devices return the time."""
        if module.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class StepSeed(pl.Callback):
    """Seeds torch before every training step from (seed, step, rank).

    The random numbers of dropout and similar layers then do not depend on what happened before the step, so that a
    resumed run repeats the uninterrupted one.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Seed this step."""
        loop = trainer.fit_loop.epoch_loop
        # Lightning logs under this number of steps. It is one too high if the run resumes from a finished one.
        loop._batches_that_stepped = trainer.global_step
        step = loop.total_batch_idx
        torch.manual_seed(derived_seed(global_seed(), step, trainer.global_rank))
