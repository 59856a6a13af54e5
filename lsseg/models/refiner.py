"""The Chan-Vese refiner of anybody's masks (Homayounfar 2020, section 4.1); both networks of this package use it.

Legend: M objects, or G groups of M/G that share their features; E channels of what is given, D features, N iterations,
H×W pixels, h×w cells of the features.
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
from lsseg.models.heads import FeatureHead, Hyperparameters, Numbers
from lsseg.models.multiphase import scaled

Given = Literal["probabilities", "logits", "distance"]

# A probability of 0 or 1 has no finite logit.
LEAST = 1e-6
# A mask without a pixel reads its hyperparameters from the mean of everything.
ABSENT = 1e-4


@dataclass(frozen=True)
class Refined:
    """What a refiner has made of masks.

    Attributes:
        start: φ⁰, M×H×W.
        phi: φᴺ, M×H×W.
        logits: The refined scores of a predictor's probabilities or logits, M×H×W; None of distances.
        features: F.
        numbers: The hyperparameters of all objects and iterations.
    """

    start: Tensor
    phi: Tensor
    logits: Tensor | None
    features: Tensor
    numbers: Numbers
    evolve: Callable[[Tensor, Tensor, Numbers], Tensor]

    @property
    def mask(self) -> Tensor:
        """M×H×W bool."""
        return (self.phi if self.logits is None else self.logits) > 0

    @property
    def steps(self) -> list[Tensor]:
        """φ⁰ and φ after every iteration, N + 1 of M×H×W."""
        phi = [self.start]
        for numbers in self.numbers.by_step():
            phi.append(self.evolve(phi[-1], self.features, numbers))
        return phi


class ChanVeseRefiner(nn.Module):
    """Refines a predictor's masks by N unrolled Chan-Vese iterations on features that are learnt for it.

    It trains behind any network that gives masks and features, frozen or not::

        refiner = ChanVeseRefiner(channels=256)
        refined = refiner(probabilities, features)  # M×H×W and M×256×H×W
        refiner.loss(refined, truth).backward()
        refined.mask, refined.steps

    Of probabilities and logits φ⁰ is 2P - 1, and g · (φᴺ - φ⁰), with a learnt g, is added to the logits, so that
    cross-entropy can train them. Of distances φ⁰ is the distance, and φᴺ is taught the true one, as in the paper.

    Features must be learnt. Untrained, on raw colours, the evolution hardly moves good masks (IoU 0.884 → 0.892 of 20
    pedestrians shifted by two pixels), with ideal features it takes them to 1.00. What colours alone can give is
    :func:`~lsseg.functional.chan_vese_segment`.

    Args:
        channels: E, of what is given as features; 3 of an image.
        steps: N ≥ 1; 3 in the paper.
        features: D; 64 in the paper.
        given: What the masks are: ``probabilities`` in [0, 1], ``logits``, or ``distance``: signed distances to the
            contour, positive inside, clipped at some reach and divided by it (:func:`~lsseg.functional.tsdf`).
        learnt_features: Whether a small head of 3×3 convolutions makes F; else what is given is F as it is (D = E).
        hyperparameters: ``adaptive``, of every object, or ``global``, one learnt set.
        stride: Pixels of φ for a cell of the features, each way; F is bilinear in between.
        gain: g at the start.
        truncation: The reach of distances in pixels; 14 in this project's reading of the paper.
        delta: Form of δ in the evolution: ``printed`` or ``derivative``.
        eta: Floor of the gradient's length in the evolution: slopes of φ much smaller have no direction.
        depth: How many 3×3 convolutions the feature head has.
        norm: Whether each of them has a batch-norm.
        enlarge: Factor by which the feature head enlarges its map.
        pooled: Channels of what an object's hyperparameters are read from; null: E, the means over its soft mask.

    Raises:
        ValueError: If a value is out of range.

    >>> refiner = ChanVeseRefiner(channels=3, features=8)
    >>> refined = refiner(torch.rand(2, 24, 32), torch.rand(2, 3, 24, 32))
    >>> refined.phi.shape, refined.mask.dtype, len(refined.steps)
    (torch.Size([2, 24, 32]), torch.bool, 4)
    """

    rates = ("log_gain",)  # parameters with a learning rate of their own and no weight decay

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
            # Its logarithm is what is learnt, so that it stays positive.
            self.log_gain = nn.Parameter(torch.tensor(math.log(gain)))

    def forward(self, masks: Tensor, features: Tensor) -> Refined:
        """Refine masks.

        Args:
            masks: M×H×W, of the kind that ``given`` says.
            features: M×E×h×w, h = ⌈H/stride⌉ and w = ⌈W/stride⌉; or G×E×h×w where M is a multiple of G: then the first
                M/G masks share the first features, and so on. Images where E is 3.

        Raises:
            ValueError: If shapes do not fit, or (on a CPU) probabilities do not lie in [0, 1].
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
        """F."""
        return features if self.feature_head is None else wide(self.feature_head(features))

    def numbers(self, pooled: Tensor) -> Numbers:
        """Hyperparameters of M objects from M vectors."""
        numbers: Numbers = self.hyperparameters(pooled)
        return numbers

    def evolve(self, phi: Tensor, features: Tensor, numbers: Numbers, stride: int | None = None) -> Tensor:
        """φᴺ of φ⁰."""
        stride = stride or self.stride
        return chan_vese_evolve(phi, features, *numbers, delta=self.delta, eta=self.eta, stride=stride)

    def loss(self, refined: Refined, truth: Tensor, valid: Tensor | None = None) -> Tensor:
        """What a refiner trains with: cross-entropy of the refined scores, or the paper's loss of distances.

        Args:
            refined: What :meth:`forward` returned.
            truth: M×H×W, bool, or numbers of which those from ½ on are inside.
            valid: M×H×W bool: pixels that count; None is all of them.

        Returns:
            A scalar, the mean over valid pixels; 0 where there are none.
        """
        inside = truth if truth.dtype == torch.bool else truth >= 0.5
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
        """A refiner that was saved, in evaluation mode.

        Raises:
            ValueError: If the file holds none.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "chan_vese_refiner" not in content:
            raise ValueError("the file holds no Chan-Vese refiner: ChanVeseRefiner.save writes one")
        refiner = cls(**content["chan_vese_refiner"])
        refiner.load_state_dict(content["state_dict"])
        return refiner.eval()

    def extra_repr(self) -> str:
        """What is given."""
        return f"{self.channels}, given={self.given!r}, stride={self.stride}"

    def _check(self, masks: Tensor, features: Tensor) -> None:
        if not self.whole:
            raise ValueError("a refiner with enlarge or pooled is for networks that call embed, numbers and evolve")
        if masks.ndim != 3 or not masks.is_floating_point():
            raise ValueError(f"expected floating masks M×H×W, not {tuple(masks.shape)} of {masks.dtype}")
        cells = tuple(-(-side // self.stride) for side in masks.shape[1:])
        if features.ndim != 4 or features.shape[1:] != (self.channels, *cells):
            expected = f"M×{self.channels}×{cells[0]}×{cells[1]}"
            raise ValueError(f"expected features {expected} (stride {self.stride}), not {tuple(features.shape)}")
        if len(masks) % max(1, len(features)):
            raise ValueError(f"{len(masks)} masks are no multiple of {len(features)} features")
        if self.given == "probabilities" and masks.device.type == "cpu" and masks.numel():
            low, high = masks.detach().aminmax()
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"probabilities lie in [0, 1], not in [{low:.3g}, {high:.3g}]: say given='logits' or 'distance'"
                )


OPTIONS = frozenset(ChanVeseRefiner.__init__.__annotations__) - {"return"}


def wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _logit(probabilities: Tensor) -> Tensor:
    return torch.logit(wide(probabilities), eps=LEAST)


def averaged(values: Tensor, factor: int) -> Tensor:
    """Means over cells of factor × factor; at the edge the last row and column are repeated."""
    if factor == 1:
        return values
    height, width = values.shape[-2:]
    padded = F.pad(values, (0, -width % factor, 0, -height % factor), mode="replicate")
    return F.avg_pool2d(padded, factor)


def soft_means(features: Tensor, share: Tensor, coarse: int) -> Tensor:
    """Means of the features over the soft region of every object, M×E.

    Args:
        features: G×E×h×w.
        share: How much of each pixel is an object's, M×H×W.
        coarse: Pixels in one cell of the features, each way.
    """
    if not len(share):
        return wide(features).new_zeros(0, features.shape[1])
    with torch.autocast(share.device.type, enabled=False):  # a sum over an image overflows float16
        weights = averaged(share.view(len(features), -1, *share.shape[1:]), coarse).flatten(2)
        values = features.to(weights.dtype).flatten(2)
        return (torch.bmm(weights, values.mT) / weights.sum(2, keepdim=True)).flatten(0, 1)
