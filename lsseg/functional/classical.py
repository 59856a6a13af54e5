"""Segments images by the classical Chan-Vese model, without learned parts (Chan and Vese 2001).

Legend: M images, D channels, H×W pixels. u in [0, 1] is the soft mask of the inside.

    E = λ1 Σ_inside ‖I - c1‖² + λ2 Σ_outside ‖I - c2‖² + μ · length,    c1, c2: means of I inside and outside

For given means E is convex in u, and every threshold of its minimiser minimises E among regions (Chan, Esedoglu and
Nikolova 2006, theorem 2). No evolution of a level set can promise this. A primal-dual iteration (Chambolle and Pock
2011, algorithm 1) finds the minimiser, and updates the means regularly. Forward differences measure the length.
"""

import math

import torch
from torch import Tensor

from lsseg.functional.distance import signed_distance

# The primal step is STEP / μ, because u lies in [0, 1]. The dual step is STEP · μ, because dual vectors have lengths up
# to μ. The product of both steps and 8, the squared norm of the differences, must not exceed 1.
STEP = 1 / math.sqrt(8)
# After this many iterations the means are computed anew, and the loop checks whether labels still change.
EVERY = 10


def chan_vese_segment(
    image: Tensor,
    mask: Tensor | None = None,
    mu: float = 0.25,
    lambda1: float = 1.0,
    lambda2: float = 1.0,
    steps: int = 500,
    tolerance: float = 1e-5,
    reach: float | None = None,
) -> Tensor:
    """Split every image into two regions of nearly one colour each, with a short contour between them.

    Args:
        image: M×D×H×W, with values in [0, 1] (μ is in units of squared values).
        mask: M×H×W bool, the first inside. It gives the first means, and decides which region is called inside. None
            starts from the brighter pixels of every image (two means of the sum over channels).
        mu: μ ≥ 0, weight of each pixel of the contour's length.
        lambda1: λ1 > 0, weight of the squared distances from the mean inside.
        lambda2: λ2 > 0, weight of the squared distances from the mean outside.
        steps: The largest number of iterations.
        tolerance: Iterations end when at most this share of the pixels changes sides within ten iterations.
        reach: Labels may change only at less than this distance from the contour of ``mask``, in pixels. Only these
            pixels enter the means (as in Lankton and Tannenbaum 2008). None lets all pixels change.

    Returns:
        φ = 2u - 1 in [-1, 1], M×H×W, positive inside.

    Raises:
        ValueError: If shapes do not fit or a number is out of range.

    >>> image = torch.zeros(1, 1, 6, 8)
    >>> image[..., 3:] = 1
    >>> (chan_vese_segment(image)[0, 0] > 0).int().tolist()
    [0, 0, 0, 1, 1, 1, 1, 1]
    """
    _check(image, mask, mu, lambda1, lambda2, steps, reach)
    dtype = torch.promote_types(image.dtype, torch.float32)
    values = image.detach().to(dtype)
    inside = _two_means(values) if mask is None else mask
    free = torch.ones_like(inside) if reach is None else signed_distance(inside, reach).abs() < reach
    found = [
        _relaxed(one, start, where, mu, lambda1, lambda2, steps, tolerance)
        for one, start, where in zip(values, inside, free, strict=True)
    ]
    return torch.stack(found) if found else values.new_empty(0, *image.shape[2:])


def chan_vese_energy(
    image: Tensor, mask: Tensor, mu: float = 0.25, lambda1: float = 1.0, lambda2: float = 1.0
) -> Tensor:
    """Return the energy E of every image's regions, M float64 numbers.

    Args:
        image: M×D×H×W.
        mask: M×H×W bool, True inside.
        mu: μ.
        lambda1: λ1.
        lambda2: λ2.

    >>> image = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 4)
    >>> chan_vese_energy(image, image[:, 0] > 0.5)  # nothing but a contour of one pixel
    tensor([0.2500], dtype=torch.float64)
    """
    values, energy = image.double().flatten(2), mask.new_zeros(len(mask), dtype=torch.float64)
    for side, weight in ((mask, lambda1), (~mask, lambda2)):
        share = side.double().flatten(1).unsqueeze(1)
        mean = (values * share).sum(2, keepdim=True) / share.sum(2, keepdim=True).clamp_min(1)
        energy = energy + weight * ((values - mean).square() * share).sum((1, 2))
    u = mask.double()
    across, down = torch.zeros_like(u), torch.zeros_like(u)
    across[:, :, :-1], down[:, :-1] = u.diff(dim=2), u.diff(dim=1)
    return energy + mu * (across.square() + down.square()).sqrt().sum((1, 2))


def _check(
    image: Tensor,
    mask: Tensor | None,
    mu: float,
    lambda1: float,
    lambda2: float,
    steps: int,
    reach: float | None,
) -> None:
    if image.ndim != 4 or not image.is_floating_point() or 0 in image.shape[1:]:
        raise ValueError(f"expected floating images M×D×H×W, not {tuple(image.shape)} of {image.dtype}")
    if mask is not None and (mask.shape != (len(image), *image.shape[2:]) or mask.dtype != torch.bool):
        raise ValueError(f"expected a bool mask M×H×W, not {tuple(mask.shape)} of {mask.dtype}")
    if not 0 <= mu < math.inf:
        raise ValueError(f"mu must be a number that is not negative, not {mu}")
    for name, value in (("lambda1", lambda1), ("lambda2", lambda2)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, not {value}")
    if reach is not None and (mask is None or not 0 < reach < math.inf):
        raise ValueError(
            "reach must be positive and needs a mask, because it is a distance from the contour of the mask"
        )
    if steps < 0:
        raise ValueError(f"steps must not be negative, not {steps}")


def _two_means(values: Tensor) -> Tensor:
    """Return which pixels are brighter than midway between the two means of the brightness, M×H×W bool."""
    brightness = values.sum(1)
    threshold = brightness.mean((1, 2), keepdim=True)
    for _ in range(20):
        above = brightness > threshold
        count = above.sum((1, 2), keepdim=True)
        high = (brightness * above).sum((1, 2), keepdim=True) / count.clamp_min(1)
        low = (brightness * ~above).sum((1, 2), keepdim=True) / (above.shape[1] * above.shape[2] - count).clamp_min(1)
        threshold = torch.where(count > 0, (high + low) / 2, threshold)  # an image of one colour has a count of 0
    return brightness > threshold


def _relaxed(
    image: Tensor,
    inside: Tensor,
    free: Tensor,
    mu: float,
    lambda1: float,
    lambda2: float,
    steps: int,
    tolerance: float,
) -> Tensor:
    """Return 2u - 1 of one image, where only the pixels in ``free`` may change."""
    u = inside.to(image.dtype)
    force = _force(image, inside, free, lambda1, lambda2)
    if mu == 0:
        return 2 * u - 1 if force is None else 2 * torch.where(free, force > 0, inside).to(image.dtype) - 1
    least, most = u.masked_fill(free, 0), u.masked_fill(free, 1)
    ahead, across, down = u.clone(), torch.zeros_like(u), torch.zeros_like(u)
    norm, change = torch.empty_like(u), torch.empty_like(u)
    for step in range(1, steps + 1):
        if force is None:  # one side is empty, so there are no two means and no contour
            break
        across[:, :-1].add_(ahead.diff(dim=1), alpha=STEP * mu)
        down[:-1].add_(ahead.diff(dim=0), alpha=STEP * mu)
        torch.hypot(across, down, out=norm).div_(mu).clamp_min_(1)
        across.div_(norm)
        down.div_(norm)
        torch.add(across, down, out=change)
        change[:, 1:].sub_(across[:, :-1])
        change[1:].sub_(down[:-1])
        new = change.add_(force).mul_(STEP / mu).add_(u).clamp_(least, most)
        torch.mul(new, 2, out=ahead).sub_(u)
        u, change = new, u
        if step % EVERY == 0:
            before, inside = inside, u > 0.5
            force = _force(image, inside, free, lambda1, lambda2)
            if int((before != inside).sum()) <= tolerance * inside.numel():
                break
    return 2 * u - 1


def _force(image: Tensor, inside: Tensor, free: Tensor, lambda1: float, lambda2: float) -> Tensor | None:
    """Return λ2 ‖I - c2‖² - λ1 ‖I - c1‖², H×W, with the free pixels' means, or None if a region has no free pixel."""
    both = []
    for side in (inside & free, ~inside & free):
        count = int(side.sum())
        if not count:
            return None
        mean = (image * side.to(image.dtype)).sum((1, 2), keepdim=True) / count
        both.append((image - mean).square().sum(0))
    first, second = both
    return second.mul_(lambda2).sub_(first, alpha=lambda1)
