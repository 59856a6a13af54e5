"""Scores of detected masks over one split."""

from typing import Any

from torch import Tensor, nn

from lsseg.metrics import CocoAP, InstanceMatches
from lsseg.metrics.instances import boundary_averages

RADII = (1, 2)


class InstanceScores(nn.Module):
    """Average precision by COCO's evaluator, and AF.

    Args:
        num_classes: C.
        detections: Most detections of an image that count.
        boxes: Whether boxes are scored, too.
    """

    def __init__(self, num_classes: int, detections: int, boxes: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.precision = CocoAP(num_classes, detections, boxes)
        self.matches = InstanceMatches(num_classes, RADII, detections)

    def update(self, found: list[dict[str, Tensor]], truth: list[dict[str, Tensor]], index: Tensor) -> None:
        """Add images: their objects as found and as they are (see the two metrics), their places in the data set."""
        self.precision.update(found, truth, index)
        self.matches.update(found, truth, index)

    def compute(self) -> tuple[dict[str, Tensor], Tensor]:
        """Scores by name, and the AP of each class (C); NaN for what has none."""
        scores = self.precision.compute()
        by_class = scores.pop("mask_ap_by_class").reshape(-1)  # torchmetrics makes a scalar of a single number
        boundary, left_out = boundary_averages(self.matches.compute()["detections"], self.num_classes, len(RADII))
        averages = {f"af{radius}": boundary[:, i].nanmean() for i, radius in enumerate(RADII)}
        return {**scores, **averages, "af_left_out": left_out.double()}, by_class

    def rows(self) -> dict[str, Tensor]:
        """Every detection and how many objects there are, by image (see :class:`~lsseg.metrics.InstanceMatches`)."""
        rows: dict[str, Any] = self.matches.compute()
        return rows

    def reset(self) -> None:
        """Start over."""
        self.precision.reset()
        self.matches.reset()
