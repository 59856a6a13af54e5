"""How long training takes."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

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
