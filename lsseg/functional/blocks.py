"""Divides the operators' work into blocks and CPU threads, and refuses derivatives that the operators lack.

The operators have only a backward pass. Any other derivative raises an error, because it would otherwise silently be 0.
"""

import inspect
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

# Elements of planes that fit into a CPU core's cache with their intermediate results. A GPU takes all planes at once.
CACHE_ELEMENTS = 2**18
# Scores in one block of pixels: 1 MB of float32. Smaller blocks spend time on dispatch, larger ones on main memory.
BLOCK_ELEMENTS = 2**18


def wide(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they have it: half precision is too coarse for what follows."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def in_cache(device: torch.device) -> bool:
    """Return whether the device is a CPU, which works on blocks in its cache. Other devices get whole tensors."""
    return device.type == "cpu"


def grouped(planes: int, pixels: int, device: torch.device) -> Iterator[slice]:
    """Yield groups of planes to be worked on together: as many as fit into a CPU's cache, or all on other devices.

    >>> list(grouped(3, 512 * 512, torch.device("cpu")))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    size = max(1, CACHE_ELEMENTS // max(1, pixels)) if in_cache(device) else planes
    for start in range(0, planes, max(1, size)):
        yield slice(start, min(planes, start + size))


def of_pixels(scores: torch.Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the indices of blocks of B×C×P scores: some pixels of one image on a CPU, everything on other devices.

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
    """Return the results of work on consecutive shares of the items, in order: one share per torch thread on a CPU.

    Every thread works on its own blocks, and the threads wait for each other once, at the end. If torch splits every
    operation among its threads, they wait at every operation. This takes long when other processes keep the cores busy.

    Args:
        work: Function that makes one result of several items. It is called without gradients.
        items: Items of work, such as blocks.
        device: Device of the tensors. A device other than a CPU gets one share.
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
    """Return a pool of ``count`` threads in which torch uses one thread each, and make it on the first call."""
    if count not in _pools:
        own, ready = torch.get_num_threads(), threading.Barrier(count + 1)

        def prepare() -> None:
            torch.set_num_threads(1)  # holds for this thread, and for threads that start later
            ready.wait()

        _pools[count] = ThreadPoolExecutor(count, thread_name_prefix="lsseg")
        for _ in range(count):
            _pools[count].submit(prepare)
        ready.wait()
        torch.set_num_threads(own)
    return _pools[count]


os.register_at_fork(after_in_child=_pools.clear)  # a forked child does not inherit threads


class Once(torch.autograd.Function):
    """Is the base of a function that is differentiable once, in reverse mode, and works under ``torch.func``."""

    generate_vmap_rule = True

    def __init_subclass__(cls) -> None:
        """Note the signature of the forward pass, which torch would otherwise work out at every call (13 µs)."""
        super().__init_subclass__()
        if "forward" in cls.__dict__:
            cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]


class Gradient(Once):
    """Is the base of the backward pass of a :class:`Once`, and refuses a second derivative."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        """Refuse a second derivative."""
        raise RuntimeError("lsseg's operators are differentiable once; their second derivative is not implemented")


def refuse_forward_mode(*tensors: Tensor) -> None:
    """Raise ``RuntimeError`` where a tensor carries a tangent (``torch.func.jvp``, ``torch.autograd.forward_ad``).

    The functions define no ``jvp`` that would raise it, because ``torch.compile`` does not accept one.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):  # type: ignore[no-untyped-call]
        raise RuntimeError(
            "lsseg's operators have no forward-mode derivative: use reverse mode (backward, torch.func.grad or vjp)"
        )
