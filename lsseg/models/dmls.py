"""Defines DMLS, which refines its own prediction with shared weights and multiphase level sets (Zhang 2019).

Legend: B images, C classes, H×W pixels, K steps.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lsseg.errors import ArgumentError
from lsseg.models.encoder import EncoderNet
from lsseg.models.fcn import DFCN
from lsseg.models.multiphase import MultiphaseLevelSet
from lsseg.models.output import SegOutput, Step, checked, made
from lsseg.models.state import takes_relatives


class DMLS(nn.Module):
    """Runs K steps of one network on the image and the previous prediction (Zhang 2019, eq. 1-2, algorithm 1).

    The prediction enters the network's first convolution through a kernel of its own, E(I, P) = W_I * I + W_P * P + b.
    W_P starts at 0, so that at first every step equals the plain network. The first step has no previous prediction.
    After every step the multiphase level-set layer refines the scores. Gradients flow back through all steps.

    Args:
        num_classes: Number of classes, C.
        network: A network that maps an image to logits of its size (alone, as ``SegOutput``, or as the ``out`` of a
            mapping, as in torchvision), or a callable that makes one for C classes; null is :class:`~lsseg.models.DFCN`
            on ResNet-50. In YAML give a class path and its arguments without ``num_classes``. A network that resizes
            its input before its first convolution is refused at the first image. The network gets the images as they
            are: if it does not normalise colours itself, the images must be normalised.
        steps: Number K ≥ 1 of steps; 4 in the paper. 1 leaves out the recurrence.
        level_set: Whether the multiphase layer is on.
        batch_norm: Statistics of batch-norm over the steps: ``per_step`` (each step has its own), ``shared``, or
            ``frozen`` (training uses the running ones, too; weight and bias are still learnt). Null is ``per_step``,
            but frozen while a training batch (of one process) has a single image.
        checkpoint: Whether to keep only the input and output of a step, and to compute the step again in the backward
            pass. This takes the memory of about one step, and a third more time.
        first: Name inside the network of the convolution that the previous prediction enters; null is the convolution
            that an image reaches first.
        **options: Options of the level-set layer, see :class:`~lsseg.models.MultiphaseLevelSet`.

    Raises:
        InputError: If a value is out of range, or the network has no convolution on three channels.

    >>> mine = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    >>> DMLS(3, mine, steps=2)(torch.rand(2, 3, 20, 30)).logits.shape
    torch.Size([2, 3, 20, 30])
    >>> net = DMLS(3, partial(DFCN, encoder_name="tu-test_resnet.r160_in1k", width=8), steps=2).eval()
    >>> output = net(torch.rand(1, 3, 45, 70))
    >>> output.logits.shape, len(output.steps)
    (torch.Size([1, 3, 45, 70]), 2)
    """

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module] | None = None,
        steps: int = 4,
        level_set: bool = True,
        batch_norm: Literal["per_step", "shared", "frozen"] | None = None,
        checkpoint: bool = False,
        first: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ArgumentError(f"steps must be at least 1, not {steps}")
        self.num_classes = num_classes
        self.network = made(network or partial(DFCN), num_classes)
        if isinstance(self.network, DMLS):
            raise ArgumentError("network must not be DMLS itself, because DMLS runs this network several times")
        self.steps = steps
        self.batch_norm = batch_norm
        self.checkpoint = checkpoint
        layer = MultiphaseLevelSet(**options)  # the layer is always made, so that an unknown option is an error
        self.level_set = layer if level_set else None
        self.feedback: nn.Conv2d | None = None
        self._frozen: set[nn.Module] = set()  # by this network, for batches of one image
        self._first = ""
        if steps > 1:
            self._first = _first_convolution(self.network, first)
            self.feedback = self._feed_back(num_classes)
            if batch_norm in (None, "per_step"):
                split_by_step(self.network, steps)
        takes_relatives(self)

    def forward(self, image: Tensor) -> SegOutput:
        """Return the scores of a B×3×H×W image with values in [0, 1], and the scores of every step."""
        if self.training:
            self._freeze(self.batch_norm == "frozen" or (self.batch_norm is None and len(image) == 1))
        steps: list[Step] = []
        auxiliary: tuple[Tensor, ...] = ()
        for number in range(self.steps):
            previous = torch.softmax(steps[-1].last, 1) if steps else None
            run = self._checkpointed if self.checkpoint and torch.is_grad_enabled() else self._step
            step, others = run(number, image, previous)
            steps.append(step)
            auxiliary += others
        return SegOutput(steps[-1].last, tuple(steps), auxiliary=auxiliary)

    def _step(self, number: int, image: Tensor, previous: Tensor | None) -> tuple[Step, tuple[Tensor, ...]]:
        for module in self.network.modules():
            if isinstance(module, StepNorm):
                module.step = number
        # The previous prediction is passed to this call only, as a buffer of the convolution that it enters.
        given = {} if previous is None else {f"{self._first}.previous".lstrip("."): previous}
        found = functional_call(self.network, given, (image,)) if given else self.network(image)
        output = checked(found, self.network, image, self.num_classes)
        if self.level_set is None:
            return Step(output.logits), output.auxiliary
        refined = self.level_set(output.logits, image, output.features, output.feature_stride)
        return Step(output.logits, refined), output.auxiliary

    def _checkpointed(self, number: int, image: Tensor, previous: Tensor | None) -> tuple[Step, tuple[Tensor, ...]]:
        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), statistics_untouched(self.network)

        result: tuple[Step, tuple[Tensor, ...]] = checkpoint(
            self._step, number, image, previous, use_reentrant=False, context_fn=contexts
        )
        return result

    def _freeze(self, frozen: bool) -> None:
        """Freeze the batch-norms that are in training, or undo it; those that the network itself froze stay so."""
        if frozen:
            self._frozen |= {norm.eval() for norm in batch_norms(self.network) if norm.training}
        while self._frozen and not frozen:
            self._frozen.pop().train()

    def _feed_back(self, num_classes: int) -> nn.Conv2d:
        """Return the convolution W_P, whose response is added to that of the network's first convolution."""
        first = self.network.get_submodule(self._first)
        assert isinstance(first, nn.Conv2d)
        # The first convolution is copied, because some encoders have special convolutions that pad by themselves.
        kernel = copy.deepcopy(first)
        kernel.in_channels, kernel.bias = num_classes, None
        kernel.weight = nn.Parameter(torch.zeros(first.out_channels, num_classes, *first.kernel_size))
        first.register_buffer("previous", None, persistent=False)
        first.register_forward_hook(self._add_previous)
        return kernel

    def _add_previous(self, convolution: nn.Module, inputs: tuple[Tensor, ...], response: Tensor) -> Tensor:
        """Add the response to the previous prediction, if there is one, to the convolution's response to the image."""
        previous = convolution.previous
        if previous is None or self.feedback is None:
            return response
        assert isinstance(previous, Tensor)
        return response + self.feedback(self._placed(previous, inputs[0]).to(self.feedback.weight.dtype))

    def _placed(self, previous: Tensor, seen: Tensor) -> Tensor:
        """Return the previous prediction, padded like the image that the first convolution sees."""
        if seen.shape[-2:] == previous.shape[-2:]:
            return previous
        (height, width), (rows, columns) = previous.shape[-2:], seen.shape[-2:]
        strides = [module.stride for module in self.network.modules() if isinstance(module, EncoderNet)]
        if any((rows, columns) == (height + -height % s, width + -width % s) for s in strides):
            # The network has padded the image right and below. The prediction is padded by 0, as there is none.
            return F.pad(previous, (0, columns - width, 0, rows - height))
        raise ArgumentError(
            f"network {type(self.network).__name__}: the previous prediction cannot enter its first convolution on "
            f"three channels, because the image has {height}×{width} pixels but the convolution gets {rows}×{columns}; "
            "a network inside DMLS must not resize or pad its input itself: use lsseg.models.encoder.EncoderNet.prepare"
        )


def _first_convolution(network: nn.Module, name: str | None) -> str:
    """Return the given name after a check, or the name of the 3-channel convolution that an image reaches first."""
    candidates = {
        place: module
        for place, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1
    }
    shown = type(network).__name__
    if name is not None and name not in candidates:
        known = ", ".join(candidates) or "none"
        raise ArgumentError(f"first {name!r} is not a convolution of {shown} on three channels; {shown} has {known}")
    if not candidates:
        raise ArgumentError(
            f"network {shown} has no convolution on the three channels of an image: "
            "the previous prediction needs one to enter the network"
        )
    if name is not None or len(candidates) == 1:
        return name or next(iter(candidates))
    return _reached_first(network, candidates)


def _reached_first(network: nn.Module, candidates: dict[str, nn.Conv2d]) -> str:
    """Pass an image through the network and return the name of the convolution that it reaches first."""
    reached: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, place=place: reached.append(place))
        for place, module in candidates.items()
    ]
    training = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, 256, 256))  # no architecture refuses this size
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not reached:
        shown = f"network {type(network).__name__}"
        raise ArgumentError(
            f"{shown} must pass the image through one of its convolutions on three channels: {', '.join(candidates)}"
        )
    return reached[0]


class StepNorm(nn.Module):
    """Applies batch-norm with one weight and bias for all steps, but with separate statistics for each of K steps.

    The first step sees an image, and the later steps see an image and a prediction, so their activations differ.
    Averages over all steps would normalise no step as training did.

    Args:
        norm: The layer that is replaced; every step starts with its statistics.
        steps: Number of steps, K.
    """

    def __init__(self, norm: nn.Module, steps: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm, *(copy.deepcopy(norm) for _ in range(steps - 1))])
        for other in self.norms[1:]:
            other.weight, other.bias = norm.weight, norm.bias
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the statistics of the current step."""
        return self.norms[self.step](x)


def split_by_step(network: nn.Module, steps: int) -> None:
    """Replace every batch-norm layer of a network by a :class:`StepNorm`."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, StepNorm(child, steps))


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return all batch-norm layers of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def statistics_untouched(network: nn.Module) -> Iterator[None]:
    """Restore the running statistics on exit, so that a repeated forward pass does not update them twice."""
    kept = []
    for norm in batch_norms(network):
        for name, buffer in norm.named_buffers(recurse=False):
            kept.append((norm, name, buffer))
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
