"""Defines FCN-32s, 16s and 8s (Long 2015), and the dilated convolutional network of DMLS (Zhang 2019, III.A).

Legend: B images, C classes, H×W pixels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.errors import ArgumentError
from lsseg.functional.grid import resized
from lsseg.models.encoder import EncoderNet, is_vgg, make_encoder, take_over_classifier
from lsseg.models.output import SegOutput


class FCN(EncoderNet):
    """Computes scores at strides 32, 16 and 8, and adds them up on the way back to the image's resolution.

    The enlargements between the strides start as bilinear interpolation and are learnt. The last one, to the image, is
    bilinear and fixed. Skip scores start at 0. Images are padded to multiples of 32 instead of by 100 pixels. With a
    VGG the skips use the outputs of its fourth and third poolings. If its weights are given, both large layers start as
    its fully connected layers, as in the paper.

    The first cell of a map of stride s is centred on the first pixel but is drawn (s - 1)/2 pixels further right and
    below, as in all networks whose strided convolutions have odd kernels. This shift is 15.4 pixels for FCN-32s on a
    ResNet. Training compensates the part of the shift that it can observe.

    Args:
        num_classes: Number of classes, C.
        stride: Stride of the finest scores: 32, 16 or 8.
        encoder_name: Any smp encoder; vgg16 in both papers.
        encoder_weights: ``imagenet``, another name that smp knows for this encoder, a file, or null for random weights.
        width: Channels of the two layers (7×7 and 1×1 convolutions, with dropout) that replace VGG's fully connected
            ones; 4096 in the paper. 0 leaves both layers out, as is usual over a residual network.
        mean: Mean of RGB in [0, 1] that the weights expect; null looks it up (for a file: timm's, or ImageNet's).
        std: Standard deviation of RGB, likewise.

    Raises:
        InputError: If the encoder is unknown or a value is out of range.

    >>> net = FCN(3, encoder_name="tu-test_resnet.r160_in1k", width=16).eval()
    >>> net(torch.rand(1, 3, 45, 70)).logits.shape
    torch.Size([1, 3, 45, 70])
    """

    def __init__(
        self,
        num_classes: int,
        stride: Literal[32, 16, 8] = 8,
        encoder_name: str = "vgg16",
        encoder_weights: str | None = None,
        width: int = 4096,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        if width < 0:
            raise ArgumentError(f"width must not be negative, not {width}")
        encoder, channels, strides = make_encoder(encoder_name, encoder_weights)
        super().__init__(encoder_name, encoder_weights, 32, mean, std)
        self.encoder = encoder
        self.levels = [strides.index(32 >> shift) for shift in range(3) if 32 >> shift >= stride]
        self.pooled = is_vgg(encoder_name)  # a VGG's maps come before its poolings, but the skips after them
        deepest = channels[self.levels[0]]
        self.hidden = _fully_connected(deepest, width, encoder_name, encoder_weights) if width else nn.Identity()
        if self.pooled:
            self.pretrained_parts = ("hidden",)
        widths = [width or deepest, *(channels[level - self.pooled] for level in self.levels[1:])]
        scores = [nn.Conv2d(width, num_classes, 1) for width in widths]
        for parameter in (p for score in scores[1:] for p in score.parameters()):
            nn.init.zeros_(parameter)
        self.scores = nn.ModuleList(scores)
        self.enlarge = nn.ModuleList(bilinear_doubling(num_classes) for _ in widths[1:])

    def forward(self, image: Tensor) -> SegOutput:
        """Return the scores of a B×3×H×W image with values in [0, 1], and the finest features that are scored."""
        padded = self.prepare(image)
        maps = self.encoder(padded)
        finest = maps[self.levels[0]]
        x = self.scores[0](self.hidden(finest))
        for level, score, enlarge in zip(self.levels[1:], self.scores[1:], self.enlarge, strict=True):
            finest = F.max_pool2d(maps[level - 1], 2) if self.pooled else maps[level]
            x = enlarge(x) + score(finest)
        logits = F.interpolate(x, padded.shape[-2:], mode="bilinear", align_corners=False)
        return self.output(logits, finest, image, padded)


def _fully_connected(inputs: int, width: int, encoder_name: str, encoder_weights: str | None) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, width, 7, padding=3), nn.Conv2d(width, width, 1)
    take_over_classifier(encoder_name, encoder_weights, first, second)
    layers = [[layer, nn.ReLU(inplace=True), nn.Dropout2d()] for layer in (first, second)]
    return nn.Sequential(*(module for row in layers for module in row))


def bilinear_doubling(channels: int) -> nn.ConvTranspose2d:
    """Make a transposed convolution that starts as bilinear interpolation of each channel to twice the size."""
    layer = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = ramp[:, None] * ramp
    return layer


class DFCN(EncoderNet):
    """Merges the stages of an encoder, whose last stage is dilated by 2, by 3×3 convolutions of dilation 2.

    The paper's figure gives no widths. From the deepest stage down to stride 4, each stage is brought to ``width``
    channels, added to the bilinearly enlarged result of the deeper stages, and passed through one dilated convolution.
    The scores are computed at stride 4. With ResNet-50 and width 256 it has 31 M parameters (34 M in the paper).

    Args:
        num_classes: Number of classes, C.
        encoder_name: vgg16, resnet50 or resnet101 in the paper; any smp encoder that can be dilated.
        encoder_weights: ``imagenet``, another name that smp knows for this encoder, a file, or null for random weights.
        width: Channels of the decoder.
        mean: Mean of RGB in [0, 1] that the weights expect; null looks it up (for a file: timm's, or ImageNet's).
        std: Standard deviation of RGB, likewise.

    Raises:
        InputError: If the encoder is unknown or cannot be dilated, or its weights cannot be had.

    >>> import torch
    >>> net = DFCN(3, "tu-test_resnet.r160_in1k", width=16).eval()
    >>> net(torch.rand(1, 3, 45, 70)).logits.shape
    torch.Size([1, 3, 45, 70])
    """

    def __init__(
        self,
        num_classes: int,
        encoder_name: str = "resnet50",
        encoder_weights: str | None = None,
        width: int = 256,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        if width < 1:
            raise ArgumentError(f"width must be at least 1, not {width}")
        encoder, channels, strides = make_encoder(encoder_name, encoder_weights, 8 if is_vgg(encoder_name) else 16)
        super().__init__(encoder_name, encoder_weights, max(strides), mean, std)
        self.encoder = encoder
        self.levels = [level for level in reversed(range(len(strides))) if strides[level] >= 4]
        deepest, *skips = (channels[level] for level in self.levels)
        self.context = dilated_convolution(deepest, width)
        self.lateral = nn.ModuleList(nn.Conv2d(skip, width, 1) for skip in skips)
        self.merge = nn.ModuleList(dilated_convolution(width, width) for _ in skips)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, image: Tensor) -> SegOutput:
        """Return the scores of a B×3×H×W image with values in [0, 1], and the features at stride 4."""
        padded = self.prepare(image)
        maps = self.encoder(padded)
        x = self.context(maps[self.levels[0]])
        for level, lateral, merge in zip(self.levels[1:], self.lateral, self.merge, strict=True):
            x = merge(resized(x, maps[level].shape[-2:]) + lateral(maps[level]))
        logits = resized(self.classifier(x), padded.shape[-2:])
        return self.output(logits, x, image, padded)


def dilated_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Return a 3×3 convolution of dilation 2, followed by batch-norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=2, dilation=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
