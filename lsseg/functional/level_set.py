"""Computes the level-set energy on the ground truth (Kim 2019, eq. 4-8), for labels and soft or overlapping regions.

Legend: B images, C classes. ``spatial`` is any number of axes. P is the class probability and G the ground truth.

For one class of one image let h = H_ε(P - ½) and, over the valid pixels, S = Σ h, A = Σ G h, T = Σ G, N = Σ 1,
R = Σ G² h and Q = Σ G². The region means are c1 = A/S and c2 = (T-A)/(N-S), and the energy becomes

    E = Σ (G - c1)² h + (G - c2)² (1 - h) = (R - A c1) + (Q - R - (T - A) c2)

For labels let p = A/S be the precision of the class and r = A/T its recall, both weighted by h. Then

    E/T = 1 - r p - (1 - r) c2

and c2 is near 0 for a class that is small in its image. So the energy per pixel of a class is a score of its region, as
Dice is. But it falls by no more than 2 p/T for each pixel of the class at which h rises to 1, and hence hardly at all
while p is near 0: the energy sharpens a class that cross-entropy has begun to learn, and does not teach one that is yet
to be found. Its logarithm does, because -log(1 - E/T) falls by that change divided by 1 - E/T, which is then as small.
For soft regions it is -log(1 - E/Q). 1 - E/Q is the share of Σ G² that the two means explain; for labels it is T/N or
more, so that the logarithm is finite.

Because c1 and c2 minimise E for a fixed h, its total derivative is ∂E/∂h = c1² - c2² + 2 G (c2 - c1) (eq. 7). For
labels G² is G, so that R = A and Q = T. The forward pass needs a few sums per class. The backward pass needs two
numbers per class and one more softmax. There is no loop over classes. Nothing of the size of the logits is kept between
the passes, except for the logits. :mod:`lsseg.functional.level_set_labels` does the work for labels, without a one-hot
truth. :mod:`lsseg.functional.level_set_regions` does it for a truth that has its own value for every class.
"""

import warnings
from typing import Literal

import torch
from torch import Tensor

from lsseg.errors import ArgumentError
from lsseg.functional import level_set_labels, level_set_regions
from lsseg.functional.blocks import refuse_forward_mode
from lsseg.functional.heaviside import HeavisideKind, check_heaviside
from lsseg.functional.kernels import Kernels, check_kernels, use_triton
from lsseg.functional.level_set_labels import Scaling

Reduction = Literal["mean", "balanced", "log", "batchmean", "sum", "none"]
SCALINGS: dict[str, Scaling] = {  # of each reduction
    "mean": "mean",
    "balanced": "balanced",
    "log": "log",
    "batchmean": "sum",
    "sum": "sum",
    "none": "mean",
}
Mode = Literal["multiclass", "multilabel", "binary"]
Terms = tuple[Tensor, Tensor]

# Triton's kernels compute the energies of at most this many classes.
MOST_CLASSES = 1024


def level_set_energy(
    logits: Tensor,
    target: Tensor,
    epsilon: float = 1 / 20,
    heaviside: HeavisideKind = "mahf",
    ignore_index: int = 255,
    reduction: Reduction = "mean",
    kernels: Kernels = "auto",
    *,
    mode: Mode = "multiclass",
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    kind: HeavisideKind | None = None,
) -> Tensor:
    """Return the region-based level-set energy of the class probabilities on the ground truth (Kim 2019, eq. 4-7).

    Only classes that occur in an image's valid pixels (Σ G > 0) contribute. An image without valid pixels contributes
    0, and so does a region of zero area. No gradient goes to the target.

    Args:
        logits: B×C×spatial scores with one, two, three or more spatial axes, of any floating dtype and memory format.
            The computation is in float32 at least, and sums are in float64.
        target: Integers are labels in 0..C-1, or ``ignore_index``, B×spatial or B×1×spatial. A floating target is soft:
            B×C×spatial values G in [0, 1]. In ``binary`` and ``multilabel`` mode integers and bools are masks of 0 and
            1 (or ``ignore_index``), of the shape of the logits. In ``binary`` mode the axis of length 1 may be absent.
        epsilon: Width of the Heaviside transition, in units of probability.
        heaviside: Heaviside approximation; ``hf`` passes no gradient, as in the paper.
        ignore_index: Label of void pixels, which enter no sum.
        reduction: How the B×C energies become one number:

            ============= ======================================== ==================================================
            ``none``      B×C energies per valid pixel             A class that the image lacks has the energy 0.
            ``mean``      sum over classes, mean over B, of the    The result does not depend on the resolution.
                          energies per valid pixel
            ``balanced``  mean over the image's classes, mean over Small classes count like large ones. With classes
                          B, of the energies per pixel of a class  of one size, the result equals that of ``mean``.
            ``log``       mean over the image's classes, mean over It also teaches classes that are yet to be found, as
                          B, of -log(1 - energy per pixel of a     the module says. It is in none of the papers.
                          class)
            ``batchmean`` sum over pixels and classes, mean over B The paper prints this. It grows with the image.
            ``sum``       the same as ``batchmean``                This is the older name of ``batchmean``.
            ============= ======================================== ==================================================
        kernels: ``auto`` uses Triton on a GPU where it is installed. ``triton`` or ``torch`` forces one or the other.
            Triton's kernels work on labels of up to 1024 classes. Whole-tensor operations do everything else.
        mode: ``multiclass`` makes probabilities by a softmax. ``multilabel`` makes them by a sigmoid for each class,
            and classes may overlap. ``binary`` does the same for a single class (C = 1), whose energy is half that of
            the equivalent two-class softmax.
        valid: Bool, B×spatial or B×1×spatial: pixels that count. None counts all pixels but the void ones.
        class_weights: Factors of the classes' energies, C numbers. The energy is not divided by their sum.
        kind: The older name of ``heaviside``.

    Returns:
        Scalar (B×C for ``none``), float32 (float64 for float64 logits). Differentiable once, in reverse mode.

    Raises:
        ValueError: If shapes do not fit, a label names no class, or an option is unknown. On a GPU, labels that name no
            class make the energy NaN instead, because the check would have to wait for the GPU.

    >>> logits = torch.tensor([[[[9.0, 9.0, -9.0]], [[-9.0, -9.0, 9.0]]]])
    >>> bool(level_set_energy(logits, torch.tensor([[[0, 0, 1]]])) < 1e-6)
    True
    >>> volume, mask = torch.randn(1, 1, 4, 5, 6), torch.rand(1, 1, 4, 5, 6) > 0.5
    >>> level_set_energy(volume, mask, mode="binary").shape
    torch.Size([])
    """
    options = epsilon, kind or heaviside, ignore_index, reduction, kernels, mode, valid
    _, energies = _terms(logits, target, *options, cross_entropy=False)
    return _reduced(energies, reduction, class_weights)


def cross_entropy_level_set(
    logits: Tensor,
    target: Tensor,
    epsilon: float = 1 / 20,
    heaviside: HeavisideKind = "mahf",
    ignore_index: int = 255,
    reduction: Reduction = "mean",
    kernels: Kernels = "auto",
    *,
    mode: Mode = "multiclass",
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    kind: HeavisideKind | None = None,
) -> Terms:
    """Return the cross-entropy and the level-set energy from one softmax or sigmoid (both terms of Kim 2019, eq. 8).

    Args:
        logits: B×C×spatial scores.
        target: See :func:`level_set_energy`. The cross-entropy of a soft target is -Σ G log P.
        epsilon: See :func:`level_set_energy`.
        heaviside: See :func:`level_set_energy`.
        ignore_index: Label of void pixels.
        reduction: Reduction of the level-set energy. The cross-entropy is always the mean over the batch's valid pixels
            (and over classes in ``multilabel`` mode), or 0 without valid pixels.
        kernels: See :func:`level_set_energy`.
        mode: See :func:`level_set_energy`; the cross-entropy of ``binary`` and ``multilabel`` is the binary one.
        valid: See :func:`level_set_energy`.
        class_weights: Factors of the classes' energies. The cross-entropy does not use them.
        kind: The older name of ``heaviside``.

    Returns:
        The cross-entropy (a scalar) and the level-set energy, both differentiable once.

    Raises:
        ValueError: In the same cases as :func:`level_set_energy`.
    """
    options = epsilon, kind or heaviside, ignore_index, reduction, kernels, mode, valid
    cross_entropy, energies = _terms(logits, target, *options, cross_entropy=True)
    return cross_entropy, _reduced(energies, reduction, class_weights)


def check_level_set(epsilon: float, heaviside: str, reduction: str, mode: str, kernels: str) -> None:
    """Raise ``ValueError`` for an option out of range or unknown."""
    check_heaviside(epsilon, heaviside)
    check_kernels(kernels)
    if reduction not in SCALINGS:
        known = "'mean', 'balanced', 'log', 'batchmean' (or 'sum') or 'none'"
        raise ArgumentError(f"reduction must be {known}, not {reduction!r}")
    if mode not in ("multiclass", "multilabel", "binary"):
        raise ArgumentError(f"mode must be 'multiclass', 'multilabel' or 'binary', not {mode!r}")


def _terms(
    logits: Tensor,
    target: Tensor,
    epsilon: float,
    heaviside: HeavisideKind,
    ignore_index: int,
    reduction: Reduction,
    kernels: Kernels,
    mode: Mode,
    valid: Tensor | None,
    cross_entropy: bool,
) -> Terms:
    """Return the mean cross-entropy and the energies (B×C), scaled so that their sum over classes is what counts."""
    check_level_set(epsilon, heaviside, reduction, mode, kernels)
    for name, value in (("logits", logits), ("target", target), ("valid", target if valid is None else valid)):
        if not isinstance(value, Tensor):
            raise ValueError(f"expected a tensor as the {name}, not {type(value).__name__}")
        if value.device != logits.device:
            raise ValueError(f"the logits are on {logits.device}, but the {name} is on {value.device}")
    if not isinstance(ignore_index, int):
        raise ArgumentError(
            f"ignore_index must be a whole number, such as -100 if no label is void, not {ignore_index}"
        )
    if logits.ndim < 3 or not logits.is_floating_point():
        raise ValueError(f"expected floating logits B×C×spatial, not {tuple(logits.shape)} of {logits.dtype}")
    refuse_forward_mode(logits)
    space, classes = (logits.shape[0], *logits.shape[2:]), logits.shape[1]
    if mode == "binary" and classes != 1:
        raise ValueError(f"mode 'binary' expects logits of one class, B×1×spatial, not {tuple(logits.shape)}")
    if mode == "multiclass" and classes == 1:
        raise ValueError("a softmax over one class is 1 everywhere: logits of one class need mode='binary'")
    if valid is not None:
        valid = _without_class_axis(valid, space, "valid")
        if valid.dtype != torch.bool:
            raise ValueError(f"valid must be bool, not {valid.dtype}")
    options = epsilon, heaviside, SCALINGS[reduction], cross_entropy
    if mode == "multiclass" and not target.is_floating_point():
        if target.shape == logits.shape:
            raise ValueError("integers are labels, B×spatial: a truth with a value for every class must be floating")
        labels = _without_class_axis(target, space, "target")
        if valid is not None:
            labels = labels.masked_fill(~valid, ignore_index)
        triton = use_triton(kernels, logits) and classes <= MOST_CLASSES
        return level_set_labels.terms(logits, labels, ignore_index, *options, triton)
    truth, valid = _regions(logits, target, valid, ignore_index, mode)
    return level_set_regions.terms(logits, truth, valid, mode == "multiclass", *options)


def _without_class_axis(values: Tensor, space: tuple[int, ...], name: str) -> Tensor:
    """Bring B×1×spatial values to B×spatial, and refuse any other shape."""
    if values.shape == (space[0], 1, *space[1:]):
        return values.squeeze(1)
    if values.shape != space:
        raise ValueError(f"expected {name} B×spatial = {space}, not {tuple(values.shape)}")
    return values


def _regions(
    logits: Tensor, target: Tensor, valid: Tensor | None, ignore_index: int, mode: Mode
) -> tuple[Tensor, Tensor | None]:
    """Return the truth in the shape of the logits, and the mask of its valid pixels (None for all)."""
    if mode == "binary" and target.shape == (logits.shape[0], *logits.shape[2:]):
        target = target.unsqueeze(1)
    if target.shape != logits.shape:
        hint = " (labels must be integers)" if mode == "multiclass" and target.ndim < logits.ndim else ""
        shape = tuple(target.shape)
        raise ValueError(f"expected a target of the logits' shape {tuple(logits.shape)}, not {shape}{hint}")
    if target.is_floating_point() or target.dtype == torch.bool:
        return target, valid
    void = target == ignore_index
    _warn_of_void_foreground(target, void, ignore_index)
    at_all = ~void.any(1)  # a pixel that is void for one class is void for all
    return target.masked_fill(void, 0), at_all if valid is None else valid & at_all


def _warn_of_void_foreground(target: Tensor, void: Tensor, ignore_index: int) -> None:
    """Warn where a mask of 0 and 255 seems to be meant, whose objects are void. Only a CPU can look without waiting."""
    if target.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack():
        return
    if bool(void.any()) and not bool((target == 1).any()):
        warnings.warn(
            f"the target has the value {ignore_index}, which is void, but no 1: if {ignore_index} is the object, give "
            f"target == {ignore_index}",
            stacklevel=2,
        )


def _reduced(energies: Tensor, reduction: Reduction, class_weights: Tensor | None) -> Tensor:
    if class_weights is not None:
        if class_weights.shape != energies.shape[1:]:
            raise ValueError(f"expected {energies.shape[1]} class_weights, not {tuple(class_weights.shape)}")
        energies = energies * class_weights.to(energies)
    return energies if reduction == "none" else energies.sum() / max(1, len(energies))
