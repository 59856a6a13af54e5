"""Runs the iterations of :mod:`lsseg.functional.chan_vese` and their gradient as one operator.

Legend: G groups of K objects that share their features, b groups in a block. D features, N iterations, P = H·W pixels.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.curvature import curvature, curvature_adjoint
from lsseg.functional.grid import FeatureGrid
from lsseg.functional.heaviside import arctan_step
from lsseg.functional.partition import refuse_second_derivative

BLOCK = 2**22  # elements of features, or of planes, in one block


class _Numbers(NamedTuple):
    """Holds the hyperparameters of a block: ``epsilon`` and ``dt`` are b×K×N, the others are b×K×1."""

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
    """Return δ_ε(φ) and ε² + φ²."""
    reach = (phi * phi).add_(epsilon * epsilon)
    return (epsilon * epsilon if printed else epsilon) / math.pi / reach, reach


def _force(sides: Tensor, features: FeatureGrid, energy: Tensor, n: _Numbers) -> tuple[Tensor, Tensor, Tensor]:
    """Return λ2 ‖F - c2‖² - λ1 ‖F - c1‖² (b×K×P), all c1 before all c2 (b×2K×D), and both sides' sizes (b×2K×1).

    Args:
        sides: b×2K×P: H(φ) of the K objects, then 1 - H(φ) of them.
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
    """Return H_ε(φ) and 1 - H_ε(φ) = H_ε(-φ), b×2K×P. Both are accurate where they are small, too."""
    return torch.cat([arctan_step(phi, epsilon), arctan_step(-phi, epsilon)], 1)


def _blocks(features: Tensor, phi: Tensor) -> Iterable[slice]:
    """Return blocks of groups: on a CPU a thread's share or at most some megabytes, on other devices all groups.

    With smaller blocks the threads wait for Python's lock. With larger blocks they wait for main memory.
    """
    if not blocks.in_cache(phi.device):
        return [slice(0, len(phi))]
    share = -(-len(phi) // torch.get_num_threads())
    size = max(1, min(share, BLOCK // max(features[0].numel(), 4 * phi[0].numel())))
    return [slice(start, min(start + size, len(phi))) for start in range(0, len(phi), size)]


@torch.library.custom_op("lsseg::chan_vese", mutates_args=())
def evolve(
    phi: Tensor, features: Tensor, numbers: Tensor, printed: bool, eta: float, stride: int, triton: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run all iterations.

    Args:
        phi: G×K×H×W.
        features: G×D×⌈H/s⌉×⌈W/s⌉.
        numbers: G×K×(3 + 2N): λ1, λ2, μ, all ε_n, all Δt_n.
        printed: Whether δ is as printed; otherwise it is the derivative of the step function.
        eta: η.
        stride: s; it must be 1 for Triton's kernels.
        triton: Whether Triton's kernels do the work.

    Returns:
        φ after the last iteration, and for the backward pass φ before each iteration (N×G×K×P), the means (N×G×2K×D)
        and the sizes of both sides (N×G×2K×1).
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


@evolve.register_fake
def _(phi: Tensor, features: Tensor, numbers: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    """Return the gradients by φ, by the features (empty if they are not wanted) and by the numbers."""
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
def _(by_out: Tensor, features: Tensor, numbers: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    by_features = features.new_empty(features.shape if options[-1] else (0,))  # whether they are wanted
    return by_out.new_empty(by_out.shape), by_features, numbers.new_empty(numbers.shape)


class _Backward:
    """Carries the gradient of a block back through its iterations.

    The gradient by F of all iterations together is left·right (thin matrices, D×R and R×P) plus ``along`` times F.

    Args:
        features: F.
        n: Hyperparameters.
        by_out: b×K×H×W, the gradient by φ after the last iteration.
        printed: Whether δ is as printed; otherwise it is the derivative of the step function.
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
        """Go back through one iteration, given φ (b×K×P) before it, and its means and sizes."""
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
        # H' = ε / π(ε² + φ²) and ∂H/∂ε = -φ / π(ε² + φ²). ``by_side`` covers the outside, too, because it is 1 - H.
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
        """Return the gradients by H (b×K×P) and by λ1, λ2 (b×K×2), and collect the terms of the features' gradient."""
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
        """Return the gradient by ε through δ, b×K.

        ∂δ/∂ε is 2ε φ² / π(ε² + φ²)² for the printed δ, and (φ² - ε²) / π(ε² + φ²)² for the derivative.
        """
        squared = phi * phi
        change = 2 * epsilon * squared if self.printed else squared - epsilon * epsilon
        return (by_delta * change / reach.square()).sum(2) / math.pi

    def by_numbers(self) -> Tensor:
        """Return the gradients by the numbers, b×K×(3 + 2N)."""
        by_steps = torch.stack(self.by_steps[::-1], 3).flatten(2)  # ε_1 … ε_N, Δt_1 … Δt_N
        return torch.cat([torch.stack(self.by_weights).sum(0), by_steps], 2)

    def write_by_features(self, out: Tensor) -> None:
        """Write the gradient by the features into ``out``, b×D×⌈H/s⌉×⌈W/s⌉."""
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


evolve.register_autograd(_differentiate, setup_context=_keep)
_evolve_backward.register_autograd(refuse_second_derivative)
