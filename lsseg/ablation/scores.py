"""Which scores the runs of a suite have, and how a report names them."""

from collections.abc import Iterable
from typing import NamedTuple

from lsseg.errors import InputError


class Kind(NamedTuple):
    """The scores of one kind of task.

    Attributes:
        titles: Of every score, in the order of the table; the first one is what methods are compared by.
        compared: Scores whose differences to the baseline have an interval.
        second: Beside the first, the one whose difference the table shows.
        by_class: Scores that classes may have, and the title of their table.
        curves: Validation scores worth a curve, and their titles.
    """

    titles: dict[str, str]
    compared: tuple[str, ...]
    second: str
    by_class: dict[str, str]
    curves: dict[str, str]

    @property
    def main(self) -> str:
        """The first score."""
        return next(iter(self.titles))


KINDS = {
    "semantic": Kind(
        titles={
            "miou": "mIoU",
            "boundary_f1_1px": "boundary F 1px",
            "boundary_f1_2px": "boundary F 2px",
            "boundary_f1_3px": "boundary F 3px",
            "accuracy": "accuracy",
            "initial_miou": "mIoU before refining",
            "initial_boundary_f1_1px": "boundary F 1px before refining",
            "changed_pixels": "labels changed by refining",
            "official_iiou": "iIoU",
            "official_category_miou": "category IoU",
            "official_category_iiou": "category iIoU",
        },
        compared=("miou", "boundary_f1_1px", "boundary_f1_2px", "boundary_f1_3px"),
        second="boundary_f1_1px",
        by_class={"iou": "IoU", "boundary_f1_1px": "Boundary F at 1 px"},
        curves={"val/miou": "validation mIoU (%)", "val/boundary_f1_1px": "validation boundary F, 1 px (%)"},
    ),
    "instances": Kind(
        titles={
            "mask_ap": "AP",
            "initial_mask_ap": "AP of φ⁰",
            "mask_ap50": "AP50",
            "mask_ap75": "AP75",
            "af1": "AF 1px",
            "initial_af1": "AF 1px of φ⁰",
            "af2": "AF 2px",
            "box_ap": "AP of boxes",
            "true_box_iou": "mask IoU on true boxes",
            "initial_true_box_iou": "mask IoU on true boxes of φ⁰",
            "true_box_f1": "boundary F 1px on true boxes",
            "initial_true_box_f1": "boundary F 1px on true boxes of φ⁰",
            "official_ap": "official AP",
            "official_ap50": "official AP50",
        },
        compared=("mask_ap", "af1", "af2"),
        second="af1",
        by_class={"mask_ap": "AP", "official_ap": "Official AP"},
        curves={"val/mask_ap": "validation AP (%)", "val/mask_ap75": "validation AP75 (%)"},
    ),
}
SCORES = tuple(score for kind in KINDS.values() for score in kind.titles)
BY_CLASS = tuple(score for kind in KINDS.values() for score in kind.by_class)
COSTS = ("train_seconds_per_image", "test_seconds_per_image")


def can_be_cited(score: str, known: Iterable[str] = SCORES) -> bool:
    """Whether a paper's number may be given for it: a score, a cost, or a score of a class (``iou/road``).

    >>> can_be_cited("miou"), can_be_cited("iou/road"), can_be_cited("dice")
    (True, True, False)
    """
    name, by_class, _ = score.partition("/")
    return name in BY_CLASS if by_class else name in (*known, *COSTS)


def kind_of(names: set[str]) -> Kind:
    """The kind that all runs of a suite have.

    Raises:
        InputError: If they have several.
    """
    if len(names) != 1:
        raise InputError(f"the runs of one suite must have one kind of scores, not {' and '.join(sorted(names))}")
    return KINDS[next(iter(names))]
