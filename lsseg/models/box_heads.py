"""The parts of a detector that find boxes: torchvision's, with the numbers of Mask R-CNN (He 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from lsseg.models.fpn import BoxPooler


class ProposalHead(RPNHead):
    """torchvision's; boxes are not computed in half precision, whatever the convolutions are."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Scores and box deltas of every level."""
        scores, deltas = super().forward(x)
        return [score.to(level.dtype) for score, level in zip(scores, x, strict=True)], [
            delta.to(level.dtype) for delta, level in zip(deltas, x, strict=True)
        ]


class BoxPredictor(FastRCNNPredictor):
    """torchvision's; the same of boxes and scores."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores and box deltas."""
        scores, deltas = super().forward(x)
        wide = torch.promote_types(scores.dtype, torch.float32)
        return scores.to(wide), deltas.to(wide)


def proposal_network(width: int, sizes: Sequence[int], proposals: int, samples: int) -> RegionProposalNetwork:
    """Finds where objects may be.

    Args:
        width: Channels of the pyramid.
        sizes: Side in pixels of the anchors of every level, finest first.
        proposals: How many of an image go on, in evaluation; in training twice as many.
        samples: Anchors of an image that the losses are computed on.
    """
    anchors = AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
    return RegionProposalNetwork(
        anchors,
        ProposalHead(width, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=samples,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * proposals, "testing": proposals},
        post_nms_top_n={"training": 2 * proposals, "testing": proposals},
        nms_thresh=0.7,
    )


def box_heads(
    pool: BoxPooler, width: int, hidden: int, num_classes: int, samples: int, threshold: float, detections: int
) -> RoIHeads:
    """Tells a box's class and moves its edges.

    Args:
        pool: Gives the features of a box, 7×7.
        width: Channels of these.
        hidden: Width of the two layers behind them.
        num_classes: Background not counted.
        samples: Boxes of an image that the losses are computed on; a quarter of them, at most, hold an object.
        threshold: Least score of a detection.
        detections: Most detections of an image.
    """
    return RoIHeads(
        pool,
        TwoMLPHead(width * 7 * 7, hidden),
        BoxPredictor(hidden, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=threshold,
        nms_thresh=0.5,
        detections_per_img=detections,
    )
