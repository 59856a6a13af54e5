"""Computes the level-set loss (Kim 2019, eq. 4-8)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lsseg.errors import ArgumentError
from lsseg.functional import HeavisideKind, Kernels, Mode, Reduction, cross_entropy_level_set, level_set_energy
from lsseg.functional.level_set import check_level_set
from lsseg.losses.cross_entropy import PixelMean


class LevelSetLoss(nn.Module):
    """Computes the level-set energy of the class probabilities on the ground truth (Kim 2019, eq. 4-7).

    Its gradient is large on undecided pixels only (ε = 1/20: δ is 10 at P = ½ and 4.5e-6 at P = 0.1). The loss
    therefore refines what another loss has taught. Alone it does not train a network.

    Args:
        epsilon: Width of the Heaviside transition, in units of probability.
        heaviside: ``mahf`` (the paper's), ``ahf`` (Chan and Vese's), ``hf`` (a step; no gradient) or ``ramp`` (with
            ε = ½ the probability itself).
        reduction: ``mean`` divides by the valid pixels, independent of the resolution. ``balanced`` divides by the
            pixels of the class, so that small classes count like large ones. ``log`` is -log(1 - energy) of these
            energies; with ``ramp`` it also teaches classes that are yet to be found. ``batchmean`` sums over pixels as
            printed (``sum`` is its older name). ``none`` keeps one energy for each image and class.
        ignore_index: Label of void pixels.
        kernels: ``auto`` uses Triton's kernels on a GPU if Triton is installed; ``triton`` or ``torch`` forces one.
        mode: ``multiclass`` (softmax), ``multilabel`` (a sigmoid of each class) or ``binary`` (a sigmoid, C = 1).
        class_weights: Factors of the classes' energies, C numbers; None means 1 for all.

    Raises:
        ValueError: If an option is out of range or unknown.

    >>> target = torch.tensor([[[0, 0], [1, 1]]])
    >>> undecided = LevelSetLoss()(torch.zeros(1, 2, 2, 2), target)
    >>> decided = LevelSetLoss()(nn.functional.one_hot(target, 2).permute(0, 3, 1, 2) * 9.0, target)
    >>> bool(decided < undecided)
    True
    >>> LevelSetLoss(mode="binary")(torch.randn(2, 1, 8, 8, 8), torch.rand(2, 1, 8, 8, 8)).ndim  # soft, and 3-D
    0
    """

    class_weights: Tensor | None

    def __init__(
        self,
        epsilon: float = 1 / 20,
        heaviside: HeavisideKind = "mahf",
        reduction: Reduction = "mean",
        ignore_index: int = 255,
        kernels: Kernels = "auto",
        mode: Mode = "multiclass",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_level_set(epsilon, heaviside, reduction, mode, kernels)
        self.epsilon = epsilon
        self.heaviside: HeavisideKind = heaviside
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.kernels: Kernels = kernels
        self.mode: Mode = mode
        self.register_buffer("class_weights", weights_of_classes(class_weights), persistent=False)

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the energy.

        Args:
            logits: B×C×spatial scores, with any number of axes.
            target: Labels B×spatial, or soft or overlapping regions B×C×spatial; see
                :func:`~lsseg.functional.level_set_energy`.
            valid: Bool, B×spatial, True for pixels that count; None counts all pixels except void labels.

        Returns:
            A scalar; B×C energies with ``none``.
        """
        return level_set_energy(
            logits,
            target,
            self.epsilon,
            self.heaviside,
            self.ignore_index,
            self.reduction,
            self.kernels,
            mode=self.mode,
            valid=valid,
            class_weights=self.class_weights,
        )

    def extra_repr(self) -> str:
        """Return the options that the ``repr`` of the module shows."""
        return (
            f"epsilon={self.epsilon:g}, heaviside={self.heaviside!r}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}, mode={self.mode!r}"
        )


class CrossEntropyLevelSetLoss(PixelMean):
    """Computes cross-entropy + λ · level-set energy from one shared softmax or sigmoid (Kim 2019, eq. 8).

    Args:
        level_set_weight: λ. The paper's 4e-4 belongs to a sum over the pixels of its network's map, an eighth of the
            crop in each direction. For a crop of 321 the same weight under ``mean`` is 4e-4 · 41² = 0.67 at any
            resolution. For a crop of 512, whose map has 65² pixels, it is 1.69. Other uses of 0.67 are this project's
            choice.
        epsilon: See :class:`LevelSetLoss`.
        heaviside: See :class:`LevelSetLoss`.
        reduction: ``mean``, ``balanced``, ``log`` or ``batchmean``, see :class:`LevelSetLoss`; the cross-entropy is
            always the mean.
        ignore_index: Label of void pixels.
        kernels: See :class:`LevelSetLoss`.
        mode: See :class:`LevelSetLoss`; the cross-entropy of ``binary`` and ``multilabel`` is the binary one.
        class_weights: Factors of the classes' energies only, see :class:`LevelSetLoss`.

    Raises:
        ValueError: If an option is out of range or unknown.

    >>> logits, target = torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 0], [1, 1]]])
    >>> loss = CrossEntropyLevelSetLoss(level_set_weight=0.5)
    >>> cross_entropy, energy = loss.terms(logits, target)
    >>> bool(loss(logits, target) == cross_entropy + 0.5 * energy)
    True
    """

    class_weights: Tensor | None

    def __init__(
        self,
        level_set_weight: float = 0.67,
        epsilon: float = 1 / 20,
        heaviside: HeavisideKind = "mahf",
        reduction: Reduction = "mean",
        ignore_index: int = 255,
        kernels: Kernels = "auto",
        mode: Mode = "multiclass",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_level_set(epsilon, heaviside, reduction, mode, kernels)
        if reduction == "none":
            raise ArgumentError(
                "reduction must not be 'none', because its energies cannot be added to the cross-entropy: "
                "use LevelSetLoss"
            )
        self.level_set_weight = level_set_weight
        self.epsilon = epsilon
        self.heaviside: HeavisideKind = heaviside
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.kernels: Kernels = kernels
        self.mode: Mode = mode
        self.register_buffer("class_weights", weights_of_classes(class_weights), persistent=False)

    @property
    def level_set_weight(self) -> float:
        """Return λ, which is never negative."""
        return self._level_set_weight

    @level_set_weight.setter
    def level_set_weight(self, value: float) -> None:
        if not 0 <= value < float("inf"):
            raise ArgumentError(f"level_set_weight must be a number that is not negative, not {value}")
        self._level_set_weight = value

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the scalar loss; see :meth:`LevelSetLoss.forward` for the shapes."""
        cross_entropy, energy = self.terms(logits, target, valid)
        return cross_entropy + self.level_set_weight * energy

    def terms(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and the unweighted level-set energy, both differentiable."""
        cross_entropy, energy = cross_entropy_level_set(
            logits,
            target,
            self.epsilon,
            self.heaviside,
            self.ignore_index,
            self.reduction,
            self.kernels,
            mode=self.mode,
            valid=valid,
            class_weights=self.class_weights,
        )
        return self.over_processes_too(cross_entropy, lambda: self._counted(target, valid)), energy

    def _counted(self, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return a mask of the pixels that the cross-entropy is a mean over."""
        if target.is_floating_point() or target.dtype == torch.bool:
            return torch.ones_like(target[:, :1], dtype=torch.bool) if valid is None else valid
        known = target != self.ignore_index
        return known if valid is None else known & valid.view_as(known)

    def extra_repr(self) -> str:
        """Return the options that the ``repr`` of the module shows."""
        return f"level_set_weight={self.level_set_weight:g}, " + LevelSetLoss.extra_repr(self)  # type: ignore[arg-type]


def weights_of_classes(weights: Sequence[float] | None) -> Tensor | None:
    """Return the class weights as a tensor, or None; refuse weights that are negative or not finite."""
    if weights is None:
        return None
    values = torch.as_tensor(weights, dtype=torch.float32)
    if values.ndim != 1 or not bool(((values >= 0) & values.isfinite()).all()):
        raise ArgumentError(f"class_weights must be numbers that are not negative, not {weights}")
    return values
