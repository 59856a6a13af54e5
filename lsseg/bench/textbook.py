"""Computes the papers' equations as printed, with autograd; tests and benchmarks compare the fast forms with them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lsseg.functional import curvature


def level_set_energies(
    logits: Tensor, truth: Tensor, valid: Tensor, epsilon: float = 1 / 20, kind: str = "mahf", mode: str = "multiclass"
) -> Tensor:
    """Return the energies of Kim 2019, eq. 4-6, summed over the valid pixels.

    Args:
        logits: B×C×spatial.
        truth: B×C×spatial numbers in [0, 1].
        valid: B×spatial bool.
        epsilon: ε.
        kind: ``mahf``, ``ahf`` or ``ramp``.
        mode: ``multiclass`` takes a softmax; any other value takes a sigmoid of each class.

    Returns:
        B×C; 0 for a class that is absent.
    """
    phi = (torch.softmax(logits, 1) if mode == "multiclass" else torch.sigmoid(logits)).flatten(2) - 0.5
    if kind == "ramp":
        h = (0.5 * (1 + phi / epsilon)).clamp(0, 1)
    else:
        h = 0.5 + torch.atan(phi / epsilon) / math.pi if kind == "ahf" else 0.5 * (1 + torch.tanh(phi / epsilon))
    keep, g = valid.flatten(1).unsqueeze(1).to(h), truth.flatten(2)
    inside, outside = h * keep, (1 - h) * keep
    c1 = (g * inside).sum(2, keepdim=True) / inside.sum(2, keepdim=True).clamp_min(1e-30)
    c2 = (g * outside).sum(2, keepdim=True) / outside.sum(2, keepdim=True).clamp_min(1e-30)
    energy = ((g - c1) ** 2 * inside + (g - c2) ** 2 * outside).sum(2)
    return energy * ((g * keep).sum(2) > 0)


def level_set_energy(logits: Tensor, target: Tensor, epsilon: float = 1 / 20, kind: str = "mahf") -> Tensor:
    """Return the energy of B×spatial labels (255 is void) per valid pixel, summed over classes, mean over images."""
    valid = target != 255
    truth = F.one_hot(target.masked_fill(~valid, 0), logits.shape[1]).movedim(-1, 1)
    energies = level_set_energies(logits, truth * valid.unsqueeze(1), valid, epsilon, kind)
    return (energies.sum(1) / valid.flatten(1).sum(1)).mean()


def chan_vese(phi: Any, features: Any, lambda1: Any, lambda2: Any, mu: Any, epsilon: Any, dt: Any) -> Any:
    """Evolve φ by Homayounfar 2020, eq. 4 and 7-9, with the arguments of :func:`~lsseg.functional.chan_vese_evolve`."""
    for e, t in zip(epsilon.T[..., None, None], dt.T[..., None, None], strict=True):
        h = (0.5 * (1 + 2 / math.pi * (phi / e).atan()))[:, None]
        c1 = (features * h).sum((2, 3), keepdim=True) / h.sum((2, 3), keepdim=True)
        c2 = (features * (1 - h)).sum((2, 3), keepdim=True) / (1 - h).sum((2, 3), keepdim=True)
        inside, outside = (features - c1).square().sum(1), (features - c2).square().sum(1)
        force = mu[:, None, None] * curvature(phi) - lambda1[:, None, None] * inside + lambda2[:, None, None] * outside
        phi = phi + t * (e.square() / math.pi / (e.square() + phi.square())) * force
    return phi
