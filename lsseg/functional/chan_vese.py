"""Runs the unrolled Chan-Vese evolution on learned features (Homayounfar 2020, eq. 4-9) and its gradient.

Legend: M objects, or G groups of K objects that share their features. D features, N iterations, H×W pixels. φ > 0
inside.

    φ ← φ + Δt δ_ε(φ) [μ div(∇φ/|∇φ|) - λ1 ‖F - c1‖² + λ2 ‖F - c2‖²],    c1, c2: means of F inside and outside

The squares are expanded. So ‖F‖² is computed once, and an iteration is two matrix products with F. No D×H×W tensor is
made, except for F minus its mean over the pixels, once. Without this subtraction, an offset of 100 in F would change
the force by a fifth in float32. The gradient by F is a product of two thin matrices for all iterations together. It
also flows through c1 and c2. The work is an opaque custom operator. On a CPU it takes a block of groups at a time, on a
GPU it uses Triton's kernels (:mod:`lsseg.functional.kernels.chan_vese`), and elsewhere it takes all objects at once.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lsseg.functional.blocks import refuse_forward_mode
from lsseg.functional.chan_vese_operator import evolve
from lsseg.functional.grid import enlarged
from lsseg.functional.kernels import Kernels, use_triton

Delta = Literal["printed", "derivative"]

MOST_FEATURES = 256  # Triton's kernels hold a tile of at most this many features in registers


def chan_vese_evolve(
    phi: Tensor,
    features: Tensor,
    lambda1: Tensor | float = 1.0,
    lambda2: Tensor | float = 1.0,
    mu: Tensor | float = 0.25,
    epsilon: Tensor | float = 1.0,
    dt: Tensor | float = 1.0,
    *,
    steps: int | None = None,
    delta: Delta = "printed",
    eta: float = 0.03,
    stride: int = 1,
    kernels: Kernels = "auto",
) -> Tensor:
    """Evolve the level-set function of every object to a partition of its features (Homayounfar 2020, eq. 7-9).

    Args:
        phi: M×H×W, positive inside.
        features: M×D×H×W, or G×D×H×W where M is a multiple of G: then the first M/G objects share the first features,
            and so on. With a stride s, the last two axes are ⌈H/s⌉×⌈W/s⌉.
        lambda1: M, or one number for all objects; λ1, weight of the squared distances from the mean inside.
        lambda2: M, or one number; λ2, weight of the squared distances from the mean outside.
        mu: M, or one number; μ, weight of the contour's length.
        epsilon: M×N, or one number, positive; ε of every iteration, in units of φ: the width of δ around the contour.
        dt: M×N, or one number; Δt of every iteration.
        steps: N, needed if neither ε nor Δt has a number for each iteration.
        delta: ``printed`` is δ_ε(z) = ε² / π(ε² + z²) as in eq. 4, whose peak is 1/π for every ε. ``derivative`` is the
            derivative of the step function, ε / π(ε² + z²).
        eta: η > 0, in units of φ per pixel. Gradients much smaller than η have no direction (see :func:`curvature`).
        stride: s ≥ 1. A feature stands for s×s pixels, and F is bilinear between them, as by ``interpolate``. Only
            Triton's kernels form F, because they are faster with it. Otherwise s² times less is read and held.
        kernels: ``auto`` uses Triton on a GPU where it is installed. ``triton`` or ``torch`` forces one or the other.

    Returns:
        M×H×W, float32 (float64 for float64 input). Differentiable once, with respect to all tensors.

    Raises:
        ValueError: If shapes do not fit, an input is not floating, or an option is out of range.

    >>> features = torch.zeros(1, 1, 5, 6)
    >>> features[..., :4] = 1
    >>> phi = torch.tensor([-0.5, 0.5, 0.5, -0.5, -0.5, -0.5]).expand(1, 5, 6)  # two of four bright columns
    >>> evolved = chan_vese_evolve(phi, features, mu=0.1, dt=2.0, steps=9)
    >>> (evolved[0, 2] > 0).int().tolist()
    [1, 1, 1, 1, 0, 0]
    """
    if not isinstance(epsilon, Tensor) and not epsilon > 0:
        raise ValueError(f"epsilon must be positive, not {epsilon}")
    lambda1, lambda2, mu = (_filled(number, phi, phi.shape[:1]) for number in (lambda1, lambda2, mu))
    shape = (*phi.shape[:1], _steps(epsilon, dt, steps))
    epsilon, dt = (_filled(number, phi, shape) for number in (epsilon, dt))
    _check(phi, features, (lambda1, lambda2, mu), epsilon, dt, delta, eta, stride)
    tensors = (phi, features, lambda1, lambda2, mu, epsilon, dt)
    refuse_forward_mode(*tensors)
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    phi, features, lambda1, lambda2, mu, epsilon, dt = (tensor.to(dtype) for tensor in tensors)
    if epsilon.shape[1] == 0:
        return phi
    if len(phi) == 0:  # the result uses all tensors, so that no distributed process waits for a missing gradient
        return phi + 0 * torch.stack([tensor.sum() for tensor in (features, lambda1, lambda2, mu, epsilon, dt)]).sum()
    groups = (len(features), len(phi) // len(features))
    numbers = torch.cat([torch.stack([lambda1, lambda2, mu], 1), epsilon, dt], 1)
    grouped = phi.reshape(*groups, *phi.shape[1:])
    triton = use_triton(kernels, phi) and features.shape[1] <= MOST_FEATURES
    if triton and stride > 1:
        features, stride = enlarged(features, (phi.shape[1], phi.shape[2]), stride), 1
    if not triton:  # Triton's kernels shift the features themselves
        # A constant added to a feature moves no contour, but its square would hide the rest in rounding errors. As it
        # moves no contour, the gradient by the features equals the gradient by the shifted features.
        features = features - features.detach().mean((2, 3), keepdim=True)
    with torch.autocast(phi.device.type, enabled=False):  # half precision is too coarse for sums over 10⁴ pixels
        printed, flat = delta == "printed", numbers.view(*groups, -1)
        made = evolve(grouped, features.contiguous(), flat, printed, eta, stride, triton)
    return made[0].view(phi.shape)


def _filled(number: Tensor | float, phi: Tensor, shape: Sequence[int]) -> Tensor:
    """Expand one number to ``shape``. A tensor with axes is returned as it is, because :func:`_check` checks it."""
    return number if isinstance(number, Tensor) and number.dim() else _full(number, phi, shape)


def _full(number: Tensor | float, phi: Tensor, shape: Sequence[int]) -> Tensor:
    dtype = phi.dtype if phi.is_floating_point() else torch.float32
    if isinstance(number, Tensor):
        return number.to(phi.device, dtype).expand(shape)
    return torch.full(tuple(shape), number, dtype=dtype, device=phi.device)


def _steps(epsilon: Tensor | float, dt: Tensor | float, steps: int | None) -> int:
    """Return N, the number of iterations."""
    known = [x.shape[-1] for x in (epsilon, dt) if isinstance(x, Tensor) and x.dim() == 2]
    if steps is None and not known:
        raise ValueError("steps must be set, unless epsilon or dt is an M×N tensor with a number for each iteration")
    if steps is not None and (steps < 0 or any(steps != count for count in known)):
        raise ValueError(
            f"steps must be {f'{known[0]}, the N of epsilon and dt' if known else 'at least 0'}, not {steps}"
        )
    return known[0] if steps is None else steps


def _check(
    phi: Tensor,
    features: Tensor,
    weights: tuple[Tensor, ...],
    epsilon: Tensor,
    dt: Tensor,
    delta: str,
    eta: float,
    stride: int,
) -> None:
    if stride < 1:
        raise ValueError(f"stride must be at least 1, not {stride}")
    objects = len(phi) if phi.dim() else 0
    shared = features.dim() == 4 and (objects % len(features) == 0 if len(features) else objects == 0)
    cells = tuple(-(-side // stride) for side in phi.shape[1:])
    if phi.dim() != 3 or not shared or cells != features.shape[2:] or 0 in features.shape[1:]:
        of = f" of stride {stride}" if stride > 1 else ""
        raise ValueError(
            f"expected phi M×H×W and features M×D×H×W{of} (or G×D×H×W, M a multiple of G), "
            f"not {tuple(phi.shape)} and {tuple(features.shape)}"
        )
    for name, weight in zip(("lambda1", "lambda2", "mu"), weights, strict=True):
        if weight.shape != (objects,):
            raise ValueError(f"expected {name} of shape ({objects},), a number for each object, not {(*weight.shape,)}")
    if epsilon.dim() != 2 or len(epsilon) != objects or epsilon.shape != dt.shape:
        raise ValueError(
            f"expected epsilon and dt of one shape ({objects}, N), not {(*epsilon.shape,)} and {(*dt.shape,)}"
        )
    if not all(tensor.is_floating_point() for tensor in (phi, features, *weights, epsilon, dt)):
        raise ValueError("phi, features, lambda1, lambda2, mu, epsilon and dt must be floating tensors")
    if delta not in ("printed", "derivative"):
        raise ValueError(f"delta must be 'printed' or 'derivative', not {delta!r}")
    if not eta > 0:
        raise ValueError(f"eta must be positive, not {eta}")
