"""Defines the multiphase level-set layer of DMLS (Zhang 2019, section III.B, eq. 6-10, algorithm 1).

Legend: B images, C classes, D features, H×W pixels.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.errors import ArgumentError, require
from lsseg.functional import (
    Normalization,
    gaussian_log_posterior,
    largest_class,
    multiphase_evolve,
    partition_level_sets,
    regions,
)
from lsseg.functional.blocks import wide

Likelihood = Literal["confidence", "colour", "features"]


class Levels(NamedTuple):
    """Holds the level-set functions of all classes, B×C×H×W in float32 or wider.

    Attributes:
        before: φ of the partition by the scores.
        after: φ at the end of the evolution.
    """

    before: Tensor
    after: Tensor


class MultiphaseLevelSet(nn.Module):
    """Refines scores by evolving the level sets of their partition (Zhang 2019, algorithm 1).

    The refined scores are logits + g · (φ after - φ before) with a learnt gain g. Where the evolution changes nothing,
    they are the network's own scores, so that at the start they are no more confident than these. With a
    ``temperature`` they are φ/T, as printed in the paper. With T = 0.1 these are logits of ±10 from the first step on,
    right or wrong, which costs up to nine points of mIoU in training from scratch.

    Args:
        likelihood: f in the competition: ``confidence``, the scores themselves (section III.C of the paper);
            ``colour`` or ``features``, the posterior of a Gaussian of each region's colours or features (eq. 9).
        epsilon: ε in [0, 1/Δt], weight of the curvature; 1 in the paper.
        rho: ρ in (0, 1], likelihood below which a class retreats; 0.5 in the paper.
        truncation: τ > 0 in pixels, to which distances are clipped.
        dt: Δt in (0, ½], length of a time step.
        inner_steps: Number of time steps of one evolution; 1 in the paper.
        temperature: T > 0 at the start, learnt, for the scores φ/T; null adds the change of φ to the logits instead.
        gain: g > 0 at the start, learnt; not used with a temperature.
        normalize: Normalisation of the curvature's tensor: ``gradient``, or ``classes`` as printed in the paper.

    Raises:
        InputError: If a value is out of range.

    >>> layer = MultiphaseLevelSet()
    >>> layer(torch.randn(2, 4, 16, 20)).shape
    torch.Size([2, 4, 16, 20])
    """

    rates = ("log_temperature", "log_gain")  # these have their own learning rate and no weight decay

    def __init__(
        self,
        likelihood: Likelihood = "confidence",
        epsilon: float = 1.0,
        rho: float = 0.5,
        truncation: float = 10.0,
        dt: float = 0.5,
        inner_steps: int = 1,
        temperature: float | None = None,
        gain: float = 1.0,
        normalize: Normalization = "gradient",
    ) -> None:
        super().__init__()
        for name, value, values in (
            ("likelihood", likelihood, get_args(Likelihood)),
            ("normalize", normalize, get_args(Normalization)),
        ):
            require(value in values, name, value, f"must be one of {values}")
        most = f"must lie in [0, {1 / dt if dt else 0:g}], from 0 to 1/dt"
        require(0 < dt <= 0.5, "dt", dt, "must lie in (0, 0.5]")
        require(0 <= dt * epsilon <= 1, "epsilon", epsilon, most)
        require(0 < rho <= 1, "rho", rho, "must lie in (0, 1]")
        require(0 < truncation < math.inf, "truncation", truncation, "must be positive, in pixels")
        require(inner_steps >= 1, "inner_steps", inner_steps, "must be at least 1")
        positive = temperature is None or 0 < temperature < math.inf
        require(positive, "temperature", temperature, "must be positive, or null")
        require(0 < gain < math.inf, "gain", gain, "must be positive")
        self.likelihood = likelihood
        self.epsilon, self.rho, self.truncation = epsilon, rho, truncation
        self.dt, self.inner_steps = dt, inner_steps
        self.normalize: Normalization = normalize
        # The logarithms are learnt, so that the numbers stay positive.
        self.log_temperature: nn.Parameter | None = None
        self.log_gain: nn.Parameter | None = None
        if temperature is None:
            self.log_gain = nn.Parameter(torch.tensor(math.log(gain)))
        else:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> Tensor | None:
        """Return T if the refined scores are φ/T, else None."""
        return None if self.log_temperature is None else self.log_temperature.exp()

    def forward(
        self,
        logits: Tensor,
        image: Tensor | None = None,
        features: Tensor | None = None,
        feature_stride: int = 1,
    ) -> Tensor:
        """Return the refined scores, B×C×H×W in float32 or wider.

        Args:
            logits: B×C×H×W scores.
            image: B×3×H×W, for the likelihood ``colour``.
            features: B×D×h×w (see :class:`~lsseg.models.SegOutput`), for the likelihood ``features``.
            feature_stride: Pixels per feature along each axis.

        Raises:
            InputError: If the image or the features that the likelihood needs are missing.
        """
        before, after = self.levels(logits, image, features, feature_stride)
        if self.log_temperature is not None:
            return scaled(after, (-self.log_temperature).exp())
        assert self.log_gain is not None
        return logits + scaled(after - before, self.log_gain.exp())

    def levels(
        self,
        logits: Tensor,
        image: Tensor | None = None,
        features: Tensor | None = None,
        feature_stride: int = 1,
    ) -> Levels:
        """Return the level-set functions before and after the evolution; the arguments are those of ``forward``."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = wide(logits)
            log_scores = torch.log_softmax(logits, 1)
            scores = log_scores.exp()
            region = regions(largest_class(logits), logits.shape[1])
            phi = partition_level_sets(scores, region, self.truncation)
            log_f = self._log_likelihood(log_scores, scores, region, image, features, feature_stride)
            evolved = multiphase_evolve(
                phi,
                log_f,
                self.epsilon,
                self.rho,
                self.dt,
                self.inner_steps,
                normalize=self.normalize,
                present=region.flatten(2).any(2),
            )
            return Levels(phi, evolved)

    def _log_likelihood(
        self,
        log_scores: Tensor,
        scores: Tensor,
        region: Tensor,
        image: Tensor | None,
        features: Tensor | None,
        feature_stride: int,
    ) -> Tensor:
        if self.likelihood == "confidence":
            return log_scores
        values, stride = (image, 1) if self.likelihood == "colour" else (features, feature_stride)
        if values is None:
            what = "the image" if self.likelihood == "colour" else "a network that returns its features"
            raise ArgumentError(f"likelihood {self.likelihood!r} needs {what}")
        return gaussian_log_posterior(enlarged(values.to(scores.dtype), stride, scores), scores, region)


def scaled(phi: Tensor, factor: Tensor) -> Tensor:
    """Multiply φ by a learnt number."""
    return _Scale.apply(phi, factor)


class _Scale(torch.autograd.Function):
    """Multiplies φ by a learnt number, without the two tensors of φ's size that autograd's backward pass would make."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(phi, factor)
        return phi * factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        phi, factor = ctx.saved_tensors
        return gradient * factor, torch.dot(gradient.reshape(-1), phi.reshape(-1)).to(factor.dtype)


def enlarged(values: Tensor, stride: int, like: Tensor) -> Tensor:
    """Interpolate features of a stride to the pixels of ``like``; each feature lies in the middle of its pixels."""
    if stride > 1:
        values = F.interpolate(values, scale_factor=stride, mode="bilinear", align_corners=False)
    return values[..., : like.shape[-2], : like.shape[-1]]
