"""What our operators share: how much of a tensor they work on at a time, in which CPU thread, and what they refuse.

They have a backward pass and nothing else: whatever else is asked of them is refused, not 0 in silence.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Item = TypeVar("Item")
Result = TypeVar("Result")

# Planes that fit into a CPU core's cache together with their intermediate results; a GPU takes everything at once.
CACHE_ELEMENTS = 2**18
# Scores in one block of pixels: 1 MB of float32. Smaller blocks pay for dispatch, larger ones for main memory.
BLOCK_ELEMENTS = 2**18


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


def in_threads(work: Callable[[Sequence[Item]], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """What becomes of consecutive shares of the items, one share for each of torch's threads on a CPU; in their order.

    Every thread works on its own blocks and they meet once, at the end. Torch's own way, to split every operation among
    the threads, lets them wait for each other at each, which takes long where other processes keep the cores busy.

    Args:
        work: Makes one result of some items. It is called without gradients.
        items: Blocks, for instance.
        device: Device of the tensors; elsewhere than on a CPU there is one share.
    """
    count = min(torch.get_num_threads(), len(items)) if in_cache(device) else 1
    if count <= 1:
        return [_without_gradients(work, items)]
    edges = [len(items) * k // count for k in range(count + 1)]
    shares = [items[start:stop] for start, stop in itertools.pairwise(edges)]
    return list(_pool(count).map(_without_gradients, [work] * count, shares))


def _without_gradients(work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> Result:
    with torch.no_grad():
        return work(items)


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool(count: int) -> ThreadPoolExecutor:
    """Threads in which torch has one thread each; made once for each number of them."""
    if count not in _pools:
        own, ready = torch.get_num_threads(), threading.Barrier(count + 1)

        def prepare() -> None:
            torch.set_num_threads(1)  # of this thread, and of those that have not begun
            ready.wait()

        _pools[count] = ThreadPoolExecutor(count, thread_name_prefix="lsseg")
        for _ in range(count):
            _pools[count].submit(prepare)
        ready.wait()
        torch.set_num_threads(own)
    return _pools[count]


os.register_at_fork(after_in_child=_pools.clear)  # threads do not go along


class Once(torch.autograd.Function):
    """The base of a function that is differentiable once, in reverse mode, and works under ``torch.func``."""

    generate_vmap_rule = True


class Gradient(Once):
    """The base of such a function's backward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        """Refuse a second derivative."""
        raise RuntimeError("lsseg's operators are differentiable once; their second derivative is not implemented")


def refuse_forward_mode(*tensors: Tensor) -> None:
    """Raise ``RuntimeError`` where a tensor carries a tangent (``torch.func.jvp``, ``torch.autograd.forward_ad``).

    Not a ``jvp`` of the function: ``torch.compile`` does not take one.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):  # type: ignore[no-untyped-call]
        raise RuntimeError(
            "lsseg's operators have no forward-mode derivative: use reverse mode (backward, torch.func.grad or vjp)"
        )
