"""Computes the three methods' Heaviside functions and derivatives (Kim 2019, eq. 2, 6, 7; Homayounfar 2020, eq. 4).

Every function is element-wise. It takes any shape and returns the same shape.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lsseg.errors import ArgumentError

HeavisideKind = Literal["hf", "ahf", "mahf", "ramp"]


def heaviside(z: Tensor, epsilon: float = 1 / 20, kind: HeavisideKind = "mahf") -> Tensor:
    """Return H_ε(z), the step function or one of its smooth approximations.

    ``hf`` is 1[z ≥ 0] (Kim 2019, eq. 2). ``ahf`` is ½ (1 + 2/π · atan(z/ε)) (Chan and Vese, cited in Kim 2019,
    section 3.2). ``mahf`` is ½ (1 + tanh(z/ε)) (Kim 2019, eq. 6). ``ramp`` is ½ (1 + z/ε) between 0 and 1, so that with
    ε = ½ the function of P - ½ is the probability P itself; it is in none of the papers.

    Args:
        z: Level-set values, any shape.
        epsilon: Width of the transition, in units of ``z``; ``hf`` does not use it.
        kind: Name of the function.

    Returns:
        Values in [0, 1], the shape and dtype of ``z``.

    Raises:
        ValueError: If ``kind`` is unknown or ``epsilon`` is not positive.

    >>> heaviside(torch.tensor([-1.0, 0.0, 1.0]), epsilon=0.05)
    tensor([4.2484e-18, 5.0000e-01, 1.0000e+00])
    """
    check_heaviside(epsilon, kind)
    if kind == "hf":
        return (z >= 0).to(z.dtype)
    if kind == "ahf":
        return arctan_step(z, z.new_full((), epsilon))
    if kind == "ramp":
        return ((z + epsilon) * (0.5 / epsilon)).clamp(0, 1)
    # ½ (1 + tanh(z/ε)) is the logistic function of 2z/ε, which is several times faster and exact in the lower tail,
    # where 1 + tanh cancels to 0.
    return torch.sigmoid(z * (2 / epsilon))


def dirac(z: Tensor, epsilon: float = 1 / 20, kind: HeavisideKind = "mahf") -> Tensor:
    """Return δ_ε(z) = H_ε'(z), the derivative of :func:`heaviside` (Kim 2019, eq. 7).

    For ``hf`` the derivative is 0 almost everywhere, and this function returns 0 everywhere. A loss that uses ``hf``
    passes no gradient.

    Args:
        z: Level-set values, any shape.
        epsilon: Width of the transition, in units of ``z``.
        kind: Name of the function.

    Returns:
        Values ≥ 0, the shape and dtype of ``z``.

    Raises:
        ValueError: If ``kind`` is unknown or ``epsilon`` is not positive.

    >>> dirac(torch.tensor(0.0), epsilon=0.05)
    tensor(10.)
    """
    check_heaviside(epsilon, kind)
    if kind == "hf":
        return torch.zeros_like(z)
    if kind == "ahf":
        return epsilon / (math.pi * (epsilon**2 + z.square()))
    if kind == "ramp":
        return (z.abs() <= epsilon).to(z.dtype).mul_(0.5 / epsilon)
    step = torch.sigmoid(z * (2 / epsilon))
    return torch.addcmul(step, step, step, value=-1).mul_(2 / epsilon)


def arctan_step(z: Tensor, epsilon: Tensor) -> Tensor:
    """Return ``ahf`` for a tensor of ε that broadcasts.

    The result is accurate in the lower tail, where ½ + atan/π cancels to 0. In the upper tail 1 - H(z) is accurate if
    it is computed as H(-z).
    """
    return torch.atan2(epsilon, -z).div_(math.pi)


def check_heaviside(epsilon: float, kind: str) -> None:
    """Raise ``ValueError`` for an unknown ``kind`` or an ``epsilon`` that is not positive."""
    if kind not in ("hf", "ahf", "mahf", "ramp"):
        raise ArgumentError(f"heaviside must be 'mahf', 'ahf', 'hf' or 'ramp', not {kind!r}")
    if not 0 < epsilon < math.inf:
        raise ArgumentError(f"epsilon must be positive, not {epsilon}")
