"""Checkpoints that are whole or not there."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

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
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:  # torch says either where the disk is full, and never the file's name
            known = isinstance(error, OSError) and error.strerror
            reason = str(known) if known else "cannot write the checkpoint (is the disk full?)"
            raise OSError(getattr(error, "errno", None), reason, str(target)) from error
        finally:
            temporary.unlink(missing_ok=True)
