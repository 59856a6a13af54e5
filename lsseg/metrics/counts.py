"""What every score of label maps is made of: counts of images, and their sums.

Legend: B images of a batch, N of a data set, C classes, R radii.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lsseg.functional import boundary_counts, confusion_matrix, overlap_counts

RADII = (1, 2, 3)  # of boundary scores, in pixels


def _overlap(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """B×C×3, see :func:`~lsseg.functional.overlap_counts`."""
    return overlap_counts(confusion_matrix(prediction, target, num_classes, ignore_index))


def _boundary(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """B×R×C×4, see :func:`~lsseg.functional.boundary_counts`."""
    return torch.stack([boundary_counts(prediction, target, num_classes, r, ignore_index) for r in RADII], 1)


# By name. Each maps B×H×W predicted labels, their truth, C and the label of void to int64 counts, B×….
COUNTERS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {"overlap": _overlap, "boundary": _boundary}


class CountSums(Metric):
    """Counts of a whole data set, as integers over images and ranks: how it is divided does not matter.

    Args:
        num_classes: C.
        ignore_index: Label of void pixels.
    """

    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        nothing = torch.full((1, 1, 1), ignore_index)
        for name, count in COUNTERS.items():
            zeros = torch.zeros_like(count(torch.zeros_like(nothing), nothing, num_classes, ignore_index)[0])
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add B×H×W predicted labels and their truth."""
        for name, count in COUNTERS.items():
            counts = count(prediction, target, self.num_classes, self.ignore_index)
            setattr(self, name, getattr(self, name) + counts.sum(0))

    def compute(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {name: getattr(self, name) for name in COUNTERS}


class PerImage(Metric):
    """Counts of each image, in the order of the data set, from all ranks: what a bootstrap over images resamples.

    Args:
        num_classes: C.
        ignore_index: Label of void pixels.
    """

    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        for name in ("index", *COUNTERS):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor, index: Tensor) -> None:
        """Add B×H×W predicted labels, their truth and the images' places in the data set (negative: do not count)."""
        states: dict[str, Any] = {name: getattr(self, name) for name in ("index", *COUNTERS)}
        states["index"].append(index)
        for name, count in COUNTERS.items():
            states[name].append(count(prediction, target, self.num_classes, self.ignore_index))

    def compute(self) -> dict[str, Tensor]:
        """``index`` (N), ``overlap`` (N×C×3) and ``boundary`` (N×R×C×4), sorted by index."""
        # A list state is one tensor after ranks were joined, and a list before.
        parts = {name: getattr(self, name) for name in ("index", *COUNTERS)}
        joined = {name: part if isinstance(part, Tensor) else torch.cat(part) for name, part in parts.items()}
        order = joined["index"].argsort()
        order = order[joined["index"][order] >= 0]
        return {name: part[order] for name, part in joined.items()}
