"""Level-set loss (Kim 2019, eq. 4-8)."""

from torch import Tensor, nn

from lsseg.functional import HeavisideKind, Kernels, Reduction, cross_entropy_level_set, level_set_energy
from lsseg.losses.processes import share_of_pixels


class LevelSetLoss(nn.Module):
    """Level-set energy of the class probabilities on the ground truth (Kim 2019, eq. 4-7).

    Its gradient lives on undecided pixels (ε = 1/20: δ is 10 at P = ½ and 1e-5 at P = 0.1), so it refines what another
    loss has taught; alone it does not teach.

    Args:
        epsilon: Width of the Heaviside transition, in units of probability.
        heaviside: ``mahf`` (the paper's), ``ahf`` (Chan and Vese's) or ``hf`` (a step; no gradient).
        reduction: ``mean`` per valid pixel, independent of the resolution, or ``sum`` as printed.
        ignore_index: Label of void pixels.
        kernels: ``auto``: Triton's on a GPU, where Triton is installed; ``triton`` or ``torch`` force one or the other.

    >>> import torch
    >>> target = torch.tensor([[[0, 0], [1, 1]]])
    >>> undecided = LevelSetLoss()(torch.zeros(1, 2, 2, 2), target)
    >>> decided = LevelSetLoss()(nn.functional.one_hot(target, 2).permute(0, 3, 1, 2) * 9.0, target)
    >>> bool(decided < undecided)
    True
    """

    def __init__(
        self,
        epsilon: float = 1 / 20,
        heaviside: HeavisideKind = "mahf",
        reduction: Reduction = "mean",
        ignore_index: int = 255,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.heaviside: HeavisideKind = heaviside
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.kernels: Kernels = kernels

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar energy of B×C×H×W logits on a B×H×W target."""
        return level_set_energy(logits, target, *self._options())

    def _options(self) -> tuple[float, HeavisideKind, int, Reduction, Kernels]:
        return self.epsilon, self.heaviside, self.ignore_index, self.reduction, self.kernels


class CrossEntropyLevelSetLoss(LevelSetLoss):
    """Cross-entropy + λ · level-set energy, fused: both read one softmax (Kim 2019, eq. 8).

    Args:
        level_set_weight: λ. The paper's 4e-4 belongs to ``sum`` on a 41×41 map; 4e-4 · 1681 ≈ 0.67 is the same under
            ``mean`` at any resolution.
        epsilon: See :class:`LevelSetLoss`.
        heaviside: See :class:`LevelSetLoss`.
        reduction: See :class:`LevelSetLoss`; the cross-entropy is always a mean.
        ignore_index: Label of void pixels.
        kernels: See :class:`LevelSetLoss`.

    >>> import torch
    >>> logits, target = torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 0], [1, 1]]])
    >>> loss = CrossEntropyLevelSetLoss(level_set_weight=0.5)
    >>> cross_entropy, energy = loss.terms(logits, target)
    >>> bool(loss(logits, target) == cross_entropy + 0.5 * energy)
    True
    """

    def __init__(
        self,
        level_set_weight: float = 0.67,
        epsilon: float = 1 / 20,
        heaviside: HeavisideKind = "mahf",
        reduction: Reduction = "mean",
        ignore_index: int = 255,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__(epsilon, heaviside, reduction, ignore_index, kernels)
        self.level_set_weight = level_set_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of B×C×H×W logits on a B×H×W target."""
        cross_entropy, energy = self.terms(logits, target)
        return cross_entropy + self.level_set_weight * energy

    def terms(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy and the (unweighted) level-set energy, both differentiable."""
        cross_entropy, energy = cross_entropy_level_set(logits, target, *self._options())
        return cross_entropy * share_of_pixels(target != self.ignore_index, self.training), energy
