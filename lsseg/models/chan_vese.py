"""Refines the scores of a semantic network by Chan-Vese evolution (after Homayounfar 2020).

Legend: B images, C classes of which K evolve, D features, N iterations, H×W pixels, h×w cells of the evolution's grid.
An object of the paper is here one class in one image.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lsseg.errors import ArgumentError, require
from lsseg.functional import Delta
from lsseg.functional.blocks import wide
from lsseg.functional.heaviside import arctan_step
from lsseg.models.heads import SMALL, FeatureHead, Hyperparameters, Numbers
from lsseg.models.multiphase import enlarged, scaled
from lsseg.models.output import SegOutput, Step, checked, made
from lsseg.models.refiner import ABSENT, ChanVeseRefiner, averaged, soft_means
from lsseg.models.smp import SmpNet
from lsseg.models.state import takes_relatives

Initial = Literal["scores", "distances"]
Refine = Literal["chan_vese", "convolution", "none"]

# Where φ is a distance, the scores are φ/T. T equals the width of the step function in the loss.
TEMPERATURE = 0.1


class Parts(NamedTuple):
    """Holds what an evolution starts from.

    Attributes:
        logits: Scores before the evolution, B×C×H×W.
        phi: φ⁰ of every class, B×C×H×W in (-1, 1).
        classes: Indices of the classes that evolve, B×K.
        start: φ⁰ of these classes on the grid, (B·K)×h×w.
        features: Features F, B×D×h'×w', at the coarser of two strides: the grid's and the network's.
        numbers: Hyperparameters of the B·K objects; empty where a convolution replaces the evolution.
    """

    logits: Tensor
    phi: Tensor
    classes: Tensor
    start: Tensor
    features: Tensor
    numbers: Numbers


class ChanVeseNet(nn.Module):
    """Refines the scores of a network by N unrolled Chan-Vese iterations on learnt features.

    With ``initial: scores`` the change of φ by the evolution is added to the network's scores:

        φ⁰ = 2 softmax(logits) - 1,    refined scores = logits + g · (φᴺ - φ⁰),    g learnt

    Cross-entropy trains the scores before and after the evolution. With ``initial: distances`` the network regresses
    truncated signed distances instead, as in the paper: φ⁰ = tanh(slope · logits), and the scores are φ / 0.1. A second
    head computes D features F from the network's features. All classes of an image share F.

    Args:
        num_classes: Number of classes, C.
        network: A network that returns ``SegOutput`` with features, or a callable that makes one for C classes; null
            is :class:`~lsseg.models.SmpNet`. In YAML give a class path and its arguments without ``num_classes``.
        initial: What φ⁰ is made of: ``scores`` or ``distances``.
        refine: ``chan_vese``; ``convolution``, the control, which replaces the evolution by 1×1 convolutions with as
            many weights on the same features and φ⁰; or ``none``, which leaves the network as it is.
        steps: Number N ≥ 0 of iterations, 3 in the paper; 0 leaves the evolution out.
        features: Number D of features; 64 in the paper.
        stride: Side of a cell of the evolution's grid in pixels, a power of 2; null is the stride of the network's
            features.
        hyperparameters: ``adaptive``, one set for every class in every image; or ``global``, one learnt set for all.
        detach_init: Whether the gradient of the final prediction stops at φ⁰.
        max_classes: K, the largest number of classes of an image that evolve: those whose φ⁰ has the largest maximum
            (in training the classes of the truth come first). Other classes keep their scores. ``convolution`` changes
            all classes.
        gain: g at the start of training, with ``initial: scores``.
        slope: Slope of tanh in φ⁰, with ``initial: distances``. At 1, as in the first version of this head, many
            pixels soon reach ±1, where tanh passes no gradient. At 0.1 distances need large logits, which take long to
            learn.
        delta: Form of δ in the evolution: ``printed`` as in eq. 4, or the ``derivative`` of the step function.
        eta: η, floor of the length of φ's gradient in the evolution; much smaller gradients have no direction.

    Raises:
        InputError: If a value is out of range, or the network returns no features.

    >>> net = ChanVeseNet(3, partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k"), features=8).eval()
    >>> output = net(torch.rand(1, 3, 45, 70))
    >>> output.logits.shape, len(output.steps)
    (torch.Size([1, 3, 45, 70]), 2)
    """

    rates = ("log_gain",)  # these have their own learning rate and no weight decay

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module] | None = None,
        initial: Initial = "scores",
        refine: Refine = "chan_vese",
        steps: int = 3,
        features: int = 64,
        stride: int | None = None,
        hyperparameters: Literal["adaptive", "global"] = "adaptive",
        detach_init: bool = False,
        max_classes: int = 16,
        gain: float = 10.0,
        slope: float = 0.3,
        delta: Delta = "printed",
        eta: float = 0.03,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("initial", initial, get_args(Initial)),
            ("refine", refine, get_args(Refine)),
            ("hyperparameters", hyperparameters, ("adaptive", "global")),
            ("delta", delta, get_args(Delta)),
        ):
            require(value in known, name, value, f"must be one of {', '.join(known)}")
        require(steps >= 0, "steps", steps, "must not be negative")
        require(features >= 1, "features", features, "must be at least 1")
        require(stride in (None, 1, 2, 4, 8, 16, 32), "stride", stride, "must be 1, 2, 4, 8, 16, 32 or null")
        require(max_classes >= 1, "max_classes", max_classes, "must be at least 1")
        for name, number in (("gain", gain), ("slope", slope), ("eta", eta)):
            require(0 < number < math.inf, name, number, "must be positive")
        self.num_classes = num_classes
        self.network = made(network or partial(SmpNet), num_classes)
        self.initial, self.refine = initial, refine if steps else "none"
        self.steps, self.slope = steps, slope
        self.detach_init = detach_init
        self.max_classes = min(max_classes, num_classes)
        channels, own_stride = self._features_of_network()
        self.feature_stride = own_stride
        self.stride = stride or own_stride
        if self.refine == "chan_vese":
            self.refiner = ChanVeseRefiner(
                channels, steps, features, "distance", True, hyperparameters, delta=delta, eta=eta, depth=1, norm=True
            )
        elif self.refine == "convolution":
            self.feature_head = FeatureHead(channels, features, depth=1, norm=True)
            numbers = Hyperparameters(channels, self.steps, hyperparameters == "adaptive")
            self.block = pointwise_block(features, num_classes, sum(p.numel() for p in numbers.parameters()))
        if self.refine != "none" and initial == "scores":
            # The logarithm of the gain is learnt, so that the gain stays positive.
            self.log_gain = nn.Parameter(torch.tensor(math.log(gain)))
        takes_relatives(self)

    def forward(self, image: Tensor, present: Tensor | None = None) -> SegOutput:
        """Return the final scores of an image, and as steps the scores before and after the evolution.

        Args:
            image: B×3×H×W with values in [0, 1].
            present: B×C bool, the classes that are chosen first to evolve.
        """
        output = self._output(image)
        first = Step(self._first_scores(output.logits))
        if self.refine == "none":
            return SegOutput(first.logits, (first,), auxiliary=output.auxiliary)
        parts = self._parts(output, present)
        change = self._convolved(parts) if self.refine == "convolution" else self._change(parts, self._final(parts))
        last = Step(self._refined(parts, change))
        return SegOutput(last.logits, (first, last), auxiliary=output.auxiliary)

    def evolution(self, image: Tensor) -> list[Tensor]:
        """Return the scores before the evolution and after every iteration, N + 1 tensors of B×C×H×W.

        Without an evolution, return the scores of all steps of the output.
        """
        if self.refine != "chan_vese":
            return [step.logits for step in self(image).steps]
        parts = self.parts(image)
        return [self._refined(parts, self._change(parts, phi)) for phi in self.history(parts)]

    def history(self, parts: Parts) -> list[Tensor]:
        """Return φ⁰ and φ after every iteration on the grid, N + 1 tensors of (B·K)×h×w."""
        phi = [parts.start]
        for numbers in parts.numbers.by_step():
            phi.append(self._evolved(phi[-1], parts.features, numbers))
        return phi

    def parts(self, image: Tensor, present: Tensor | None = None) -> Parts:
        """Return what the evolution of an image starts from."""
        return self._parts(self._output(image), present)

    def _output(self, image: Tensor) -> SegOutput:
        output = checked(self.network(image), self.network, image, self.num_classes)
        if output.features is None:
            raise ArgumentError(f"network {type(self.network).__name__} returns no features")
        return output._replace(logits=wide(output.logits))

    def _first_phi(self, logits: Tensor) -> Tensor:
        if self.initial == "scores":
            return 2 * torch.softmax(logits, 1) - 1
        return torch.tanh(self.slope * logits)

    def _first_scores(self, logits: Tensor) -> Tensor:
        return logits if self.initial == "scores" else self._first_phi(logits) / TEMPERATURE

    def _parts(self, output: SegOutput, present: Tensor | None) -> Parts:
        assert output.features is not None
        phi = self._first_phi(output.logits)
        classes = self._likely(phi, present)
        start = self._chosen(self._on_grid(phi.detach() if self.detach_init else phi, 1), classes)
        decoded = self._on_grid(output.features, output.feature_stride)
        start = start.flatten(0, 1)
        if self.refine == "convolution":
            nothing = Numbers(*[phi.new_empty(0)] * 5)
            return Parts(output.logits, phi, classes, start, wide(self.feature_head(decoded)), nothing)
        numbers = self.refiner.numbers(soft_means(decoded, self._share(start), self._coarse))
        return Parts(output.logits, phi, classes, start, self.refiner.embed(decoded), numbers)

    @property
    def _coarse(self) -> int:
        """Return the number of grid cells per feature along each axis."""
        return max(1, self.feature_stride // self.stride)

    def _share(self, phi: Tensor) -> Tensor:
        """Return the share of every class in each cell, the weight of the cell's features in the class's mean."""
        if self.initial == "scores":
            return (phi + 1) / 2 + ABSENT
        return arctan_step(phi, phi.new_full((), TEMPERATURE))

    def _final(self, parts: Parts) -> Tensor:
        return self._evolved(parts.start, parts.features, parts.numbers)

    def _evolved(self, phi: Tensor, features: Tensor, numbers: Numbers) -> Tensor:
        return self.refiner.evolve(phi, features, numbers, self._coarse)

    def _likely(self, phi: Tensor, present: Tensor | None) -> Tensor:
        if self._all_evolve:
            return torch.arange(self.num_classes, device=phi.device).expand(len(phi), -1)
        score = phi.detach().amax((2, 3))
        if present is not None:
            score = score + 10 * present
        return score.topk(self.max_classes, 1).indices

    @property
    def _all_evolve(self) -> bool:
        return self.refine == "convolution" or self.max_classes == self.num_classes

    def _on_grid(self, values: Tensor, stride: int) -> Tensor:
        """Average values over the cells of the grid; leave values of a coarser stride than the grid's as they are."""
        return averaged(values, max(1, self.stride // stride))

    def _change(self, parts: Parts, evolved: Tensor) -> Tensor:
        """Return the change of φ by the evolution, B×C×H×W; it is 0 for classes that do not evolve."""
        change = (evolved - parts.start).view(*parts.classes.shape, *parts.start.shape[1:])
        change = enlarged(change, self.stride, parts.phi)
        if self._all_evolve:
            return change
        index = parts.classes[..., None, None].expand_as(change)
        return torch.zeros_like(parts.phi).scatter(1, index, change)

    def _convolved(self, parts: Parts) -> Tensor:
        """Return the change of φ by the control, which replaces the evolution."""
        start = parts.start.view(*parts.classes.shape, *parts.start.shape[1:])
        features = enlarged(parts.features, self._coarse, start)
        return enlarged(self.block(torch.cat([features, start], 1)), self.stride, parts.phi)

    def _refined(self, parts: Parts, change: Tensor) -> Tensor:
        """Return the refined scores at full resolution; details of the first scores that the grid lacks are kept."""
        if self.initial == "scores":
            logits = parts.logits.detach() if self.detach_init else parts.logits
            return logits + scaled(change, self.log_gain.exp())
        phi = parts.phi.detach() if self.detach_init else parts.phi
        return (phi + change) / TEMPERATURE

    def _chosen(self, values: Tensor, classes: Tensor) -> Tensor:
        """Return the B×K planes that evolve, out of B×C."""
        if self._all_evolve:
            return values
        return values.gather(1, classes[..., None, None].expand(-1, -1, *values.shape[2:]))

    def _features_of_network(self) -> tuple[int, int]:
        """Run the network on an image large enough for any architecture; return its features' channels and stride."""
        training = self.network.training
        with torch.no_grad():
            output = self.network.eval()(torch.zeros(1, 3, 256, 256))
        self.network.train(training)
        if not isinstance(output, SegOutput) or output.features is None:
            raise ArgumentError(
                f"network {type(self.network).__name__} must return SegOutput with features for the "
                "Chan-Vese head to work on"
            )
        return output.features.shape[1], output.feature_stride


def pointwise_block(features: int, num_classes: int, weights: int) -> nn.Sequential:
    """Build two 1×1 convolutions from features and φ⁰ to a change of φ, with nearly the given number of weights.

    Args:
        features: Number of features, D.
        num_classes: Number of classes, C.
        weights: Number of weights that both convolutions have together.
    """
    inputs = features + num_classes
    hidden = max(1, round((weights - num_classes) / (inputs + 1 + num_classes)))
    last = nn.Conv2d(hidden, num_classes, 1)
    nn.init.normal_(last.weight, std=SMALL)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(inputs, hidden, 1), nn.ReLU(inplace=True), last)
