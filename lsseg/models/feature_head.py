"""The features that a Chan-Vese evolution works on (Homayounfar 2020, section 4.1).

Legend: n boxes or images, D features, h×w cells.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# The features' scale at the start: forces on the contours start small, whatever the network was trained to do before.
SMALL = 0.05


class FeatureHead(nn.Module):
    """3×3 convolutions, then D features from a 1×1 convolution whose weights start small; n×D×h×w.

    Args:
        channels: Channels of the input.
        features: D.
        depth: The number of 3×3 convolutions, each with ReLU.
        norm: Whether batch-norm follows each of them.
        enlarge: Factor by which the map is enlarged, bilinearly, before one more 3×3 convolution; 1 leaves both out.

    >>> import torch
    >>> FeatureHead(8, 4)(torch.rand(2, 8, 28, 28)).shape
    torch.Size([2, 4, 28, 28])
    """

    def __init__(self, channels: int, features: int, depth: int = 2, norm: bool = False, enlarge: int = 1) -> None:
        super().__init__()
        self.enlarge = enlarge
        inputs = [channels, *[features] * (depth - 1)]
        self.convolutions = nn.Sequential(*[convolution(count, features, norm) for count in inputs])
        self.fine = convolution(features, features, norm) if enlarge > 1 else None
        self.embed = nn.Conv2d(features, features, 1)
        initialise(self)
        nn.init.normal_(self.embed.weight, std=SMALL)

    def forward(self, pooled: Tensor) -> Tensor:
        """The features of n×channels×h×w."""
        x = self.convolutions(pooled)
        if self.fine is not None:
            x = self.fine(F.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False))
        embedded: Tensor = self.embed(x)
        return embedded


def convolution(inputs: int, outputs: int, norm: bool = False) -> nn.Sequential:
    """A 3×3 convolution, batch-norm where it is asked for, and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
    return nn.Sequential(layer, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True))


def initialise(head: nn.Module) -> None:
    """He's initialisation of every convolution of a head."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
