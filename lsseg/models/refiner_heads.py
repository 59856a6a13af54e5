"""What a Chan-Vese evolution works on: features and hyperparameters, learnt (Homayounfar 2020, section 4.1).

Legend: M objects, n boxes or images, E pooled features, N iterations, D features, h×w cells.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
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


# The features' scale at the start: forces on the contours start small, whatever the network was trained to do before.
SMALL = 0.05


class FeatureHead(nn.Module):
    """3×3 convolutions, then D features from a 1×1 convolution whose weights start small; n×D×h×w.

    Args:
        channels: Channels of the input.
        features: D.
        depth: The number of 3×3 convolutions, each with ReLU.
        norm: Whether batch-norm follows each of them.
        enlarge: Factor by which the map is enlarged, bilinearly, before one more 3×3 convolution; 1 leaves both out.

    >>> import torch
    >>> FeatureHead(8, 4)(torch.rand(2, 8, 28, 28)).shape
    torch.Size([2, 4, 28, 28])
    """

    def __init__(self, channels: int, features: int, depth: int = 2, norm: bool = False, enlarge: int = 1) -> None:
        super().__init__()
        self.enlarge = enlarge
        inputs = [channels, *[features] * (depth - 1)]
        self.convolutions = nn.Sequential(*[convolution(count, features, norm) for count in inputs])
        self.fine = convolution(features, features, norm) if enlarge > 1 else None
        self.embed = nn.Conv2d(features, features, 1)
        initialise(self)
        nn.init.normal_(self.embed.weight, std=SMALL)

    def forward(self, pooled: Tensor) -> Tensor:
        """The features of n×channels×h×w."""
        x = self.convolutions(pooled)
        if self.fine is not None:
            x = self.fine(F.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False))
        embedded: Tensor = self.embed(x)
        return embedded


def convolution(inputs: int, outputs: int, norm: bool = False) -> nn.Sequential:
    """A 3×3 convolution, batch-norm where it is asked for, and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
    return nn.Sequential(layer, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True))


def initialise(head: nn.Module) -> None:
    """He's initialisation of every convolution of a head."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
