"""Deformable convolutions (Dai 2017; with modulation Zhu 2019) in an encoder that has none."""

from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from lsseg.errors import ArgumentError

# The stages of encoders, from the first to the last.
STAGES = (("layer1", "layer2", "layer3", "layer4"), ("mod4", "mod5", "mod6", "mod7"))


class DeformableConv2d(nn.Conv2d):
    """A convolution that learns where to look: an offset and a weight for every cell of its kernel at every place.

    At the start all offsets are 0 and all weights 1: it is the convolution that it replaces.

    Args:
        conv: The convolution whose settings and weights it takes over.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        place = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(conv.in_channels, conv.out_channels, *place, conv.groups, conv.bias is not None)  # type: ignore[arg-type]
        self.weight, self.bias = conv.weight, conv.bias
        self.cells = conv.kernel_size[0] * conv.kernel_size[1]
        self.offset = nn.Conv2d(conv.in_channels, 3 * self.cells, *place)  # type: ignore[arg-type]
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, input: Tensor) -> Tensor:
        """B×C×H×W → B×C'×H'×W'."""
        found = self.offset(input)
        offset, modulation = found[:, : 2 * self.cells], 2 * found[:, 2 * self.cells :].sigmoid()
        convolved: Tensor = deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            modulation,
        )
        return convolved


def deform(encoder: nn.Module, stages: int, name: str) -> None:
    """Make the 3×3 convolutions of an encoder's last stages deformable.

    Args:
        encoder: A ResNet of smp or timm, or WideResNet-38; changed in place.
        stages: How many; 0 leaves it alone.
        name: What to call it in the error message.

    Raises:
        InputError: If its stages are not known, or there are not so many.
    """
    if not stages:
        return
    inner = next((part for part in (encoder, getattr(encoder, "model", encoder)) if _names(part)), None)
    if inner is None:
        raise ArgumentError(f"deformable: the stages of {name} are not known; those of ResNets are")
    names = _names(inner)
    if not 0 < stages <= len(names):
        raise ArgumentError(f"deformable must lie in 0..{len(names)}, the stages of {name}, not {stages}")
    for stage in names[-stages:]:
        part = inner.get_submodule(stage)
        for path, module in list(part.named_modules()):
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                parent, _, last = path.rpartition(".")
                setattr(part.get_submodule(parent), last, DeformableConv2d(module))


def _names(encoder: nn.Module) -> tuple[str, ...]:
    return next((names for names in STAGES if all(hasattr(encoder, name) for name in names)), ())
