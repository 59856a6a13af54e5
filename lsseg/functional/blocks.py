"""How much of a tensor to work on at a time."""

from collections.abc import Iterator

import torch

# Planes that fit into a CPU core's cache together with their intermediate results; a GPU takes everything at once.
CACHE_ELEMENTS = 2**18
# Scores in one block of pixels: 2 MB of float32. Smaller blocks pay for dispatch, larger ones for main memory.
BLOCK_ELEMENTS = 2**19


def in_cache(device: torch.device) -> bool:
    """Whether to work plane by plane (CPU), or on whole tensors so that the device is not kept waiting (others)."""
    return device.type == "cpu"


def grouped(planes: int, pixels: int, device: torch.device) -> Iterator[slice]:
    """Groups of planes to be worked on together: what fits into a CPU's cache; all of them elsewhere.

    >>> list(grouped(3, 512 * 512, torch.device("cpu")))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    size = max(1, CACHE_ELEMENTS // max(1, pixels)) if in_cache(device) else planes
    for start in range(0, planes, max(1, size)):
        yield slice(start, min(planes, start + size))


def of_pixels(scores: torch.Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Places in B×C×P scores to be worked on one after another: of one image on a CPU, everything at once elsewhere.

    >>> list(of_pixels(torch.zeros(2, 3, 4)))
    [(slice(0, 1, None), slice(None, None, None), slice(0, 4, None)), \
(slice(1, 2, None), slice(None, None, None), slice(0, 4, None))]
    """
    images, classes, pixels = scores.shape
    rows, step = (1, BLOCK_ELEMENTS // max(classes, 1)) if in_cache(scores.device) else (images, pixels)
    for row in range(0, images, max(rows, 1)):
        for start in range(0, pixels, max(step, 1)):
            yield slice(row, row + rows), slice(None), slice(start, min(start + step, pixels))
