"""A network that looks at an image at several scales: the MSC variant of DeepLab (Chen 2018; Kim 2019, table 1).

Legend: B images, C classes, H×W pixels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.errors import InputError
from lsseg.models.output import SegOutput, checked


class MultiScale(nn.Module):
    """One network, shared weights, on the image at several scales; the scores are the largest of all of them.

    In training the scores of each scale are supervised, too.

    Args:
        num_classes: C.
        network: Makes the network for C classes, anything that returns ``SegOutput``. In YAML a class path and its
            arguments without ``num_classes``.
        scales: Of the image; ½, ¾ and 1 in the paper.

    Raises:
        InputError: If a scale is not positive.

    >>> from functools import partial
    >>> from lsseg.models import DeepLabV2
    >>> net = MultiScale(3, partial(DeepLabV2, encoder_name="tu-test_resnet.r160_in1k")).eval()
    >>> output = net(torch.rand(1, 3, 45, 70))
    >>> output.logits.shape, len(output.auxiliary)
    (torch.Size([1, 3, 45, 70]), 3)
    """

    def __init__(
        self, num_classes: int, network: Callable[[int], nn.Module], scales: Sequence[float] = (0.5, 0.75, 1.0)
    ) -> None:
        super().__init__()
        self.scales = check_scales(scales)
        self.num_classes = num_classes
        self.network = network(num_classes)

    def forward(self, image: Tensor) -> SegOutput:
        """Scores of a B×3×H×W image with values in [0, 1], and those of every scale."""
        return at_scales(
            lambda part: checked(self.network(part), self.network, part, self.num_classes), image, self.scales
        )


def at_scales(network: Callable[[Tensor], SegOutput], image: Tensor, scales: Sequence[float]) -> SegOutput:
    """The largest of the scores of a B×3×H×W image at several scales, and those of each as auxiliary ones."""
    scores = []
    for scale in scales:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        part = image if scale == 1 else F.interpolate(image, size, mode="bilinear", align_corners=False)
        logits = network(part).logits
        same = scale == 1
        scores.append(logits if same else F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False))
    return SegOutput(torch.stack(scores).amax(0), auxiliary=tuple(scores))


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales, if an image can be brought to each."""
    if not scales or not all(0 < scale <= 4 for scale in scales):
        raise InputError(f"model.network.scales must be numbers in (0, 4], not {list(scales)}")
    return tuple(scales)
