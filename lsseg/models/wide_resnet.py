"""Defines WideResNet-38 (Wu 2016, "Wider or Deeper", network A2), as in Homayounfar 2020's best entry on Cityscapes.

Legend: B images, H×W pixels. smp lacks this encoder, so it is added to smp's encoders: every network can then use it.
"""

import re
from collections.abc import Sequence

import torch.nn.functional as F
from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

NAME = "wide_resnet38"
# For each stage: its name, the channels of its convolutions, the number of its blocks, the stride of the first block.
STAGES = (
    ("mod4", (512, 512), 6, 2),
    ("mod5", (512, 1024), 3, 2),
    ("mod6", (512, 1024, 2048), 1, 2),
    ("mod7", (1024, 2048, 4096), 1, 1),
)


class PreActivation(nn.Module):
    """Applies a residual block with batch-norm and ReLU before each convolution: 3×3, 3×3, or 1×1, 3×3, 1×1.

    Args:
        inputs: Channels of the input.
        channels: Output channels of the two or three convolutions.
        stride: Stride of the first convolution.
    """

    def __init__(self, inputs: int, channels: tuple[int, ...], stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        kernels = (3, 3) if len(channels) == 2 else (1, 3, 1)
        self.convs = nn.Sequential()
        for number, (before, after, kernel) in enumerate(zip((inputs, *channels), channels, kernels, strict=False), 1):
            if number > 1:
                self.convs.add_module(f"bn{number}", nn.Sequential(nn.BatchNorm2d(before), nn.ReLU()))
            conv = nn.Conv2d(before, after, kernel, stride if number == 1 else 1, kernel // 2, bias=False)
            self.convs.add_module(f"conv{number}", conv)
        self.proj_conv: nn.Module | None = None
        if stride != 1 or inputs != channels[-1]:
            self.proj_conv = nn.Conv2d(inputs, channels[-1], 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the output of the convolutions to the input, or to its projection."""
        active = self.bn1(x)
        shortcut = x if self.proj_conv is None else self.proj_conv(active)
        result: Tensor = shortcut + self.convs(active)
        return result


class WideResNet38(nn.Module, EncoderMixin):
    """Maps B×3×H×W to feature maps of strides 1 (the image), 2, 4, 8, 16 and 32; smp can dilate it.

    A file of weights may have the names of this class, or the names (``mod2.block1.bn1.weight``) of networks with
    batch-norm and activation in one module, such as in-place batch-norm.

    Args:
        depth: Number of halvings of the resolution, 1 to 5.
        output_stride: 32, or 16 or 8 for an encoder that is dilated later (see ``make_dilated`` of smp's encoders).
    """

    def __init__(self, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        if not 1 <= depth <= 5:
            raise ValueError(f"{type(self).__name__} depth should be in range [1, 5], got {depth}")
        self._depth, self._output_stride, self._in_channels = depth, output_stride, 3
        self._out_channels = [3, 128, 256, 512, 1024, 4096]
        self.mod1 = nn.Sequential()
        self.mod1.add_module("conv1", nn.Conv2d(3, 64, 3, padding=1, bias=False))
        self.mod2 = stage(64, (128, 128), 3, 1)
        self.mod3 = stage(128, (256, 256), 3, 1)
        before = 256
        for name, channels, blocks, stride in STAGES:
            self.add_module(name, stage(before, channels, blocks, stride))
            before = channels[-1]
        self.bn_out = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the weights of a network whose batch-norms contain the activation to this network's names."""
        return {re.sub(r"(^|\.)(bn\d|bn_out)\.(?=[a-z])", r"\1\2.0.", key): value for key, value in weights.items()}

    def get_stages(self) -> dict[int, Sequence[nn.Module]]:
        """Return the modules that make the maps of strides 16 and 32, for ``make_dilated``."""
        return {16: [self.get_submodule("mod5")], 32: [self.get_submodule(name) for name in ("mod6", "mod7")]}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps, finest first, down to the depth."""
        maps = [image]
        x = self.mod1(image)
        for module in (self.mod2, self.mod3):
            x = module(F.max_pool2d(x, 3, 2, 1))
            maps.append(x)
        for name, _, _, _ in STAGES:
            x = self.get_submodule(name)(x)
            if name not in ("mod6", "mod7"):
                maps.append(x)
            if len(maps) > self._depth:
                return maps[: self._depth + 1]
        return [*maps, self.bn_out(x)]


def stage(inputs: int, channels: tuple[int, ...], blocks: int, stride: int) -> nn.Sequential:
    """Make a sequence of blocks, named block1 and so on."""
    made = nn.Sequential()
    for number in range(1, blocks + 1):
        first = number == 1
        made.add_module(
            f"block{number}", PreActivation(inputs if first else channels[-1], channels, stride if first else 1)
        )
    return made


encoders[NAME] = {"encoder": WideResNet38, "pretrained_settings": {}, "params": {}}
