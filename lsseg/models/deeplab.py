"""Defines DeepLab-LargeFOV and DeepLab-v2 (Chen 2018), the networks of Kim 2019, tables 1 to 5.

Legend: B images, C classes, H×W pixels. Both networks compute scores at stride 8 and enlarge them bilinearly.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.errors import ArgumentError, require
from lsseg.models.encoder import EncoderNet, is_vgg, make_encoder, take_over_classifier
from lsseg.models.output import SegOutput

STRIDE = 8


class DeepLab(EncoderNet, ABC):
    """Implements what both networks share: an encoder at stride 8, scores of its last map, and several scales (MSC).

    Args:
        encoder_name: Any smp encoder that can be dilated to stride 8.
        encoder_weights: Weights of the encoder.
        scales: Scales at which the image is scored.
    """

    encoder: nn.Module

    def __init__(self, encoder_name: str, encoder_weights: str | None, scales: Sequence[float]) -> None:
        super().__init__(encoder_name, encoder_weights, STRIDE)
        if not scales or not all(0 < scale <= 4 for scale in scales):
            raise ArgumentError(f"scales must be numbers in (0, 4], not {list(scales)}")
        self.scales = tuple(scales)

    def forward(self, image: Tensor) -> SegOutput:
        """Return the scores of a B×3×H×W image in [0, 1]; with several scales each scale's scores are auxiliary."""
        return self._at_one(image) if self.scales == (1.0,) else at_scales(self._at_one, image, self.scales)

    @abstractmethod
    def score(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the encoder's last map, and the features from which they are computed."""

    def _at_one(self, image: Tensor) -> SegOutput:
        padded = self.prepare(image)
        scores, features = self.score(self.encoder(padded)[-1])
        logits = F.interpolate(scores, padded.shape[-2:], mode="bilinear", align_corners=False)
        return self.output(logits, features, image, padded)


class DeepLabLargeFOV(DeepLab):
    """Applies VGG-16 at stride 8; a 3×3 convolution of dilation 12 replaces its first fully connected layer.

    It has 20.5 M parameters. All its poolings are 3×3. The last two have stride 1, and the convolutions between them
    have dilation 2. Given weights of a VGG, the two layers that replace the fully connected ones start as a regular
    selection of their weights: every fourth unit, and rows and columns 0, 3 and 6 of the 7×7 kernel. With another
    encoder the head is the same and starts at random.

    The first cell of its map is centred on the first pixel but is drawn 3.5 pixels further right and below.

    Args:
        num_classes: Number of classes, C.
        encoder_name: ``vgg16`` in the paper; any smp encoder that can be dilated to stride 8.
        encoder_weights: ``imagenet``, another name that smp knows for this encoder, a file, or null for random weights.
        width: Channels of the head's two layers; 1024 in the paper.
        dilation: Dilation of the head's first layer; 12 in the paper.
        scales: Scales of the image. ½, ¾ and 1 give the MSC variant, which returns the largest scores and trains the
            scores of every scale.

    Raises:
        InputError: If a value is out of range, the encoder is unknown or cannot be dilated, or its weights are missing.

    >>> net = DeepLabLargeFOV(3, "tu-test_resnet.r160_in1k", width=16).eval()
    >>> net(torch.rand(1, 3, 45, 70)).logits.shape
    torch.Size([1, 3, 45, 70])
    """

    def __init__(
        self,
        num_classes: int,
        encoder_name: str = "vgg16",
        encoder_weights: str | None = None,
        width: int = 1024,
        dilation: int = 12,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        require(width >= 1, "width", width, "must be at least 1")
        require(dilation >= 1, "dilation", dilation, "must be at least 1")
        encoder, channels, _ = make_encoder(encoder_name, encoder_weights, STRIDE)
        super().__init__(encoder_name, encoder_weights, scales)
        self.encoder = encoder
        if is_vgg(encoder_name):
            _overlapping_pools(encoder)
        first = nn.Conv2d(channels[-1], width, 3, padding=dilation, dilation=dilation)
        second = nn.Conv2d(width, width, 1)
        take_over_classifier(encoder_name, encoder_weights, first, second)
        pool: nn.Module = nn.MaxPool2d(3, 1, 1)
        if is_vgg(encoder_name):
            self.pretrained_parts = ("head",)
            pool = nn.Sequential(pool, nn.AvgPool2d(3, 1, 1))  # the original smooths its last map (pool5a)
        self.head = nn.Sequential(
            pool,
            *(first, nn.ReLU(inplace=True), nn.Dropout(0.5)),
            *(second, nn.ReLU(inplace=True), nn.Dropout(0.5)),
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)
        _small(self.classifier)

    def score(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the encoder's last map, and the features of the layer before them."""
        hidden = self.head(features)
        return self.classifier(hidden), hidden


class DeepLabV2(DeepLab):
    """Applies an encoder at stride 8 and atrous spatial pyramid pooling: it sums 3×3 classifiers of several dilations.

    With ResNet-101, whose last two stages are dilated by 2 and 4, it has 44.0 M parameters for 21 classes.

    Args:
        num_classes: Number of classes, C.
        encoder_name: ``resnet101`` in the paper; any smp encoder that can be dilated to stride 8.
        encoder_weights: ``imagenet``, another name that smp knows for this encoder, a file, or null for random weights.
        dilations: Dilations of the classifiers; 6, 12, 18, 24 in the paper.
        scales: See :class:`DeepLabLargeFOV`.

    Raises:
        InputError: If a value is out of range, the encoder is unknown or cannot be dilated, or its weights are missing.

    >>> net = DeepLabV2(3, "tu-test_resnet.r160_in1k").eval()
    >>> net(torch.rand(1, 3, 45, 70)).logits.shape
    torch.Size([1, 3, 45, 70])
    """

    def __init__(
        self,
        num_classes: int,
        encoder_name: str = "resnet101",
        encoder_weights: str | None = None,
        dilations: Sequence[int] = (6, 12, 18, 24),
        scales: Sequence[float] = (1.0,),
    ) -> None:
        if not dilations or min(dilations) < 1:
            raise ArgumentError(f"dilations must be whole numbers from 1 on, not {list(dilations)}")
        encoder, channels, _ = make_encoder(encoder_name, encoder_weights, STRIDE)
        super().__init__(encoder_name, encoder_weights, scales)
        self.encoder = encoder
        self.classifiers = nn.ModuleList(
            nn.Conv2d(channels[-1], num_classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for classifier in self.classifiers:
            _small(classifier)

    def score(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of all classifiers on the encoder's last map, and this map."""
        return torch.stack([classifier(features) for classifier in self.classifiers]).sum(0), features


def at_scales(network: Callable[[Tensor], SegOutput], image: Tensor, scales: Sequence[float]) -> SegOutput:
    """Score a B×3×H×W image at several scales; return the largest scores, and each scale's as auxiliary ones."""
    scores = []
    for scale in scales:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        part = image if scale == 1 else F.interpolate(image, size, mode="bilinear", align_corners=False)
        logits = network(part).logits
        same = scale == 1
        scores.append(logits if same else F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False))
    return SegOutput(torch.stack(scores).amax(0), auxiliary=tuple(scores))


def _overlapping_pools(encoder: Any) -> None:
    """Make all poolings 3×3, and restore the fourth, which dilation has removed, with stride 1."""
    for place, block in enumerate(encoder.features):
        if isinstance(block, nn.MaxPool2d):  # the fifth, after the last convolution, is never reached
            encoder.features[place] = nn.MaxPool2d(3, 2, 1)
        elif isinstance(block, nn.Identity):
            encoder.features[place] = nn.MaxPool2d(3, 1, 1)


def _small(layer: nn.Module) -> None:
    """Initialise a classifier as DeepLab does: weights of standard deviation 0.01, and a bias of 0."""
    nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
