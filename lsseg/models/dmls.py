"""DMLS: a network that refines its own prediction with shared weights and multiphase level sets (Zhang 2019).

Legend: B images, C classes, H×W pixels, K steps.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lsseg.errors import InputError
from lsseg.models.dfcn import DFCN
from lsseg.models.multiphase import MultiphaseLevelSet
from lsseg.models.output import SegOutput, Step, checked
from lsseg.models.step_norm import StepNorm, batch_norms, split_by_step, statistics_untouched


class DMLS(nn.Module):
    """K steps of one network; each takes the image and the previous prediction (Zhang 2019, eq. 1-2, algorithm 1).

    The prediction enters the network's first convolution through a kernel of its own, E(I, P) = W_I * I + W_P * P + b.
    W_P starts at 0, so that at first every step is the plain network; at step 1 there is no prediction. Between two
    steps the multiphase level-set layer refines the scores. Gradients flow back through all steps.

    Args:
        num_classes: C.
        network: Makes the network for C classes, anything that returns ``SegOutput``; null is
            :class:`~lsseg.models.DFCN` on ResNet-50. In YAML a class path and its arguments without ``num_classes``.
        steps: K ≥ 1; 4 in the paper. 1 leaves out the recurrence.
        level_set: Whether the multiphase layer is on.
        batch_norm: Statistics of batch-norm over the steps: ``per_step`` (each step its own), ``shared``, or
            ``frozen`` (the running ones, in training, too; weight and bias are still learnt). Null is ``per_step``,
            frozen while a training batch (of one process) has a single image.
        checkpoint: Keep nothing of a step but its input and output, and compute it again in the backward pass: the
            memory of about one step, a third more time.
        **options: Of the layer, see :class:`~lsseg.models.MultiphaseLevelSet`.

    Raises:
        InputError: If a value is out of range, or the network has no convolution on three channels.

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
        **options: Any,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise InputError(f"model.network.steps must be at least 1, not {steps}")
        self.num_classes = num_classes
        self.network = (network or partial(DFCN))(num_classes)
        if isinstance(self.network, DMLS):
            raise InputError("model.network.network is what DMLS runs several times, and cannot be DMLS itself")
        self.steps = steps
        self.batch_norm = batch_norm
        self.checkpoint = checkpoint
        layer = MultiphaseLevelSet(**options)  # made in any case: a key that it does not know is an error
        self.level_set = layer if level_set else None
        self.feedback: nn.Conv2d | None = None
        self._previous: Tensor | None = None
        if steps > 1:
            self.feedback = self._feed_back(num_classes)
            if batch_norm in (None, "per_step"):
                split_by_step(self.network, steps)

    def forward(self, image: Tensor) -> SegOutput:
        """Scores of a B×3×H×W image with values in [0, 1], and those of every step."""
        if self.training:
            self._freeze(self.batch_norm == "frozen" or (self.batch_norm is None and len(image) == 1))
        steps: list[Step] = []
        for number in range(self.steps):
            previous = torch.softmax(steps[-1].last, 1) if steps else None
            run = self._checkpointed if self.checkpoint and torch.is_grad_enabled() else self._step
            steps.append(run(number, image, previous))
        return SegOutput(steps[-1].last, tuple(steps))

    def _step(self, number: int, image: Tensor, previous: Tensor | None) -> Step:
        self._previous = previous
        for module in self.network.modules():
            if isinstance(module, StepNorm):
                module.step = number
        try:
            output = checked(self.network(image), self.network, image, self.num_classes)
        finally:  # whatever happens, no graph outlives the call
            self._previous = None
        if self.level_set is None:
            return Step(output.logits)
        phi = self.level_set(output.logits, image, output.features, output.feature_stride)
        return Step(output.logits, self.level_set.scores(phi))

    def _checkpointed(self, number: int, image: Tensor, previous: Tensor | None) -> Step:
        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), statistics_untouched(self.network)

        step: Step = checkpoint(self._step, number, image, previous, use_reentrant=False, context_fn=contexts)
        return step

    def _freeze(self, frozen: bool) -> None:
        for norm in batch_norms(self.network):
            norm.train(not frozen)

    def _feed_back(self, num_classes: int) -> nn.Conv2d:
        """W_P, whose response is added to that of the network's first convolution."""
        convolutions = (m for m in self.network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
        first = next(convolutions, None)
        if first is None or first.groups != 1:
            raise InputError(
                f"model.network.network {type(self.network).__name__} has no convolution on the three channels of an "
                "image, which the previous prediction could enter"
            )
        # A copy, since the convolutions of some encoders are no plain ones and pad on their own.
        kernel = copy.deepcopy(first)
        kernel.in_channels, kernel.bias = num_classes, None
        kernel.weight = nn.Parameter(torch.zeros(first.out_channels, num_classes, *first.kernel_size))
        first.register_forward_hook(self._add_previous)
        return kernel

    def _add_previous(self, convolution: nn.Module, inputs: tuple[Tensor, ...], response: Tensor) -> Tensor:
        if self._previous is None or self.feedback is None:
            return response
        (height, width), size = inputs[0].shape[-2:], self._previous.shape[-2:]
        if height < size[0] or width < size[1]:
            raise InputError(
                f"model.network.network {type(self.network).__name__}: the previous prediction cannot enter its first "
                f"convolution on three channels, which sees {height}×{width} pixels of {size[0]}×{size[1]}"
            )
        # The network has padded the image right and below; nothing is predicted there.
        previous = F.pad(self._previous, (0, width - size[1], 0, height - size[0]))
        return response + self.feedback(previous.to(self.feedback.weight.dtype))
