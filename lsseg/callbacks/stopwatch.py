"""How long training takes."""

import time
from typing import Any

import pytorch_lightning as pl
import torch


class Stopwatch(pl.Callback):
    """Seconds spent in training steps (forward, backward, optimiser; not waiting for data) and the images they took.

    The first steps of a process, which allocate and warm up, are not counted. The sums travel with the checkpoint.
    """

    WARM_UP = 3

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._steps = 0
        self._start = 0.0

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
            self.seconds += self._now(pl_module) - self._start
            self.images += len(batch["image"])

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the sums of the interrupted run."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]

    @staticmethod
    def _now(module: pl.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()
