"""The counts of every single image: what a paired bootstrap over images resamples."""

import torch
from torch import Tensor
from torchmetrics import Metric

from lsseg.functional import boundary_counts, confusion_matrix, overlap_counts


class PerImage(Metric):
    """Overlap and boundary counts of each image, in the order of the data set, from all ranks.

    Args:
        num_classes: C.
        radii: Tolerances of the boundary counts in pixels.
        ignore_index: Label of void pixels.
    """

    full_state_update = False
    index: list[Tensor]
    overlap: list[Tensor]
    boundary: list[Tensor]

    def __init__(self, num_classes: int, radii: tuple[int, ...] = (1, 2, 3), ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes, self.radii, self.ignore_index = num_classes, radii, ignore_index
        for name in ("index", "overlap", "boundary"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor, index: Tensor) -> None:
        """Add B×H×W predicted labels, their truth and the images' places in the data set (negative: do not count)."""
        self.index.append(index)
        confusion = confusion_matrix(prediction, target, self.num_classes, self.ignore_index)
        self.overlap.append(overlap_counts(confusion))
        counts = [boundary_counts(prediction, target, self.num_classes, r, self.ignore_index) for r in self.radii]
        self.boundary.append(torch.stack(counts, 1))

    def compute(self) -> dict[str, Tensor]:
        """``index`` (N), ``overlap`` (N×C×3) and ``boundary`` (N×radii×C×4), sorted by index."""
        # A list state is one tensor after ranks were joined, and a list before.
        parts = {name: getattr(self, name) for name in ("index", "overlap", "boundary")}
        joined = {name: part if isinstance(part, Tensor) else torch.cat(part) for name, part in parts.items()}
        order = joined["index"].argsort()
        order = order[joined["index"][order] >= 0]
        return {name: part[order] for name, part in joined.items()}
