"""Checkpoints that are whole or not there."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lsseg.tasks.start import read_checkpoint

OF_A_FILE = ("inline_container", "PytorchStreamWriter", "iostream")  # in torch's words for what the disk did not take


class BestCheckpoint(ModelCheckpoint):
    """The checkpoint of the best validation, beside any other that a configuration keeps of the same score."""

    @property
    def state_key(self) -> str:
        """A name of its own in checkpoints: Lightning's says only what is watched."""
        return type(self).__name__

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the state from under the name that older versions gave it."""
        states = checkpoint["callbacks"]
        before = super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)
        if self.state_key not in states and before in states:
            states[self.state_key] = states[before]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, unless the epoch has not been validated (one that ended as the run went on)."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score so far where its file is in this run's folder, which may have been moved."""
        file = Path(str(self.dirpath)) / f"{self.filename}.ckpt"
        if file.is_file() and state_dict["best_model_score"] is not None:
            here = {"dirpath": self.dirpath, "best_model_path": str(file), "kth_best_model_path": str(file)}
            scores = {"best_k_models": {str(file): state_dict["best_model_score"]}}
            super().load_state_dict({**state_dict, **here, **scores})


class PeriodicCheckpoint(ModelCheckpoint):
    """``last.ckpt``: every few optimiser steps, after every validation, at the end, and never within a step.

    (Lightning's forgets, when a run goes on, at which step it saved last: of a step that accumulates gradients it would
    save the first part, whose gradients no checkpoint holds.)
    """

    _step = 0
    _whole = False  # whether the last batch ended an optimiser step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The step that a run goes on from is saved already."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = self._step = trainer.global_step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: what it has saved says nothing of what it has to save."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to."""
        self._whole, self._step = trainer.global_step > self._step, trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what has just been scored, unless this step is saved already."""
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fits and self._whole and trainer.global_step != self._last_global_step_saved:
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last weights, whatever the interval."""
        super().on_train_end(trainer, pl_module)
        self._save_last(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(Path(str(self.dirpath)) / f"{self.filename}.ckpt")
        self._last_global_step_saved = trainer.global_step


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, and reads it without running code in it.

    (Lightning writes to the temporary folder and moves the file; where that is another disk, the move is a copy, and a
    kill or a full disk in the middle of it leaves half a checkpoint where a whole one was.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save to a local path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        try:
            torch.save(checkpoint, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut might leave the new name with nothing behind it
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:  # torch says either where the disk is full, and never the file's name
            if isinstance(error, RuntimeError) and not any(word in str(error) for word in OF_A_FILE):
                raise
            known = isinstance(error, OSError) and error.strerror
            reason = str(known) if known else "cannot write the checkpoint (is the disk full?)"
            raise OSError(getattr(error, "errno", None), reason, str(target)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load onto the CPU; raises ``InputError`` for what is no checkpoint of a run, or a damaged one."""
        return read_checkpoint(Path(path), "ckpt_path ")
