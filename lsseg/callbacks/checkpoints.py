"""Saves checkpoints so that no file is ever incomplete."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lsseg.tasks.start import read_checkpoint

OF_A_FILE = ("inline_container", "PytorchStreamWriter", "iostream")  # in torch's errors if the disk refuses data


class BestCheckpoint(ModelCheckpoint):
    """Saves the checkpoint of the best validation; a configuration may add other checkpoints of the same score."""

    @property
    def state_key(self) -> str:
        """Return the key of the state in checkpoints; Lightning's key is the same for all callbacks of one score."""
        return type(self).__name__

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Move the state from the key that older versions used to today's key."""
        states = checkpoint["callbacks"]
        before = super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)
        if self.state_key not in states and before in states:
            states[self.state_key] = states[before]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the score, if the epoch has one; an epoch that ends just after a resume was not validated."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score if its file is in this run folder, which may have been moved since."""
        file = Path(str(self.dirpath)) / f"{self.filename}.ckpt"
        if file.is_file() and state_dict["best_model_score"] is not None:
            here = {"dirpath": self.dirpath, "best_model_path": str(file), "kth_best_model_path": str(file)}
            scores = {"best_k_models": {str(file): state_dict["best_model_score"]}}
            super().load_state_dict({**state_dict, **here, **scores})


class PeriodicCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` every few optimiser steps, after every validation, at the end, and never within a step.

    Lightning's callback forgets on a resume at which step it last saved. If a step accumulates gradients, it would then
    save within the step and lose the gradients, which no checkpoint holds.
    """

    _step = 0
    _whole = False  # whether the last batch ended an optimiser step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step at which the training starts, which is already saved in a resumed run."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = self._step = trainer.global_step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state, because what an earlier run saved does not decide what this run saves."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note whether the batch completed an optimiser step, and save if the interval has passed."""
        self._whole, self._step = trainer.global_step > self._step, trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the validated weights, unless this step is already saved or is incomplete."""
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fits and self._whole and trainer.global_step != self._last_global_step_saved:
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last weights, even if the interval has not passed."""
        super().on_train_end(trainer, pl_module)
        self._save_last(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(Path(str(self.dirpath)) / f"{self.filename}.ckpt")
        self._last_global_step_saved = trainer.global_step


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it; reads checkpoints without running code in them.

    Lightning writes to the temporary folder and moves the file. If that folder is on another disk, the move is a copy.
    A kill or a full disk during the copy would replace a complete checkpoint by an incomplete one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint to a local path; an ``OSError`` names this path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        try:
            torch.save(checkpoint, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # else a power failure may leave an empty file
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:  # a full disk causes either, without the file's name
            if isinstance(error, RuntimeError) and not any(word in str(error) for word in OF_A_FILE):
                raise
            known = isinstance(error, OSError) and error.strerror
            reason = str(known) if known else "cannot write the checkpoint (is the disk full?)"
            raise OSError(getattr(error, "errno", None), reason, str(target)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint onto the CPU; raise an ``InputError`` if it is damaged or not a checkpoint of a run."""
        return read_checkpoint(Path(path), "ckpt_path ")
