"""The dilated fully convolutional network with skip connections of DMLS (Zhang 2019, section III.A, figure 1).

Legend: B images, C classes, H×W pixels.
"""

from torch import Tensor, nn

from lsseg.errors import ArgumentError
from lsseg.functional.grid import resized
from lsseg.models.encoder import EncoderNet, is_vgg, make_encoder
from lsseg.models.output import SegOutput


class DFCN(EncoderNet):
    """An encoder whose last stage is dilated by 2, and 3×3 convolutions of dilation 2 that merge its stages.

    The figure of the paper tells no widths. From the deepest stage down to stride 4 each stage is brought to ``width``
    channels, added to what came from above (enlarged bilinearly) and passed through one dilated convolution; the scores
    are read off at stride 4. With ResNet-50 and width 256 that is 31 M parameters (the paper: 34 M).

    Args:
        num_classes: C.
        encoder_name: vgg16, resnet50, resnet101 in the paper; any smp encoder that can be dilated.
        encoder_weights: ``imagenet`` or another name smp knows for this encoder, a file; null for random weights.
        width: Channels of the decoder.
        mean: Mean of RGB in [0, 1] that the weights expect; null is what is known of them (ImageNet's of a file).
        std: Standard deviation, likewise.

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
        """Scores of a B×3×H×W image with values in [0, 1]; the features are those at stride 4."""
        padded = self.prepare(image)
        maps = self.encoder(padded)
        x = self.context(maps[self.levels[0]])
        for level, lateral, merge in zip(self.levels[1:], self.lateral, self.merge, strict=True):
            x = merge(resized(x, maps[level].shape[-2:]) + lateral(maps[level]))
        logits = resized(self.classifier(x), padded.shape[-2:])
        return self.output(logits, x, image, padded)


def dilated_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """A 3×3 convolution of dilation 2, batch-norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=2, dilation=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
