"""Triton kernels of the truncated signed distance of masks (:mod:`lsseg.functional.distance`).

The square of a distance is a minimum over columns of a minimum over rows, in integers, hence exact. A row's pass needs
one plane for both sides of a mask, since a pixel's distance to the kind that it is of itself is 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BP = 256


def signed_distance(mask: Tensor, limit: float, reach: int) -> Tensor:
    """M×H×W bool → M×H×W float32, clipped to ± the limit; exact where it is at most ``reach`` pixels."""
    planes, height, width = mask.shape
    kinds = mask.contiguous().view(torch.uint8)
    squared = mask.new_empty(mask.shape, dtype=torch.int32)
    out = mask.new_empty(mask.shape, dtype=torch.float32)
    grid = (triton.cdiv(height * width, BP), planes)
    far = (reach + 1) ** 2
    with torch.cuda.device_of(mask):
        _along_rows[grid](kinds, squared, height, width, min(reach, width - 1), far, BP=BP)
        _along_columns[grid](kinds, squared, out, height, width, min(reach, height - 1), far, limit, BP=BP)
    return out


@triton.jit
def _along_rows(kinds, squared, height, width, reach, far, BP: tl.constexpr):
    """Squared distance to the nearest pixel of the other kind in the row; ``far`` where there is none in reach."""
    plane = tl.program_id(1).to(tl.int64) * height * width
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < height * width
    x = pixel % width
    own = tl.load(kinds + plane + pixel, mask=inside, other=0)
    best = tl.zeros([BP], tl.int32) + far
    for step in range(1, reach + 1):
        before = tl.load(kinds + plane + pixel - step, mask=inside & (x >= step), other=0)
        after = tl.load(kinds + plane + pixel + step, mask=inside & (x + step < width), other=0)
        found = ((x >= step) & (before != own)) | ((x + step < width) & (after != own))
        best = tl.minimum(best, tl.where(found, step * step, far))
    tl.store(squared + plane + pixel, best, mask=inside)


@triton.jit
def _along_columns(kinds, squared, out, height, width, reach, far, limit, BP: tl.constexpr):
    """The signed distance: of each row in reach, the nearest pixel of the other kind."""
    plane = tl.program_id(1).to(tl.int64) * height * width
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < height * width
    y = pixel // width
    own = tl.load(kinds + plane + pixel, mask=inside, other=0)
    best = tl.load(squared + plane + pixel, mask=inside, other=0)
    for step in range(1, reach + 1):
        for sign in tl.static_range(-1, 2, 2):
            there = inside & (y + sign * step >= 0) & (y + sign * step < height)
            place = plane + pixel + sign * step * width
            kind = tl.load(kinds + place, mask=there, other=0)
            row = tl.where(kind != own, 0, tl.load(squared + place, mask=there, other=0))
            best = tl.minimum(best, tl.where(there, row + step * step, far))
    distance = tl.sqrt(best.to(tl.float32)) - 0.5
    signed = tl.where(own != 0, distance, -distance)
    tl.store(out + plane + pixel, tl.minimum(tl.maximum(signed, -limit), limit), mask=inside)
