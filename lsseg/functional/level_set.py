"""Level-set energy on the ground truth (Kim 2019, eq. 4-8), for labels and for soft and overlapping regions.

Legend: B images, C classes, spatial: any number of axes, P pixels or voxels of an image.

For one class of one image let h = H_ε(P - ½) and, over the valid pixels, S = Σ h, A = Σ G h, T = Σ G, N = Σ 1,
R = Σ G² h and Q = Σ G². The region means are c1 = A/S and c2 = (T-A)/(N-S), and the energy collapses to

    E = Σ (G - c1)² h + (G - c2)² (1 - h) = (R - A c1) + (Q - R - (T - A) c2)

and because c1 and c2 minimise E for a fixed h, its total derivative is ∂E/∂h = c1² - c2² + 2 G (c2 - c1) (eq. 7). Of
labels G² is G, so that R = A and Q = T. The forward pass needs a few sums per class, the backward pass two numbers per
class and one more softmax: no loop over classes, nothing of the size of the logits kept between the passes but the
logits themselves. :mod:`lsseg.functional.level_set_labels` does the work for labels (no one-hot truth),
:mod:`lsseg.functional.level_set_regions` for a truth that has its own value for every class.
"""

from typing import Literal

import torch
from torch import Tensor

from lsseg.errors import ArgumentError
from lsseg.functional import level_set_labels, level_set_regions
from lsseg.functional.blocks import refuse_forward_mode
from lsseg.functional.heaviside import HeavisideKind, check_heaviside
from lsseg.functional.kernels import Kernels, check_kernels, use_triton

Reduction = Literal["mean", "balanced", "batchmean", "sum", "none"]
Mode = Literal["multiclass", "multilabel", "binary"]
Terms = tuple[Tensor, Tensor]

# Of more classes Triton's kernels do not make energies.
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
    """Region-based level-set energy of the class probabilities on the ground truth (Kim 2019, eq. 4-7).

    Only classes that an image's valid pixels hold contribute (Σ G > 0). An image without valid pixels, and a region of
    zero area, contribute 0. No gradient goes to the target.

    Args:
        logits: B×C×spatial scores with one, two, three or more axes, any floating dtype and memory format; computed in
            float32 at least, summed in float64.
        target: Integers are labels in 0..C-1, or ``ignore_index``, B×spatial or B×1×spatial. A floating target is soft:
            B×C×spatial values G in [0, 1]. In ``binary`` and ``multilabel`` mode integers and bools are masks of 0 and
            1 (or ``ignore_index``), of the shape of the logits; in ``binary`` mode the axis of length 1 may be absent.
        epsilon: Width of the Heaviside transition, in units of probability.
        heaviside: Heaviside approximation; ``hf`` passes no gradient, as in the paper.
        ignore_index: Label of void pixels, which belong to no sum.
        reduction: How B×C energies become one:

            ============= ===================================== =======================================
            ``none``      energies per valid pixel, B×C         0 for a class that the image lacks
            ``mean``      their sum over classes, mean over B   independent of the resolution
            ``balanced``  each by the pixels of its own class,  small classes count like large ones; of
                          mean over the classes that the image  classes of one size it is ``mean``
                          holds, mean over B
            ``batchmean`` summed over pixels and classes, too,  as printed; grows with the image
                          mean over B
            ``sum``       the same                              the older name of ``batchmean``
            ============= ===================================== =======================================
        kernels: ``auto``: Triton's on a GPU, where Triton is there; ``triton`` or ``torch`` force one or the other.
            Triton's are for labels of up to 1024 classes; everything else is whole-tensor operations.
        mode: ``multiclass``: the probabilities are a softmax; ``multilabel``: a sigmoid of each class, which may
            overlap; ``binary``: the same of the one class that there is (C = 1), which is half of the energy that its
            two-class softmax has.
        valid: Bool, B×spatial or B×1×spatial: pixels that count; None is all of them (but void labels).
        class_weights: Factors of the classes' energies, C numbers; not divided by their sum.
        kind: The older name of ``heaviside``.

    Returns:
        Scalar (or B×C), float32 (float64 for float64 logits). Differentiable once, in reverse mode.

    Raises:
        ValueError: If shapes do not fit, a label names no class, or an option is unknown. On a GPU, which is not waited
            for, the energy of labels that name no class is no number instead.

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
    """Cross-entropy and level-set energy from one softmax or sigmoid (the two terms of Kim 2019, eq. 8).

    Args:
        logits: B×C×spatial scores.
        target: See :func:`level_set_energy`. A soft target's cross-entropy is -Σ G log P.
        epsilon: See :func:`level_set_energy`.
        heaviside: See :func:`level_set_energy`.
        ignore_index: Label of void pixels.
        reduction: Reduction of the level-set energy. The cross-entropy is always the mean over the batch's valid pixels
            (in ``multilabel`` mode and over classes), 0 where there is none.
        kernels: See :func:`level_set_energy`.
        mode: See :func:`level_set_energy`; the cross-entropy of ``binary`` and ``multilabel`` is the binary one.
        valid: See :func:`level_set_energy`.
        class_weights: Factors of the classes' energies only.
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
    if reduction not in ("mean", "balanced", "batchmean", "sum", "none"):
        known = "'mean', 'balanced', 'batchmean' (or 'sum') or 'none'"
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
    """The mean cross-entropy and the energies, B×C; balanced they are divided by the shares of their classes."""
    check_level_set(epsilon, heaviside, reduction, mode, kernels)
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
    options = epsilon, heaviside, reduction in ("mean", "balanced", "none"), cross_entropy
    balanced = reduction == "balanced"
    if mode == "multiclass" and not target.is_floating_point():
        labels = _without_class_axis(target, space, "target")
        if valid is not None:
            labels = labels.masked_fill(~valid, ignore_index)
        triton = use_triton(kernels, logits) and classes <= MOST_CLASSES
        first, energies = level_set_labels.terms(logits, labels, ignore_index, *options, triton)
        return first, energies / _shares_of_labels(labels, classes, ignore_index).to(energies) if balanced else energies
    truth, valid = _regions(logits, target, valid, ignore_index, mode)
    first, energies = level_set_regions.terms(logits, truth, valid, mode == "multiclass", *options)
    return first, energies / _shares_of_regions(truth, valid).to(energies) if balanced else energies


def _shares_of_labels(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """The share of an image's valid pixels that each class has, times the number of classes that it has, B×C."""
    flat = labels.flatten(1).long()
    known = (flat >= 0) & (flat < classes) & (flat != ignore_index)
    counts = flat.new_zeros(len(flat), classes + 1)
    counts.scatter_add_(1, torch.where(known, flat, classes), torch.ones_like(flat))
    return _shares(counts[:, :classes], known.sum(1))


def _shares_of_regions(truth: Tensor, valid: Tensor | None) -> Tensor:
    """The same of a truth with its own value for every class."""
    if valid is None:
        valid = torch.ones_like(truth[:, 0], dtype=torch.bool)
    counted = torch.where(valid.unsqueeze(1), truth, 0)
    return _shares(counted.flatten(2).sum(2, dtype=torch.float64), valid.flatten(1).sum(1))


def _shares(sizes: Tensor, pixels: Tensor) -> Tensor:
    """1 for a class that the image lacks, whose energy is 0."""
    present = sizes > 0
    shares = sizes.double() * present.sum(1, keepdim=True) / pixels.clamp_min(1)[:, None]
    return torch.where(present, shares, 1)


def _without_class_axis(values: Tensor, space: tuple[int, ...], name: str) -> Tensor:
    """Bring labels B×1×spatial to B×spatial."""
    if values.shape == (space[0], 1, *space[1:]):
        return values.squeeze(1)
    if values.shape != space:
        raise ValueError(f"expected {name} B×spatial = {space}, not {tuple(values.shape)}")
    return values


def _regions(
    logits: Tensor, target: Tensor, valid: Tensor | None, ignore_index: int, mode: Mode
) -> tuple[Tensor, Tensor | None]:
    """A truth of the shape of the logits, and what of it is valid."""
    if mode == "binary" and target.shape == (logits.shape[0], *logits.shape[2:]):
        target = target.unsqueeze(1)
    if target.shape != logits.shape:
        raise ValueError(f"expected a target of the logits' shape {tuple(logits.shape)}, not {tuple(target.shape)}")
    if target.is_floating_point() or target.dtype == torch.bool:
        return target, valid
    void = target == ignore_index
    at_all = ~void.any(1)  # a pixel that is void for one class is void
    return target.masked_fill(void, 0), at_all if valid is None else valid & at_all


def _reduced(energies: Tensor, reduction: Reduction, class_weights: Tensor | None) -> Tensor:
    if class_weights is not None:
        if class_weights.shape != energies.shape[1:]:
            raise ValueError(f"expected {energies.shape[1]} class_weights, not {tuple(class_weights.shape)}")
        energies = energies * class_weights.to(energies)
    return energies if reduction == "none" else energies.sum() / max(1, len(energies))
