"""Operators with a backward pass and nothing else: whatever else is asked of them is refused, not 0 in silence."""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Once(torch.autograd.Function):
    """The base of a function that is differentiable once, in reverse mode, and works under ``torch.func``."""

    generate_vmap_rule = True


class Gradient(Once):
    """The base of such a function's backward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        """Refuse a second derivative."""
        raise RuntimeError("lsseg's operators are differentiable once; their second derivative is not implemented")


def refuse_forward_mode(*tensors: Tensor) -> None:
    """Raise ``RuntimeError`` where a tensor carries a tangent (``torch.func.jvp``, ``torch.autograd.forward_ad``).

    Not a ``jvp`` of the function: ``torch.compile`` does not take one.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):  # type: ignore[no-untyped-call]
        raise RuntimeError(
            "lsseg's operators have no forward-mode derivative: use reverse mode (backward, torch.func.grad or vjp)"
        )
