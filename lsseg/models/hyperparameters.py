"""Hyperparameters of a Chan-Vese evolution, learnt: of each object, or one set for all (Homayounfar 2020, section 4.1).

Legend: M objects, E pooled features, N iterations.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Where training starts. λ, ε and Δt lie in the middle of (0, 2). With a μ of 1, too, ripples of a flat φ would grow
# fourfold in every iteration: Δt μ δ / η must stay below 2.
START = {"lambda1": 1.0, "lambda2": 1.0, "mu": 0.25, "epsilon": 1.0, "dt": 1.0}


class Numbers(NamedTuple):
    """What :func:`lsseg.functional.chan_vese_evolve` takes beside φ and the features.

    Attributes:
        lambda1: M; λ1.
        lambda2: M; λ2.
        mu: M; μ.
        epsilon: M×N; ε_n.
        dt: M×N; Δt_n.
    """

    lambda1: Tensor
    lambda2: Tensor
    mu: Tensor
    epsilon: Tensor
    dt: Tensor

    def by_step(self) -> "list[Numbers]":
        """Those of each iteration by itself, N of them with ε and Δt of M×1."""
        pairs = zip(torch.split(self.epsilon, 1, 1), torch.split(self.dt, 1, 1), strict=True)
        return [self._replace(epsilon=epsilon, dt=dt) for epsilon, dt in pairs]


class Hyperparameters(nn.Module):
    """2N + 3 numbers in (0, 2) by 2·sigmoid: from pooled features of each object, or learnt once for the data set.

    Args:
        channels: E.
        steps: N.
        adaptive: Whether each object has its own, by two fully connected layers; else one set for all.
        hidden: Width between the two layers.

    >>> numbers = Hyperparameters(8, steps=3)(torch.rand(5, 8))
    >>> numbers.mu.shape, numbers.epsilon.shape
    (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(self, channels: int, steps: int, adaptive: bool = True, hidden: int = 128) -> None:
        super().__init__()
        self.steps = steps
        values = [START["lambda1"], START["lambda2"], START["mu"]]
        values += [START["epsilon"]] * steps + [START["dt"]] * steps
        start = torch.tensor([math.log(value / (2 - value)) for value in values])
        self.layers: nn.Sequential | None = None
        self.shared: nn.Parameter | None = None
        if adaptive:
            last = nn.Linear(hidden, len(values))
            nn.init.zeros_(last.weight)  # all objects start with the same numbers
            last.bias = nn.Parameter(start)
            self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), last)
        else:
            self.shared = nn.Parameter(start)

    def forward(self, pooled: Tensor) -> Numbers:
        """Numbers of M objects from their M×E pooled features."""
        if self.layers is not None:
            raw = self.layers(pooled)
        else:
            assert self.shared is not None
            raw = self.shared.expand(len(pooled), -1)
        numbers = 2 * torch.sigmoid(raw.to(torch.promote_types(raw.dtype, torch.float32)))
        lambda1, lambda2, mu, steps = torch.split(numbers, [1, 1, 1, 2 * self.steps], 1)
        epsilon, dt = steps.chunk(2, 1)
        return Numbers(lambda1[:, 0], lambda2[:, 0], mu[:, 0], epsilon, dt)
