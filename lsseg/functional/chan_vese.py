"""Chan-Vese evolution on learned features, unrolled (Homayounfar 2020, eq. 4-9), and its gradient.

Legend: M objects, or G groups of K objects that share their features; D features, N iterations, P = H·W pixels; b
groups of a block. φ > 0 inside.

    φ ← φ + Δt δ_ε(φ) [μ div(∇φ/|∇φ|) - λ1 ‖F - c1‖² + λ2 ‖F - c2‖²],    c1, c2 the means of F inside and outside

With the squares expanded, ‖F‖² is needed once and an iteration is two matrix products with F; no D×H×W tensor is made
(but F less each object's mean, once: an offset of 100 would cost a fifth of the force in float32).
The gradient by F is a product of two thin matrices for all iterations together. It also flows through c1 and c2. An
opaque custom operator; on a CPU object by object, so that its features stay in the cache, on a GPU by Triton's kernels
(:mod:`lsseg.functional.kernels.chan_vese`), and where there are none all objects at once.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.competition import refuse_second_derivative
from lsseg.functional.curvature import curvature, curvature_adjoint
from lsseg.functional.grid import FeatureGrid, enlarged
from lsseg.functional.heaviside import arctan_step
from lsseg.functional.kernels import Kernels, use_triton
from lsseg.functional.once import refuse_forward_mode

Delta = Literal["printed", "derivative"]

BLOCK = 2**22  # elements of features, or of planes
MOST_FEATURES = 256  # of which Triton's kernels hold a tile in registers


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
            and so on. Of a stride s: M×D×⌈H/s⌉×⌈W/s⌉.
        lambda1: M, or one number for all objects; λ1, how much the inside should be of one kind.
        lambda2: M, or one number; λ2, how much the outside should.
        mu: M, or one number; μ, weight of the contour's length.
        epsilon: M×N, or one number, positive; ε of every iteration, in units of φ: the reach of its step.
        dt: M×N, or one number; Δt of every iteration.
        steps: N, where neither ε nor Δt says it.
        delta: δ_ε(z) = ε² / π(ε² + z²) as ``printed`` in eq. 4, whose peak is 1/π whatever ε; or the ``derivative`` of
            the step function, ε / π(ε² + z²).
        eta: η > 0, in units of φ per pixel: gradients much smaller have no direction (see :func:`curvature`).
        stride: s ≥ 1: a feature stands for s×s pixels; between them F is bilinear, as by ``interpolate``, but is not
            formed: s² times less is read and held. (Triton's kernels do form it, which takes them less time.)
        kernels: ``auto``: Triton's on a GPU, where Triton is there; ``triton`` or ``torch`` force one or the other.

    Returns:
        M×H×W, float32 (float64 for float64 input). Differentiable once, by all tensors.

    Raises:
        ValueError: If shapes do not fit, an input is not floating, or an option is out of range.

    >>> features = torch.zeros(1, 1, 5, 6)
    >>> features[..., :4] = 1
    >>> phi = torch.tensor([-0.5, 0.5, 0.5, -0.5, -0.5, -0.5]).expand(1, 5, 6)  # two of four bright columns
    >>> evolved = chan_vese_evolve(phi, features, mu=0.1, dt=2.0, steps=9)
    >>> (evolved[0, 2] > 0).int().tolist()
    [1, 1, 1, 1, 0, 0]
    """
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
    if len(phi) == 0:  # on the graph of everything, so that no process of several waits for a gradient in vain
        return phi + 0 * torch.stack([tensor.sum() for tensor in (features, lambda1, lambda2, mu, epsilon, dt)]).sum()
    groups = (len(features), len(phi) // len(features))
    numbers = torch.cat([torch.stack([lambda1, lambda2, mu], 1), epsilon, dt], 1)
    grouped = phi.reshape(*groups, *phi.shape[1:])
    triton = use_triton(kernels, phi) and features.shape[1] <= MOST_FEATURES
    if triton and stride > 1:
        features, stride = enlarged(features, (phi.shape[1], phi.shape[2]), stride), 1
    if not triton:  # whose kernels do it themselves
        # What all features of an object have in common moves nothing, but squares of it drown the rest in rounding. As
        # it moves nothing, the gradient by the features is that by the shifted ones.
        features = features - features.detach().mean((2, 3), keepdim=True)
    with torch.autocast(phi.device.type, enabled=False):  # sums over 10⁴ pixels say little in half precision
        printed, flat = delta == "printed", numbers.view(*groups, -1)
        made = _evolve(grouped, features.contiguous(), flat, printed, eta, stride, triton)
    return made[0].view(phi.shape)


def _filled(number: Tensor | float, phi: Tensor, shape: Sequence[int]) -> Tensor:
    """A number for each object (and iteration); tensors are left for the check of shapes."""
    return number if isinstance(number, Tensor) and number.dim() else _full(number, phi, shape)


def _full(number: Tensor | float, phi: Tensor, shape: Sequence[int]) -> Tensor:
    dtype = phi.dtype if phi.is_floating_point() else torch.float32
    if isinstance(number, Tensor):
        return number.to(phi.device, dtype).expand(shape)
    return torch.full(tuple(shape), number, dtype=dtype, device=phi.device)


def _steps(epsilon: Tensor | float, dt: Tensor | float, steps: int | None) -> int:
    """N."""
    known = [x.shape[-1] for x in (epsilon, dt) if isinstance(x, Tensor) and x.dim() == 2]
    if steps is None and not known:
        raise ValueError("give steps, the number of iterations, or epsilon and dt for each of them, M×N")
    if steps is not None and (steps < 0 or any(steps != count for count in known)):
        raise ValueError(f"steps is {steps}, but epsilon and dt are for {known[0] if known else 'at least 0'}")
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
        raise ValueError("expected floating tensors")
    if delta not in ("printed", "derivative"):
        raise ValueError(f"delta must be 'printed' or 'derivative', not {delta!r}")
    if not eta > 0:
        raise ValueError(f"eta must be positive, not {eta}")


class _Numbers(NamedTuple):
    """Hyperparameters of a block, each b×K×1; those of the steps b×K×N."""

    lambda1: Tensor
    lambda2: Tensor
    mu: Tensor
    epsilon: Tensor
    dt: Tensor


def _split(numbers: Tensor) -> _Numbers:
    steps = (numbers.shape[2] - 3) // 2
    lambda1, lambda2, mu, epsilon, dt = torch.split(numbers, [1, 1, 1, steps, steps], 2)
    return _Numbers(lambda1, lambda2, mu, epsilon, dt)


def _delta(phi: Tensor, epsilon: Tensor, printed: bool) -> tuple[Tensor, Tensor]:
    """δ_ε(φ), and ε² + φ²."""
    reach = (phi * phi).add_(epsilon * epsilon)
    return (epsilon * epsilon if printed else epsilon) / math.pi / reach, reach


def _force(sides: Tensor, features: FeatureGrid, energy: Tensor, n: _Numbers) -> tuple[Tensor, Tensor, Tensor]:
    """λ2 ‖F - c2‖² - λ1 ‖F - c1‖², b×K×P, and c1 over c2, b×2K×D, and the sizes of both sides, b×2K×1.

    Args:
        sides: b×2K×P; H(φ) of the K objects, then 1 - H(φ).
        features: F.
        energy: ‖F‖², b×1×P.
        n: Hyperparameters.
    """
    sizes = sides.sum(2, keepdim=True)
    means = features.drawn(sides) / sizes
    inside, outside = means.chunk(2, 1)
    constant = n.lambda2 * outside.square().sum(2, keepdim=True) - n.lambda1 * inside.square().sum(2, keepdim=True)
    force = features.times(n.lambda1 * inside - n.lambda2 * outside, constant, 2)
    return force.addcmul_(n.lambda2 - n.lambda1, energy), means, sizes


def _sides(phi: Tensor, epsilon: Tensor) -> Tensor:
    """H_ε(φ) and 1 - H_ε(φ) = H_ε(-φ), b×2K×P: both accurate where they are small."""
    return torch.cat([arctan_step(phi, epsilon), arctan_step(-phi, epsilon)], 1)


def _blocks(features: Tensor, phi: Tensor) -> Iterable[slice]:
    """Groups that are worked on together: a share for each thread on a CPU, or some megabytes; all at once elsewhere.

    With fewer in a block the threads wait for Python's lock, with more for memory.
    """
    if not blocks.in_cache(phi.device):
        return [slice(0, len(phi))]
    share = -(-len(phi) // torch.get_num_threads())
    size = max(1, min(share, BLOCK // max(features[0].numel(), 4 * phi[0].numel())))
    return [slice(start, min(start + size, len(phi))) for start in range(0, len(phi), size)]


@torch.library.custom_op("lsseg::chan_vese", mutates_args=())
def _evolve(
    phi: Tensor, features: Tensor, numbers: Tensor, printed: bool, eta: float, stride: int, triton: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All iterations.

    Args:
        phi: G×K×H×W.
        features: G×D×⌈H/s⌉×⌈W/s⌉.
        numbers: G×K×(3 + 2N): λ1, λ2, μ, ε_n, Δt_n.
        printed: Which δ.
        eta: η.
        stride: s; 1 for Triton's kernels.
        triton: Whether they do it.

    Returns:
        φ after the last iteration; and for the backward pass φ before each, N×G×K×P, the means N×G×2K×D and the sizes
        of both sides, N×G×2K×1.
    """
    if triton:
        from lsseg.functional.kernels import chan_vese as kernels

        return kernels.evolve(phi, features, numbers, printed, eta)
    (groups, objects, height, width), depth = phi.shape, features.shape[1]
    steps, pixels = (numbers.shape[2] - 3) // 2, height * width
    out = phi.new_empty(groups, objects, pixels)
    before = phi.new_empty(steps, groups, objects, pixels)
    means = phi.new_empty(steps, groups, 2 * objects, depth)
    sizes = phi.new_empty(steps, groups, 2 * objects, 1)

    def evolve(parts: Sequence[slice]) -> None:
        for part in parts:
            x, n = phi[part].flatten(2), _split(numbers[part])
            f = FeatureGrid(features[part], (height, width), stride)
            energy = f.energy()
            for step in range(steps):
                before[step, part] = x
                epsilon, dt = n.epsilon[..., step, None], n.dt[..., step, None]
                force, means[step, part], sizes[step, part] = _force(_sides(x, epsilon), f, energy, n)
                bend = curvature(x.view(*x.shape[:2], height, width), eta).flatten(2)
                delta, _ = _delta(x, epsilon, printed)
                x = x.addcmul(force.addcmul_(n.mu, bend), delta.mul_(dt))
            out[part] = x

    blocks.in_threads(evolve, list(_blocks(features, phi)), phi.device)
    return out.view(phi.shape), before, means, sizes


@_evolve.register_fake
def _(
    phi: Tensor, features: Tensor, numbers: Tensor, printed: bool, eta: float, stride: int, triton: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (groups, objects, height, width), depth = phi.shape, features.shape[1]
    steps = (numbers.shape[2] - 3) // 2
    return (
        phi.new_empty(phi.shape),
        phi.new_empty(steps, groups, objects, height * width),
        phi.new_empty(steps, groups, 2 * objects, depth),
        phi.new_empty(steps, groups, 2 * objects, 1),
    )


@torch.library.custom_op("lsseg::chan_vese_backward", mutates_args=())
def _evolve_backward(
    by_out: Tensor,
    features: Tensor,
    numbers: Tensor,
    before: Tensor,
    means: Tensor,
    sizes: Tensor,
    printed: bool,
    eta: float,
    stride: int,
    triton: bool,
    wants_features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by φ, the features (empty where they are not wanted) and the numbers."""
    by_features = torch.empty_like(features) if wants_features else features.new_empty(0)
    if triton:
        from lsseg.functional.kernels import chan_vese as kernels

        saved = (features, numbers, before, means, sizes, printed, eta)
        by_phi, by_numbers = kernels.evolve_backward(by_out, *saved, by_features)
        return by_phi, by_features, by_numbers
    by_phi = torch.empty_like(by_out, memory_format=torch.contiguous_format)
    by_numbers = torch.empty_like(numbers)

    def evolve_back(parts: Sequence[slice]) -> None:
        for part in parts:
            grid = FeatureGrid(features[part], (by_out.shape[2], by_out.shape[3]), stride)
            back = _Backward(grid, _split(numbers[part]), by_out[part], printed, eta)
            for step in reversed(range(len(before))):
                back.step(step, before[step, part], means[step, part], sizes[step, part])
            by_phi[part] = back.by_phi.view(by_phi[part].shape)
            by_numbers[part] = back.by_numbers()
            if wants_features:
                back.write_by_features(by_features[part])

    blocks.in_threads(evolve_back, list(_blocks(features, by_out)), by_out.device)
    return by_phi, by_features, by_numbers


@_evolve_backward.register_fake
def _(
    by_out: Tensor,
    features: Tensor,
    numbers: Tensor,
    before: Tensor,
    means: Tensor,
    sizes: Tensor,
    printed: bool,
    eta: float,
    stride: int,
    triton: bool,
    wants_features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    by_features = features.new_empty(features.shape if wants_features else (0,))
    return by_out.new_empty(by_out.shape), by_features, numbers.new_empty(numbers.shape)


class _Backward:
    """The way back through the iterations of a block.

    The gradient by F of all iterations is Σ left·right (thin matrices D×R and R×P) and ``along`` times F.

    Args:
        features: F.
        n: Hyperparameters.
        by_out: b×K×H×W, the gradient by φ after the last iteration.
        printed: Which δ.
        eta: η.
    """

    def __init__(self, features: FeatureGrid, n: _Numbers, by_out: Tensor, printed: bool, eta: float) -> None:
        self.size, self.printed, self.eta = by_out.shape[2:], printed, eta
        self.features, self.n = features, n
        self.energy = features.energy()
        self.by_phi = by_out.flatten(2)
        self.by_weights: list[Tensor] = []
        self.by_steps: list[Tensor] = []
        self.left: list[Tensor] = []
        self.right: list[Tensor] = []
        self.along = torch.zeros_like(self.energy)

    def step(self, number: int, phi: Tensor, means: Tensor, sizes: Tensor) -> None:
        """One iteration, from φ before it, b×K×P."""
        n, g = self.n, self.by_phi
        epsilon, dt = n.epsilon[..., number, None], n.dt[..., number, None]
        sides = _sides(phi, epsilon)
        force, _, _ = _force(sides, self.features, self.energy, n)
        planes = phi.view(*phi.shape[:2], *self.size)
        bend = curvature(planes, self.eta).flatten(2)
        force.addcmul_(n.mu, bend)
        delta, reach = _delta(phi, epsilon, self.printed)
        by_force = (g * delta).mul_(dt)
        by_delta = (g * force).mul_(dt)
        by_dt = (g * delta).mul_(force).sum(2)
        by_side, by_lambda = self._through_force(by_force, sides, means, sizes)
        # H' = ε / π(ε² + φ²) and ∂H/∂ε = -φ / π(ε² + φ²); the outside is one minus the inside.
        by_step = by_side / reach / math.pi
        by_epsilon = -(by_step * phi).sum(2)
        by_epsilon += self._by_epsilon_of_delta(by_delta, phi, epsilon, reach)
        # ∂δ/∂φ = -2φ δ / (ε² + φ²)
        by_phi = torch.addcmul(g, by_step, epsilon)
        by_phi.addcmul_(by_delta.mul_(delta).div_(reach), phi, value=-2)
        by_phi += curvature_adjoint((by_force * n.mu).view(planes.shape), planes, self.eta).flatten(2)
        self.by_phi = by_phi
        self.by_weights.append(torch.cat([by_lambda, (by_force * bend).sum(2, keepdim=True)], 2))
        self.by_steps.append(torch.stack([by_epsilon, by_dt], 2))

    def _through_force(self, by_force: Tensor, sides: Tensor, means: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients by H (b×K×P) and by λ1, λ2 (b×K×2); what concerns the features is noted."""
        n = self.n
        inside, outside = means.chunk(2, 1)
        total = by_force.sum(2, keepdim=True)
        gathered = self.features.gathered(by_force)
        drawn = torch.bmm(gathered, self.features.flat.mT)  # Σ w F, b×K×D
        energy = torch.bmm(by_force, self.energy.mT)
        by_lambda = []
        for mean, sign in ((inside, -1), (outside, 1)):  # ± Σ w ‖F - c‖²
            squared = energy - 2 * (mean * drawn).sum(2, keepdim=True) + total * mean.square().sum(2, keepdim=True)
            by_lambda.append(sign * squared)
        by_inside = 2 * n.lambda1 * (drawn - total * inside) / sizes.chunk(2, 1)[0]
        by_outside = -2 * n.lambda2 * (drawn - total * outside) / sizes.chunk(2, 1)[1]
        constant = (by_outside * outside - by_inside * inside).sum(2, keepdim=True)
        by_side = self.features.times(by_inside - by_outside, constant)
        self.left += [2 * (n.lambda1 * inside - n.lambda2 * outside), by_inside, by_outside]
        self.right += [gathered, self.features.gathered(sides)]
        self.along += torch.bmm(2 * (n.lambda2 - n.lambda1).mT, by_force)
        return by_side, torch.cat(by_lambda, 2)

    def _by_epsilon_of_delta(self, by_delta: Tensor, phi: Tensor, epsilon: Tensor, reach: Tensor) -> Tensor:
        """∂δ/∂ε = 2ε φ² / π(ε² + φ²)² as printed, (φ² - ε²) / π(ε² + φ²)² of the derivative; b×K."""
        squared = phi * phi
        change = 2 * epsilon * squared if self.printed else squared - epsilon * epsilon
        return (by_delta * change / reach.square()).sum(2) / math.pi

    def by_numbers(self) -> Tensor:
        """b×K×(3 + 2N)."""
        by_steps = torch.stack(self.by_steps[::-1], 3).flatten(2)  # ε_1 … ε_N, Δt_1 … Δt_N
        return torch.cat([torch.stack(self.by_weights).sum(0), by_steps], 2)

    def write_by_features(self, out: Tensor) -> None:
        """Into b×D×⌈H/s⌉×⌈W/s⌉."""
        self.features.write_gradient(self.along, torch.cat(self.left, 1).mT, torch.cat(self.right, 1), out)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, features, numbers, *ctx.options = inputs
    ctx.save_for_backward(features, numbers, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, by_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[1]
    with torch.autocast(by_out.device.type, enabled=False):
        by_phi, by_features, by_numbers = _evolve_backward(by_out, *ctx.saved_tensors, *ctx.options, wanted)
    return by_phi, by_features if wanted else None, by_numbers, *[None] * 4


_evolve.register_autograd(_differentiate, setup_context=_keep)
_evolve_backward.register_autograd(refuse_second_derivative)
