"""Decides whether Triton's kernels or whole-tensor operations do the work.

The environment variable ``LSSEG_KERNELS`` applies wherever a call or a loss leaves the choice at ``auto``. The value
``torch`` does without Triton's kernels, and ``triton`` insists on them.
"""

import os
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from lsseg.errors import ArgumentError, InputError

Kernels = Literal["auto", "triton", "torch"]

INSTALLED = find_spec("triton") is not None
ASKED = os.environ.get("LSSEG_KERNELS", "auto")  # Compiled graphs cannot read the environment later.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads this only once, too.


def check_kernels(kernels: str) -> None:
    """Raise ``ValueError`` for an unknown choice."""
    if kernels not in ("auto", "triton", "torch"):
        raise ArgumentError(f"kernels must be 'auto', 'triton' or 'torch', not {kernels!r}")


def use_triton(kernels: Kernels, x: Tensor) -> bool:
    """Return whether Triton's kernels are to do the work; they take neither float64 nor empty tensors.

    Args:
        kernels: ``auto`` follows the environment, and without it uses the kernels on a GPU where Triton is installed.
            ``triton`` demands them, on a CPU in Triton's interpreter (``TRITON_INTERPRET=1``). ``torch`` refuses them.
        x: A tensor of the work to be done.

    Raises:
        ValueError: If the choice is unknown, or if it demands Triton's kernels where they cannot run.
    """
    check_kernels(kernels)
    if kernels == "auto" and ASKED != "auto":
        if ASKED not in ("triton", "torch"):
            raise InputError(f"LSSEG_KERNELS must be auto, triton or torch, not {ASKED!r}")
        kernels = "triton" if ASKED == "triton" else "torch"
    # The kernels compute in float32, and a launch for an empty tensor would be useless.
    if kernels == "torch" or x.dtype == torch.float64 or x.numel() == 0:
        return False
    if kernels == "auto":
        return INSTALLED and x.is_cuda
    if not INSTALLED:
        raise ArgumentError("kernels is 'triton', but the package triton is not installed")
    if not x.is_cuda and not INTERPRETED:
        raise ArgumentError(f"kernels is 'triton', which runs on GPUs, but the tensor is on {x.device}")
    return True
