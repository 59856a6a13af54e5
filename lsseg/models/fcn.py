"""FCN-32s, 16s and 8s (Long 2015), the baseline of Zhang 2019, table VI.

Legend: B images, C classes, H×W pixels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lsseg.errors import InputError
from lsseg.models.encoder import EncoderNet, make_encoder
from lsseg.models.output import SegOutput


class FCN(EncoderNet):
    """Scores at strides 32, 16 and 8, added up on the way back to the image's resolution.

    The enlargements between the strides start as bilinear interpolation and are learnt, the last one to the image is
    bilinear and fixed; skip scores start at 0. Images are padded to multiples of 32 instead of by 100 pixels.

    Args:
        num_classes: C.
        stride: Of the finest scores: 32, 16 or 8.
        encoder_name: Any smp encoder; vgg16 in both papers.
        encoder_weights: ``imagenet`` or another name smp knows for this encoder, a file; null for random weights.
        width: Channels of the two layers that VGG's fully connected ones become (7×7 and 1×1 convolutions, dropout);
            4096 in the paper, 0 leaves them out as one does over a residual network.

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
    ) -> None:
        if width < 0:
            raise InputError(f"width of FCN must not be negative, not {width}")
        encoder, channels, strides = make_encoder(encoder_name, encoder_weights)
        super().__init__(encoder_name, encoder_weights, 32)
        self.encoder = encoder
        self.levels = [strides.index(32 >> shift) for shift in range(3) if 32 >> shift >= stride]
        deepest = channels[self.levels[0]]
        self.hidden = _fully_connected(deepest, width) if width else nn.Identity()
        widths = [width or deepest, *(channels[level] for level in self.levels[1:])]
        scores = [nn.Conv2d(width, num_classes, 1) for width in widths]
        for parameter in (p for score in scores[1:] for p in score.parameters()):
            nn.init.zeros_(parameter)
        self.scores = nn.ModuleList(scores)
        self.enlarge = nn.ModuleList(bilinear_doubling(num_classes) for _ in widths[1:])

    def forward(self, image: Tensor) -> SegOutput:
        """Scores of a B×3×H×W image with values in [0, 1]; the features are the finest that it scores."""
        padded = self.prepare(image)
        maps = self.encoder(padded)
        x = self.scores[0](self.hidden(maps[self.levels[0]]))
        for level, score, enlarge in zip(self.levels[1:], self.scores[1:], self.enlarge, strict=True):
            x = enlarge(x) + score(maps[level])
        logits = nn.functional.interpolate(x, padded.shape[-2:], mode="bilinear", align_corners=False)
        return self.output(logits, maps[self.levels[-1]], image, padded)


def _fully_connected(inputs: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, kernel in ((inputs, 7), (width, 1)):
        layers += [nn.Conv2d(size, width, kernel, padding=kernel // 2), nn.ReLU(inplace=True), nn.Dropout2d()]
    return nn.Sequential(*layers)


def bilinear_doubling(channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution that starts as bilinear interpolation to twice the size, each channel by itself."""
    layer = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = ramp[:, None] * ramp
    return layer
