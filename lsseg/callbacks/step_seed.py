"""The state of the random generators as a function of the step."""

from typing import Any

import pytorch_lightning as pl
import torch

from lsseg.data.loading import derived_seed, global_seed


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
