"""The Chan-Vese refinement head on a semantic network (after Homayounfar 2020: an object is one class in one image).

Legend: B images, C classes, K of them evolve, D features, N iterations, H×W pixels; h×w of the evolution's grid.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.errors import InputError, require
from lsseg.functional import Delta, chan_vese_evolve
from lsseg.functional.heaviside import arctan_step
from lsseg.models.hyperparameters import Hyperparameters, Numbers
from lsseg.models.multiphase import enlarged
from lsseg.models.output import SegOutput, Step, checked
from lsseg.models.smp import SmpNet

# φ of all classes compete as φ/T; with T the width of the step function in the loss.
TEMPERATURE = 0.1


class Parts(NamedTuple):
    """What an evolution starts from.

    Attributes:
        phi: φ⁰ of every class, B×C×H×W in (-1, 1).
        classes: B×K, which of them evolve.
        start: φ⁰ of those on the grid, (B·K)×h×w.
        features: B×D×h'×w', of the network's stride where that is the coarser one.
        numbers: Hyperparameters of the B·K objects.
    """

    phi: Tensor
    classes: Tensor
    start: Tensor
    features: Tensor
    numbers: Numbers


class ChanVeseNet(nn.Module):
    """A network whose scores become signed distances, refined by N unrolled Chan-Vese iterations on learnt features.

    The network's own C-channel head, through tanh, regresses φ⁰; a second head on the decoder's features makes the D
    channels F that all classes of an image share. Labels are by competition of φᴺ: the scores are φᴺ / 0.1.

    Args:
        num_classes: C.
        network: Makes the network for C classes, anything that returns ``SegOutput`` with features; null is
            :class:`~lsseg.models.SmpNet`. In YAML a class path and its arguments without ``num_classes``.
        steps: N ≥ 0; 3 in the paper; 0 leaves the evolution out.
        features: D; 64 in the paper.
        stride: Pixels per cell of the evolution's grid, a power of 2; null is that of the network's features.
        hyperparameters: ``adaptive``, of every class in every image; or ``global``, one learnt set.
        detach_init: Whether the final prediction's gradient stops at φ⁰.
        max_classes: K: at most so many classes of an image evolve, those with the largest φ⁰ somewhere (in training
            those of the truth first); the others keep φ⁰.
        delta: Of the evolution: ``printed`` or ``derivative``.
        eta: Of the evolution: slopes of φ much smaller have no direction.

    Raises:
        InputError: If a value is out of range, or the network returns no features.

    >>> net = ChanVeseNet(3, partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k"), features=8).eval()
    >>> output = net(torch.rand(1, 3, 45, 70))
    >>> output.logits.shape, len(output.steps)
    (torch.Size([1, 3, 45, 70]), 2)
    """

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module] | None = None,
        steps: int = 3,
        features: int = 64,
        stride: int | None = None,
        hyperparameters: Literal["adaptive", "global"] = "adaptive",
        detach_init: bool = False,
        max_classes: int = 16,
        delta: Delta = "printed",
        eta: float = 0.03,
    ) -> None:
        super().__init__()
        key = "model.network"
        require(steps >= 0, f"{key}.steps", steps, "must not be negative")
        require(features >= 1, f"{key}.features", features, "must be at least 1")
        require(stride in (None, 1, 2, 4, 8, 16, 32), f"{key}.stride", stride, "must be 1, 2, 4, 8, 16, 32 or null")
        require(max_classes >= 1, f"{key}.max_classes", max_classes, "must be at least 1")
        known = hyperparameters in ("adaptive", "global")
        require(known, f"{key}.hyperparameters", hyperparameters, "must be adaptive or global")
        require(delta in ("printed", "derivative"), f"{key}.delta", delta, "must be printed or derivative")
        require(eta > 0, f"{key}.eta", eta, "must be positive")
        self.num_classes = num_classes
        self.network = (network or partial(SmpNet))(num_classes)
        self.steps = steps
        self.detach_init = detach_init
        self.max_classes = min(max_classes, num_classes)
        self.delta: Delta = delta
        self.eta = eta
        channels, own_stride = self._features_of_network()
        self.feature_stride = own_stride
        self.stride = stride or own_stride
        if steps:
            self.feature_head = nn.Sequential(
                nn.Conv2d(channels, features, 3, padding=1, bias=False),
                nn.BatchNorm2d(features),
                nn.ReLU(inplace=True),
                nn.Conv2d(features, features, 1),
            )
            self.hyperparameters = Hyperparameters(channels, steps, hyperparameters == "adaptive")

    def forward(self, image: Tensor, present: Tensor | None = None) -> SegOutput:
        """Scores of a B×3×H×W image with values in [0, 1]: the final ones, and as steps those of φ⁰ and φᴺ.

        Args:
            image: B×3×H×W.
            present: B×C bool, classes that evolve before all others.
        """
        parts = self.parts(image, present)
        first = Step(parts.phi / TEMPERATURE)
        if not self.steps:
            return SegOutput(first.logits, (first,))
        evolved = self._evolved(parts.start, parts.features, parts.numbers)
        last = Step(self._refined(parts, evolved) / TEMPERATURE)
        return SegOutput(last.logits, (first, last))

    def evolution(self, image: Tensor) -> list[Tensor]:
        """Scores from φ⁰ and after every iteration, N + 1 of B×C×H×W."""
        parts = self.parts(image)
        if not self.steps:
            return [parts.phi / TEMPERATURE]
        return [self._refined(parts, phi) / TEMPERATURE for phi in self.history(parts)]

    def history(self, parts: Parts) -> list[Tensor]:
        """φ⁰ and φ after every iteration on the grid, N + 1 of (B·K)×h×w."""
        phi = [parts.start]
        for numbers in parts.numbers.by_step():
            phi.append(self._evolved(phi[-1], parts.features, numbers))
        return phi

    def _evolved(self, phi: Tensor, features: Tensor, numbers: Numbers) -> Tensor:
        coarse = max(1, self.feature_stride // self.stride)
        return chan_vese_evolve(phi, features, *numbers, delta=self.delta, eta=self.eta, stride=coarse)

    def parts(self, image: Tensor, present: Tensor | None = None) -> Parts:
        """φ⁰, features and hyperparameters; with N = 0 nothing but φ⁰ is worth looking at."""
        output = checked(self.network(image), self.network, image, self.num_classes)
        if output.features is None:
            raise InputError(f"model.network.network {type(self.network).__name__} returns no features")
        phi = torch.tanh(output.logits.to(torch.promote_types(output.logits.dtype, torch.float32)))
        if not self.steps:
            nothing = phi.new_empty(0)
            return Parts(phi, nothing, nothing, nothing, Numbers(*[nothing] * 5))
        classes = self._likely(phi, present)
        start = self._on_grid(phi.detach() if self.detach_init else phi, 1)
        start = self._chosen(start, classes)
        decoded = self._on_grid(output.features, output.feature_stride)
        coarse = max(1, output.feature_stride // self.stride)  # cells of the grid in one of the features
        numbers = self.hyperparameters(_pooled(decoded, start, coarse))
        features = self.feature_head(decoded)
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        return Parts(phi, classes, start.flatten(0, 1), wide, numbers)

    def _likely(self, phi: Tensor, present: Tensor | None) -> Tensor:
        if self.max_classes == self.num_classes:
            return torch.arange(self.num_classes, device=phi.device).expand(len(phi), -1)
        score = phi.detach().amax((2, 3))
        if present is not None:
            score = score + 10 * present
        return score.topk(self.max_classes, 1).indices

    def _on_grid(self, values: Tensor, stride: int) -> Tensor:
        """Averages over the cells of the grid of what has a finer stride; a coarser one is left as it is."""
        return _averaged(values, max(1, self.stride // stride))

    def _refined(self, parts: Parts, evolved: Tensor) -> Tensor:
        """φ at full resolution; what the grid does not show of φ⁰ is kept."""
        shape = (*parts.classes.shape, *parts.start.shape[1:])
        phi = parts.phi.detach() if self.detach_init else parts.phi
        if self.stride == 1:
            final = evolved.view(shape)
        else:
            change = (evolved - parts.start).view(shape)
            final = self._chosen(phi, parts.classes) + enlarged(change, self.stride, phi)
        if self.max_classes == self.num_classes:
            return final
        return phi.scatter(1, parts.classes[..., None, None].expand_as(final), final)

    def _chosen(self, values: Tensor, classes: Tensor) -> Tensor:
        """The B×K planes of B×C that evolve."""
        if self.max_classes == self.num_classes:
            return values
        return values.gather(1, classes[..., None, None].expand(-1, -1, *values.shape[2:]))

    def _features_of_network(self) -> tuple[int, int]:
        """Channels and stride of the network's features, from an image that no architecture finds too small."""
        training = self.network.training
        with torch.no_grad():
            output = self.network.eval()(torch.zeros(1, 3, 256, 256))
        self.network.train(training)
        if not isinstance(output, SegOutput) or output.features is None:
            raise InputError(
                f"model.network.network {type(self.network).__name__} must return SegOutput with features for the "
                "Chan-Vese head to work on"
            )
        return output.features.shape[1], output.feature_stride


def _averaged(values: Tensor, factor: int) -> Tensor:
    """Means over cells of factor × factor; at the edge the last row and column are repeated."""
    if factor == 1:
        return values
    height, width = values.shape[-2:]
    padded = F.pad(values, (0, -width % factor, 0, -height % factor), mode="replicate")
    return F.avg_pool2d(padded, factor)


def _pooled(features: Tensor, phi: Tensor, coarse: int) -> Tensor:
    """Means of the features over every class's soft region, (B·K)×E.

    Args:
        features: B×E×h'×w'.
        phi: B×K×h×w.
        coarse: Cells of φ's grid in one of the features, each way.
    """
    with torch.autocast(phi.device.type, enabled=False):  # a sum over an image overflows float16
        share = _averaged(arctan_step(phi, phi.new_tensor(TEMPERATURE)), coarse)
        values, weights = features.to(share.dtype).flatten(2), share.flatten(2)
        return (torch.bmm(weights, values.mT) / weights.sum(2, keepdim=True)).flatten(0, 1)
