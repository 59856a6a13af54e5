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


class PeriodicCheckpoint(ModelCheckpoint):
    """A checkpoint every few optimiser steps, and none within a step.

    (Lightning's forgets, when a run goes on, at which step it saved last: of a step that accumulates gradients it would
    save the first part, whose gradients no checkpoint holds.)
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The step that a run goes on from is saved already."""
        super().on_train_start(trainer, pl_module)
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
