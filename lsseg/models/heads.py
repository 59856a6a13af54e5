"""Defines LevelSet R-CNN's heads on pooled boxes, and those of every evolution (Homayounfar 2020, section 4.1, fig. 1).

Legend: M objects, n boxes or images, E pooled features, C classes, D features of the evolution, N iterations, h×w or
R×R cells.

The paper gives widths and depths only in a supplement. Here the mask head is Mask R-CNN's. The other heads are small,
and their expensive convolutions run on coarse grids, so that the evolution takes a small share of the time. By default
the evolution's features F are computed at 28×28, and the evolution interpolates them bilinearly. A box is pooled from
the level of the pyramid on which it is 14 to 28 cells wide, so that no detail of the pyramid is lost. A transposed
convolution instead of the interpolation costs more and leaves a checkerboard in F.
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

from lsseg.functional.blocks import wide
from lsseg.functional.grid import resized
from lsseg.models.fpn import BoxPooler


class MaskHead(nn.Module):
    """Applies Mask R-CNN's mask head: convolutions on 14×14, enlarged to 28×28 or finer, one plane for each class.

    Args:
        channels: Channels of the pooled features, E.
        num_classes: Number of classes, C.
        resolution: Cells along each side of the masks, R = 14 · 2^k with k ≥ 1.
        width: Channels of the convolutions.
        depth: Number of convolutions on 14×14 cells.
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
        """Return the plane of each box's class, n×R×R.

        Args:
            pooled: Pooled features, n×E×14×14.
            labels: Classes of the boxes, n numbers in 0..C-1.
        """
        planes = self.scores(self.enlarge(self.convolutions(pooled)))
        chosen: Tensor = planes.gather(1, labels[:, None, None, None].expand(-1, 1, *planes.shape[2:]))[:, 0]
        return chosen


class PooledHead(nn.Module):
    """Computes a vector for each box by convolutions and an average; the box's hyperparameters are read from it.

    Args:
        channels: Channels of the pooled features, E.
        width: Length of the vector, W.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(convolution(channels, width), convolution(width, width))
        initialise(self)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map n×E×14×14 features to n×W vectors."""
        average: Tensor = self.convolutions(pooled).mean((2, 3))
        return average


class EdgeHead(nn.Module):
    """Predicts DELSE's unit vectors towards the nearest contour, and the modulation of the curvature.

    Args:
        channels: Channels of the input and of the convolutions.
        resolution: Cells along each side of the output, R.
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
        """Return the vectors V, n×2×R×R, and the modulation m in (0, 1), n×R×R, of n×channels×28×28 features."""
        x = self.features(pooled)
        # A 1×1 convolution commutes with the interpolation. It comes first, so that only three channels are enlarged.
        raw = wide(torch.cat([self.velocity(x), self.modulation(x)], 1))
        planes = resized(raw, (self.resolution, self.resolution))
        velocity = planes[:, :2]
        unit = velocity / (velocity.square().sum(1, keepdim=True) + 1e-6).sqrt()
        return unit, torch.sigmoid(planes[:, 2])


class ProposalHead(RPNHead):
    """Applies torchvision's proposal head in any precision, but returns the dtype of the pyramid for the boxes."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the scores and the box deltas of every level."""
        scores, deltas = super().forward(x)
        return [score.to(level.dtype) for score, level in zip(scores, x, strict=True)], [
            delta.to(level.dtype) for delta, level in zip(deltas, x, strict=True)
        ]


class BoxPredictor(FastRCNNPredictor):
    """Applies torchvision's box predictor in any precision, but returns at least float32 for boxes and scores."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class scores and the box deltas."""
        scores, deltas = super().forward(x)
        return wide(scores), wide(deltas)


def proposal_network(width: int, sizes: Sequence[int], proposals: int, samples: int) -> RegionProposalNetwork:
    """Make the network that proposes boxes which may contain an object.

    Args:
        width: Channels of the pyramid.
        sizes: Side in pixels of the anchors of every level, finest first.
        proposals: Number of proposals that an image keeps in evaluation; in training twice as many.
        samples: Number of anchors of an image on which the losses are computed.
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
    """Make the heads that classify a box and correct its edges.

    Args:
        pool: Pools the 7×7 features of a box.
        width: Channels of these features.
        hidden: Width of the two fully connected layers on these features.
        num_classes: Number of classes, without the background.
        samples: Number of boxes of an image on which the losses are computed; at most a quarter contain an object.
        threshold: Least score of a detection.
        detections: Largest number of detections of an image.
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


# Training starts with these values. λ, ε and Δt lie in the middle of (0, 2). μ is smaller, because an iteration
# multiplies ripples of a flat φ near 0 by up to |1 - Δt μ δ / η|: tenfold with μ = 1, less than twofold with this μ.
START = {"lambda1": 1.0, "lambda2": 1.0, "mu": 0.25, "epsilon": 1.0, "dt": 1.0}


class Numbers(NamedTuple):
    """Holds the arguments of :func:`lsseg.functional.chan_vese_evolve` other than φ and the features.

    Attributes:
        lambda1: λ1 of every object, M.
        lambda2: λ2 of every object, M.
        mu: μ of every object, M.
        epsilon: ε_n of every object and iteration, M×N.
        dt: Δt_n of every object and iteration, M×N.
    """

    lambda1: Tensor
    lambda2: Tensor
    mu: Tensor
    epsilon: Tensor
    dt: Tensor

    def by_step(self) -> "list[Numbers]":
        """Return the numbers of each single iteration, a list of N with ε and Δt of M×1."""
        pairs = zip(torch.split(self.epsilon, 1, 1), torch.split(self.dt, 1, 1), strict=True)
        return [self._replace(epsilon=epsilon, dt=dt) for epsilon, dt in pairs]


class Hyperparameters(nn.Module):
    """Computes 2N + 3 numbers in (0, 2) by 2·sigmoid, from each object's pooled features or as one learnt set.

    Args:
        channels: Channels of the pooled features, E.
        steps: Number of iterations, N.
        adaptive: Whether two fully connected layers compute numbers for each object; else all objects share one set.
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
        """Return the numbers of M objects from their M×E pooled features."""
        if self.layers is not None:
            raw = self.layers(pooled.to(next(self.layers.parameters()).dtype))
        else:
            assert self.shared is not None
            raw = self.shared.expand(len(pooled), -1)
        numbers = 2 * torch.sigmoid(wide(raw))
        lambda1, lambda2, mu, steps = torch.split(numbers, [1, 1, 1, 2 * self.steps], 1)
        epsilon, dt = steps.chunk(2, 1)
        return Numbers(lambda1[:, 0], lambda2[:, 0], mu[:, 0], epsilon, dt)


# Standard deviation of last layers' weights at the start. It is small, so that the forces on the contours start small,
# whatever the network was trained to do before.
SMALL = 0.05


class FeatureHead(nn.Module):
    """Computes D features by 3×3 convolutions and a 1×1 convolution whose weights start small.

    Args:
        channels: Channels of the input.
        features: Number of features, D.
        depth: Number of 3×3 convolutions, each with ReLU.
        norm: Whether batch-norm follows each 3×3 convolution.
        enlarge: Factor of a bilinear enlargement before one more 3×3 convolution; 1 leaves both out.

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
        """Return the features of an n×channels×h×w map, n×D×h×w (h and w times ``enlarge``)."""
        x = self.convolutions(pooled)
        if self.fine is not None:
            x = self.fine(F.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False))
        embedded: Tensor = self.embed(x)
        return embedded


def convolution(inputs: int, outputs: int, norm: bool = False) -> nn.Sequential:
    """Return a 3×3 convolution, followed by batch-norm if ``norm`` is true, and by ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
    return nn.Sequential(layer, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True))


def initialise(head: nn.Module) -> None:
    """Initialise the weights of a head's convolutions by He's method, and their biases to 0."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
