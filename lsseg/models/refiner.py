"""Refines masks of any source by Chan-Vese evolution (Homayounfar 2020, section 4.1).

ChanVeseNet and LevelSetRCNN use this refiner.

Legend: M objects, or G groups of M/G objects that share their features; E channels of the given features, D features,
N iterations, H×W pixels, h×w cells of the features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.functional import Delta, chan_vese_evolve, tsdf, tsdf_loss
from lsseg.functional.blocks import wide
from lsseg.models.heads import FeatureHead, Hyperparameters, Numbers
from lsseg.models.multiphase import scaled

Given = Literal["probabilities", "logits", "distance"]

# Probabilities are clipped by this much, because 0 and 1 have no finite logit.
LEAST = 1e-6
# This is added to every pixel's weight, so that an empty mask reads its hyperparameters from the mean of all pixels.
ABSENT = 1e-4


@dataclass(frozen=True)
class Refined:
    """Holds the masks that a refiner has refined.

    Attributes:
        start: φ⁰, M×H×W.
        phi: φᴺ, M×H×W.
        logits: Refined scores, M×H×W, if probabilities or logits were given; None if distances were given.
        features: F, the features of the evolution.
        numbers: Hyperparameters of all objects and iterations.
        evolve: Function of φ, F and hyperparameters that returns φ after their iterations.
    """

    start: Tensor
    phi: Tensor
    logits: Tensor | None
    features: Tensor
    numbers: Numbers
    evolve: Callable[[Tensor, Tensor, Numbers], Tensor]

    @property
    def mask(self) -> Tensor:
        """Return the refined masks, M×H×W bool."""
        return (self.phi if self.logits is None else self.logits) > 0

    @property
    def steps(self) -> list[Tensor]:
        """Return φ⁰ and φ after every iteration, N + 1 tensors of M×H×W."""
        phi = [self.start]
        for numbers in self.numbers.by_step():
            phi.append(self.evolve(phi[-1], self.features, numbers))
        return phi


class ChanVeseRefiner(nn.Module):
    """Refines a predictor's masks by N unrolled Chan-Vese iterations on features that are learnt for this purpose.

    It can be trained behind any network, frozen or not, that gives masks and features::

        refiner = ChanVeseRefiner(channels=256)
        refined = refiner(probabilities, features)  # M×H×W and M×256×H×W
        refiner.loss(refined, truth).backward()
        refined.mask, refined.steps

    For probabilities P and logits, φ⁰ is 2P - 1, and g · (φᴺ - φ⁰) with a learnt g is added to the logits, so that
    cross-entropy can train them. For distances, φ⁰ is the given distance, and φᴺ learns the true one, as in the paper.

    The features must be learnt. On raw colours, without training, the evolution hardly moves good masks: for 20
    pedestrians shifted by two pixels the IoU goes from 0.884 to 0.892. With ideal features it goes to 1.00. For colours
    alone there is :func:`~lsseg.functional.chan_vese_segment`.

    Args:
        channels: Channels of the given features, E; 3 for an image.
        steps: Number N ≥ 1 of iterations; 3 in the paper.
        features: Number D of features; 64 in the paper.
        given: Kind of the masks: ``probabilities`` in [0, 1], ``logits``, or ``distance``: signed distances to the
            contour, positive inside, clipped at some reach and divided by it (:func:`~lsseg.functional.tsdf`).
        learnt_features: Whether a small head of 3×3 convolutions computes F; else F is the given features (D = E).
        hyperparameters: ``adaptive``, one set for every object; or ``global``, one learnt set for all.
        stride: Pixels of φ per cell of the features along each axis; F is bilinear in between.
        gain: g at the start of training.
        truncation: Reach of the distances in pixels; 14 in this project's reading of the paper.
        delta: Form of δ in the evolution: ``printed`` as in eq. 4, or the ``derivative`` of the step function.
        eta: η, floor of the length of φ's gradient in the evolution; much smaller gradients have no direction.
        depth: Number of 3×3 convolutions in the feature head.
        norm: Whether batch-norm follows each of these convolutions.
        enlarge: Factor by which the feature head enlarges its map; :meth:`forward` needs 1.
        pooled: Length of the vector from which an object's hyperparameters are read; null is E, for the means over its
            soft mask, which :meth:`forward` needs.

    Raises:
        ValueError: If a value is out of range.

    >>> refiner = ChanVeseRefiner(channels=3, features=8)
    >>> refined = refiner(torch.rand(2, 24, 32), torch.rand(2, 3, 24, 32))
    >>> refined.phi.shape, refined.mask.dtype, len(refined.steps)
    (torch.Size([2, 24, 32]), torch.bool, 4)
    """

    rates = ("log_gain",)  # these have their own learning rate and no weight decay

    def __init__(
        self,
        channels: int,
        steps: int = 3,
        features: int = 64,
        given: Given = "probabilities",
        learnt_features: bool = True,
        hyperparameters: Literal["adaptive", "global"] = "adaptive",
        stride: int = 1,
        gain: float = 10.0,
        truncation: float = 14.0,
        delta: Delta = "printed",
        eta: float = 0.03,
        depth: int = 2,
        norm: bool = False,
        enlarge: int = 1,
        pooled: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"channels": channels, "steps": steps, "features": features, "stride": stride, "depth": depth}
        for name, count in {**counts, "enlarge": enlarge, "pooled": channels if pooled is None else pooled}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        for name, number in (("gain", gain), ("truncation", truncation), ("eta", eta)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive, not {number}")
        choices = (("given", given, Given), ("hyperparameters", hyperparameters, Literal["adaptive", "global"]))
        for name, value, known in (*choices, ("delta", delta, Delta)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {value!r}")
        self.options = {key: value for key, value in locals().items() if key in OPTIONS}
        self.channels, self.given, self.stride, self.truncation = channels, given, stride, truncation
        self.delta: Delta = delta
        self.eta = eta
        self.feature_head = FeatureHead(channels, features, depth, norm, enlarge) if learnt_features else None
        self.whole = enlarge == 1 and pooled in (None, channels)
        self.hyperparameters = Hyperparameters(pooled or channels, steps, hyperparameters == "adaptive")
        if given != "distance":
            # The logarithm of the gain is learnt, so that the gain stays positive.
            self.log_gain = nn.Parameter(torch.tensor(math.log(gain)))

    def forward(self, masks: Tensor, features: Tensor) -> Refined:
        """Refine masks.

        Args:
            masks: M×H×W, of the kind ``given``.
            features: M×E×h×w with h = ⌈H/stride⌉ and w = ⌈W/stride⌉; or G×E×h×w where M is a multiple of G: then the
                first M/G masks share the first features, and so on. With E = 3 they may be images.

        Raises:
            ValueError: If shapes do not fit, or probabilities do not lie in [0, 1] (checked on a CPU only).
        """
        self._check(masks, features)
        logits = None
        if self.given == "distance":
            start = masks
        else:
            logits = _logit(masks) if self.given == "probabilities" else masks
            start = 2 * torch.sigmoid(logits) - 1
        numbers = self.numbers(soft_means(features, (start + 1) / 2 + ABSENT, self.stride))
        embedded = self.embed(features)
        phi = self.evolve(start, embedded, numbers)
        if logits is not None:
            logits = logits + scaled(phi - start, self.log_gain.exp())
        return Refined(start, phi, logits, embedded, numbers, self.evolve)

    def embed(self, features: Tensor) -> Tensor:
        """Return F, the features of the evolution, for the given features."""
        return features if self.feature_head is None else wide(self.feature_head(features))

    def numbers(self, pooled: Tensor) -> Numbers:
        """Return the hyperparameters of M objects from M vectors."""
        numbers: Numbers = self.hyperparameters(pooled)
        return numbers

    def evolve(self, phi: Tensor, features: Tensor, numbers: Numbers, stride: int | None = None) -> Tensor:
        """Evolve φ⁰ to φᴺ on features F by the iterations of the given hyperparameters."""
        stride = stride or self.stride
        return chan_vese_evolve(phi, features, *numbers, delta=self.delta, eta=self.eta, stride=stride)

    def loss(self, refined: Refined, truth: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the training loss: cross-entropy of the refined scores, or the paper's loss of distances.

        Args:
            refined: Output of :meth:`forward`.
            truth: True masks, M×H×W; bool, or numbers where values of at least ½ are inside.
            valid: Pixels that count, M×H×W bool; None counts all pixels.

        Returns:
            A scalar, the mean over valid pixels; 0 if there are none. NaN if the truth of a valid pixel is NaN.
        """
        loss = self._loss(refined, truth if truth.dtype == torch.bool else truth >= 0.5, valid)
        if not truth.is_floating_point():
            return loss
        lost = truth.isnan() if valid is None else truth.isnan() & valid
        return torch.where(lost.any(), torch.nan, loss)  # An error would have to wait for a GPU.

    def _loss(self, refined: Refined, inside: Tensor, valid: Tensor | None) -> Tensor:
        if refined.logits is None:
            target = tsdf(inside, self.truncation).to(refined.phi.dtype)
            return tsdf_loss(refined.phi, target, inside, valid)
        loss = F.binary_cross_entropy_with_logits(refined.logits, inside.to(refined.logits.dtype), reduction="none")
        if valid is None:
            return loss.sum() / max(1, loss.numel())
        return torch.where(valid, loss, 0).sum() / valid.sum().clamp_min(1)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the options and the weights into one file, for :meth:`load` and ``lsseg refine``."""
        torch.save({"chan_vese_refiner": self.options, "state_dict": self.state_dict()}, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "ChanVeseRefiner":
        """Return a saved refiner, in evaluation mode.

        Raises:
            ValueError: If the file holds no refiner.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "chan_vese_refiner" not in content:
            raise ValueError("the file has no Chan-Vese refiner: expected a file written by ChanVeseRefiner.save")
        refiner = cls(**content["chan_vese_refiner"])
        refiner.load_state_dict(content["state_dict"])
        return refiner.eval()

    def extra_repr(self) -> str:
        """Return the channels, the kind of the masks and the stride as text."""
        return f"{self.channels}, given={self.given!r}, stride={self.stride}"

    def _check(self, masks: Tensor, features: Tensor) -> None:
        if not self.whole:
            raise ValueError(
                "a refiner with enlarge or pooled cannot be called: use its methods embed, numbers and evolve"
            )
        if masks.ndim != 3 or not masks.is_floating_point():
            raise ValueError(f"expected floating masks M×H×W, not {tuple(masks.shape)} of {masks.dtype}")
        cells = tuple(-(-side // self.stride) for side in masks.shape[1:])
        if features.ndim != 4 or features.shape[1:] != (self.channels, *cells):
            expected = f"M×{self.channels}×{cells[0]}×{cells[1]}"
            raise ValueError(f"expected features {expected} (stride {self.stride}), not {tuple(features.shape)}")
        if len(masks) % max(1, len(features)):
            raise ValueError(
                f"the number of masks must be a multiple of the number of features, {len(features)}, not {len(masks)}"
            )
        if self.given == "probabilities" and masks.device.type == "cpu" and masks.numel():
            low, high = masks.detach().aminmax()
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"probabilities must lie in [0, 1], not in [{low:.3g}, {high:.3g}]: "
                    "set given='logits' or 'distance'"
                )


OPTIONS = frozenset(ChanVeseRefiner.__init__.__annotations__) - {"return"}


def _logit(probabilities: Tensor) -> Tensor:
    return torch.logit(wide(probabilities), eps=LEAST)


def averaged(values: Tensor, factor: int) -> Tensor:
    """Return the means over cells of factor × factor values; at the edge the last row and column are repeated."""
    if factor == 1:
        return values
    height, width = values.shape[-2:]
    padded = F.pad(values, (0, -width % factor, 0, -height % factor), mode="replicate")
    return F.avg_pool2d(padded, factor)


def soft_means(features: Tensor, share: Tensor, coarse: int) -> Tensor:
    """Return the means of the features over the soft region of every object, M×E.

    Args:
        features: G×E×h×w.
        share: Share of each pixel that belongs to an object, M×H×W.
        coarse: Pixels per cell of the features along each axis.
    """
    if not len(share):
        return wide(features).new_zeros(0, features.shape[1])
    with torch.autocast(share.device.type, enabled=False):  # a sum over an image overflows float16
        weights = averaged(share.view(len(features), -1, *share.shape[1:]), coarse).flatten(2)
        values = features.to(weights.dtype).flatten(2)
        return (torch.bmm(weights, values.mT) / weights.sum(2, keepdim=True)).flatten(0, 1)
