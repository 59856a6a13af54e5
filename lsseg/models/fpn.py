"""Defines a feature pyramid on any smp encoder (Lin 2017), PANet's path (Liu 2018), and pooling of boxes (He 2017).

Deformable convolutions (Dai 2017; with modulation Zhu 2019) can replace the 3×3 convolutions of an encoder.

Legend: B images, H×W pixels, n boxes.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, deform_conv2d, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from lsseg.errors import ArgumentError
from lsseg.models.encoder import EncoderNet, make_encoder

# A box of this side is pooled from the level of stride 16, a box of half this side from stride 8 (Lin 2017, eq. 1).
CANONICAL_SIDE, CANONICAL_STRIDE = 224.0, 16


class PyramidEncoder(EncoderNet):
    """Maps images of any sizes to the levels of strides 4 to 32 of a feature pyramid, and to one more level by pooling.

    Args:
        encoder_name: Any smp encoder.
        encoder_weights: ``imagenet``, another name that smp knows, a file of a state dict, or null for random weights.
        width: Channels of every level.
        frozen_norm: Whether the statistics, weights and biases of the encoder's batch-norm stay as they are.
        deformable: Number of the encoder's last stages that have deformable convolutions.
        bottom_up: Whether PANet's path follows the pyramid.
    """

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None,
        width: int,
        frozen_norm: bool,
        deformable: int = 0,
        bottom_up: bool = False,
    ) -> None:
        encoder, channels, strides = make_encoder(encoder_name, encoder_weights)
        deform(encoder, deformable, encoder_name)
        super().__init__(encoder_name, encoder_weights, max(strides))
        self.encoder = encoder
        self.levels = [level for level, stride in enumerate(strides) if stride >= 4]
        self.strides = [strides[level] for level in self.levels]
        inputs = [channels[i] for i in self.levels]
        self.pyramid = FeaturePyramidNetwork(inputs, width, None if bottom_up else LastLevelMaxPool())
        self.path = BottomUpPath(len(inputs), width) if bottom_up else None
        self.frozen_norm = frozen_norm
        if frozen_norm:
            for norm in self._norms():  # the trainer keeps every module's own mode and may never call train()
                norm.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "PyramidEncoder":
        """Set the training or evaluation mode; frozen statistics stay frozen."""
        super().train(mode)
        if self.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, batch: ImageList) -> "OrderedDict[str, Tensor]":
        """Return the levels by name, finest first: "0", "1", … and "pool".

        They are float32 or wider, even under autocast, because the boxes inherit their dtype.
        """
        maps = self.encoder(batch.tensors)
        levels: OrderedDict[str, Tensor] = self.pyramid(
            OrderedDict((str(i), maps[level]) for i, level in enumerate(self.levels))
        )
        if self.path is not None:
            levels = self.path(levels)
        wide = next(iter(levels.values())).dtype
        return OrderedDict((name, level.to(torch.promote_types(wide, torch.float32))) for name, level in levels.items())

    def batch(self, images: Sequence[Tensor]) -> ImageList:
        """Normalise images in [0, 1] and pad them, right and below with the mean colour, to one size."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        height, width = (-(-max(side) // self.stride) * self.stride for side in zip(*sizes, strict=True))
        padded = [
            F.pad((image - self.mean) / self.std, (0, width - image.shape[-1], 0, height - image.shape[-2]))
            for image in images
        ]
        return ImageList(torch.stack(padded), sizes)

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class BottomUpPath(nn.Module):
    """Applies PANet's path from fine to coarse: N₂ = P₂, Nᵢ₊₁ = conv(Pᵢ₊₁ + conv with stride 2(Nᵢ)) (Liu 2018, 3.1).

    Args:
        levels: Number of maps of the pyramid.
        width: Channels of every level.
    """

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(levels - 1))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(levels - 1))
        for conv in (*self.down, *self.smooth):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, levels: "OrderedDict[str, Tensor]") -> "OrderedDict[str, Tensor]":
        """Return the levels by name, finest first, and "pool", every second row and column of the last level."""
        names, maps = list(levels), list(levels.values())
        made = [maps[0]]
        for level, down, smooth in zip(maps[1:], self.down, self.smooth, strict=True):
            made.append(F.relu(smooth(level + F.relu(down(made[-1])))))
        return OrderedDict([*zip(names, made, strict=True), ("pool", made[-1][..., ::2, ::2])])


class BoxPooler(nn.Module):
    """Pools every box from the level that suits its size, on a grid of R×R cells.

    torchvision's own multi-scale pooling reads half a cell of the feature map beside the box. At stride 4 this is two
    pixels of the image, which is too much for accurate contours.

    Args:
        strides: Strides of the pyramid's levels, finest first.
        resolution: Cells along each side of the grid, R.
    """

    def __init__(self, strides: Sequence[int], resolution: int) -> None:
        super().__init__()
        self.strides, self.resolution = list(strides), resolution

    def forward(self, features: "OrderedDict[str, Tensor]", boxes: Sequence[Tensor], sizes: object = None) -> Tensor:
        """Return the features of all boxes, in their order, n×E×R×R.

        Args:
            features: Levels of a pyramid.
            boxes: Boxes of every image, each n×4.
            sizes: Not used; torchvision's box head passes it.
        """
        levels = list(features.values())[: len(self.strides)]
        flat = torch.cat(list(boxes))
        image = torch.cat([torch.full((len(b), 1), float(i), device=flat.device) for i, b in enumerate(boxes)])
        rois = torch.cat([image.to(flat), flat], 1)
        side = ((flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])).clamp_min(1e-6).sqrt()
        stride = CANONICAL_STRIDE * side / CANONICAL_SIDE
        chosen = (torch.log2(stride / self.strides[0]) + 1e-6).floor().clamp(0, len(self.strides) - 1)
        shape = (len(flat), levels[0].shape[1], self.resolution, self.resolution)
        pooled = levels[0].new_zeros(shape)
        for number, (level, own) in enumerate(zip(levels, self.strides, strict=True)):
            index = torch.nonzero(chosen == number)[:, 0]
            # Levels without a box are pooled, too, so that all parameters take part whatever the images contain.
            parts = roi_align(level, rois[index].to(level), self.resolution, 1.0 / own, 2, aligned=True)
            pooled = pooled.index_copy(0, index, parts)
        return pooled


# Names of the stages of ResNets and of WideResNet-38, from the first to the last.
STAGES = (("layer1", "layer2", "layer3", "layer4"), ("mod4", "mod5", "mod6", "mod7"))


class DeformableConv2d(nn.Conv2d):
    """Applies a convolution that learns an offset and a weight for every cell of its kernel at every place.

    At the start all offsets are 0 and all weights are 1, so that it equals the convolution that it replaces.

    Args:
        conv: The convolution that it replaces, and whose settings and weights it takes over.
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
        """Map B×C×H×W to B×C'×H'×W'."""
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
        encoder: A ResNet of smp or timm, or WideResNet-38; it is changed in place.
        stages: Number of last stages to change; 0 changes nothing.
        name: Name of the encoder in error messages.

    Raises:
        InputError: If the stages of the encoder are not known, or it has fewer than ``stages`` stages.
    """
    if not stages:
        return
    inner = next((part for part in (encoder, getattr(encoder, "model", encoder)) if _names(part)), None)
    if inner is None:
        raise ArgumentError(
            f"deformable must be 0 for {name}, because its stages are not known; other values need a ResNet"
        )
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
