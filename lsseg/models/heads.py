"""The heads of LevelSet R-CNN on pooled boxes, and of every evolution (Homayounfar 2020, section 4.1, figure 1).

Legend: M objects, n boxes or images, E pooled features, C classes, D features of the evolution, N iterations, h×w or
R×R cells.

The paper leaves widths and depths to a supplement; here the mask head is Mask R-CNN's, and the others are as small as
keeps the evolution's share of the time small: the dear convolutions run on coarse grids. The evolution's features are
made at 28×28 and are bilinear in between (and never enlarged). A box is pooled from the level of the pyramid on which
it is 14 to 28 cells wide, so that nothing that the pyramid knows is lost. A transposed convolution in place of the
interpolation leaves a checkerboard in F, and costs more.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from lsseg.functional.grid import resized
from lsseg.models.fpn import BoxPooler


class MaskHead(nn.Module):
    """Mask R-CNN's: convolutions on 14×14, enlarged to 28×28 or finer, one plane for each class.

    Args:
        channels: E.
        num_classes: C.
        resolution: R, 14 · 2^k with k ≥ 1.
        width: Channels of the convolutions.
        depth: Number of convolutions on 14×14.
    """

    def __init__(self, channels: int, num_classes: int, resolution: int, width: int = 256, depth: int = 4) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*[convolution(channels if not i else width, width) for i in range(depth)])
        doublings = round(math.log2(resolution / 14))
        self.enlarge = nn.Sequential(
            *[nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2), nn.ReLU(inplace=True)) for _ in range(doublings)]
        )
        self.scores = nn.Conv2d(width, num_classes, 1)
        initialise(self)
        nn.init.normal_(self.scores.weight, std=0.001)  # every mask starts undecided

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """The plane of each box's class, n×R×R.

        Args:
            pooled: n×E×14×14.
            labels: n, 0..C-1.
        """
        planes = self.scores(self.enlarge(self.convolutions(pooled)))
        chosen: Tensor = planes.gather(1, labels[:, None, None, None].expand(-1, 1, *planes.shape[2:]))[:, 0]
        return chosen


class PooledHead(nn.Module):
    """A vector for each box, from which its hyperparameters are read: convolutions, then the average; n×W.

    Args:
        channels: E.
        width: W.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(convolution(channels, width), convolution(width, width))
        initialise(self)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map n×E×14×14 features to scores."""
        average: Tensor = self.convolutions(pooled).mean((2, 3))
        return average


class EdgeHead(nn.Module):
    """DELSE's: unit vectors towards the nearest contour, and the modulation of the curvature.

    Args:
        channels: Channels of the input, and of the convolutions.
        resolution: R.
    """

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.features = FeatureHead(channels, channels)
        self.velocity = nn.Conv2d(channels, 2, 1)
        self.modulation = nn.Conv2d(channels, 1, 1)
        for layer in (self.velocity, self.modulation):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """V, n×2×R×R, and m in (0, 1), n×R×R, from n×channels×28×28."""
        x = self.features(pooled)
        # A layer of 1×1 and the interpolation may change places: three channels are enlarged instead of all.
        raw = torch.cat([self.velocity(x), self.modulation(x)], 1).to(torch.promote_types(x.dtype, torch.float32))
        planes = resized(raw, (self.resolution, self.resolution))
        velocity = planes[:, :2]
        unit = velocity / (velocity.square().sum(1, keepdim=True) + 1e-6).sqrt()
        return unit, torch.sigmoid(planes[:, 2])


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


# Where training starts. λ, ε and Δt lie in the middle of (0, 2). With a μ of 1, too, ripples of a flat φ would grow
# fourfold in every iteration: Δt μ δ / η must stay below 2.
START = {"lambda1": 1.0, "lambda2": 1.0, "mu": 0.25, "epsilon": 1.0, "dt": 1.0}


class Numbers(NamedTuple):
    """What :func:`lsseg.functional.chan_vese_evolve` takes beside φ and the features.

    Attributes:
        lambda1: M; λ1.
        lambda2: M; λ2.
        mu: M; μ.
        epsilon: M×N; ε_n.
        dt: M×N; Δt_n.
    """

    lambda1: Tensor
    lambda2: Tensor
    mu: Tensor
    epsilon: Tensor
    dt: Tensor

    def by_step(self) -> "list[Numbers]":
        """Those of each iteration by itself, N of them with ε and Δt of M×1."""
        pairs = zip(torch.split(self.epsilon, 1, 1), torch.split(self.dt, 1, 1), strict=True)
        return [self._replace(epsilon=epsilon, dt=dt) for epsilon, dt in pairs]


class Hyperparameters(nn.Module):
    """2N + 3 numbers in (0, 2) by 2·sigmoid: from pooled features of each object, or learnt once for the data set.

    Args:
        channels: E.
        steps: N.
        adaptive: Whether each object has its own, by two fully connected layers; else one set for all.
        hidden: Width between the two layers.

    >>> numbers = Hyperparameters(8, steps=3)(torch.rand(5, 8))
    >>> numbers.mu.shape, numbers.epsilon.shape
    (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(self, channels: int, steps: int, adaptive: bool = True, hidden: int = 128) -> None:
        super().__init__()
        self.steps = steps
        values = [START["lambda1"], START["lambda2"], START["mu"]]
        values += [START["epsilon"]] * steps + [START["dt"]] * steps
        start = torch.tensor([math.log(value / (2 - value)) for value in values])
        self.layers: nn.Sequential | None = None
        self.shared: nn.Parameter | None = None
        if adaptive:
            last = nn.Linear(hidden, len(values))
            nn.init.zeros_(last.weight)  # all objects start with the same numbers
            last.bias = nn.Parameter(start)
            self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), last)
        else:
            self.shared = nn.Parameter(start)

    def forward(self, pooled: Tensor) -> Numbers:
        """Numbers of M objects from their M×E pooled features."""
        if self.layers is not None:
            raw = self.layers(pooled)
        else:
            assert self.shared is not None
            raw = self.shared.expand(len(pooled), -1)
        numbers = 2 * torch.sigmoid(raw.to(torch.promote_types(raw.dtype, torch.float32)))
        lambda1, lambda2, mu, steps = torch.split(numbers, [1, 1, 1, 2 * self.steps], 1)
        epsilon, dt = steps.chunk(2, 1)
        return Numbers(lambda1[:, 0], lambda2[:, 0], mu[:, 0], epsilon, dt)


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
