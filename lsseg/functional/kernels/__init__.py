"""Whether Triton's kernels do the work, or whole-tensor operations.

``LSSEG_KERNELS=torch`` in the environment does without Triton's kernels wherever a call or a loss does not say which;
``LSSEG_KERNELS=triton`` insists on them.
"""

import os
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from lsseg.errors import ArgumentError, InputError

Kernels = Literal["auto", "triton", "torch"]

INSTALLED = find_spec("triton") is not None
ASKED = os.environ.get("LSSEG_KERNELS", "auto")  # once: compiled graphs cannot look
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton, too, asks once


def check_kernels(kernels: str) -> None:
    """Raise ``ValueError`` for an unknown choice."""
    if kernels not in ("auto", "triton", "torch"):
        raise ArgumentError(f"kernels must be 'auto', 'triton' or 'torch', not {kernels!r}")


def use_triton(kernels: Kernels, x: Tensor) -> bool:
    """Whether Triton's kernels can take a tensor, and are to.

    Args:
        kernels: ``auto``: what the environment says, else on a GPU, where Triton is installed; ``triton``: always, on a
            CPU by Triton's interpreter (``TRITON_INTERPRET=1``); ``torch``: never.
        x: A tensor of the work to be done.

    Raises:
        ValueError: If ``kernels`` is unknown, or Triton is asked for and cannot be had.
    """
    check_kernels(kernels)
    if kernels == "auto" and ASKED != "auto":
        if ASKED not in ("triton", "torch"):
            raise InputError(f"LSSEG_KERNELS must be auto, triton or torch, not {ASKED!r}")
        kernels = "triton" if ASKED == "triton" else "torch"
    # The kernels compute in float32, and are not launched for nothing.
    if kernels == "torch" or x.dtype == torch.float64 or x.numel() == 0:
        return False
    if kernels == "auto":
        return INSTALLED and x.is_cuda
    if not INSTALLED:
        raise ArgumentError("kernels is 'triton', but the package triton is not installed")
    if not x.is_cuda and not INTERPRETED:
        raise ArgumentError(f"kernels is 'triton', which runs on GPUs, but the tensor is on {x.device}")
    return True
