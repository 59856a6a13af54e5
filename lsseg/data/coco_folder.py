"""Label maps of a data set as Roboflow exports it in COCO's format: annotations beside the images of each split."""

from pathlib import Path
from typing import Any

from lsseg.data.coco import CocoInstances
from lsseg.data.object_classes import ObjectClasses
from lsseg.data.pixels import ValueRange
from lsseg.data.root import existing_root
from lsseg.errors import InputError

FILE = "_annotations.coco.json"


class CocoFolder(ObjectClasses):
    """``background`` and the categories of ``train/_annotations.coco.json``, ``valid/…`` and ``test/…``.

    Without ``valid`` a share of the training images validates; without ``test`` the validation images are the test.
    Where objects overlap the smaller one counts.

    Args:
        root: The folder of the export.
        categories: Names of the categories to use, in this order; null is all, in the order of their ids.
        value_range: The values that are black and white in images that are not 8-bit; null is the range of the files'
            format.
        **options: See :class:`SegmentationData`.
    """

    def __init__(
        self,
        root: str,
        categories: list[str] | None = None,
        value_range: ValueRange | None = None,
        **options: Any,
    ) -> None:
        folder = existing_root(root, root, f"give the folder that holds train/{FILE}")
        val = _part(folder, "valid", "val")
        test = _part(folder, "test") or val
        if _part(folder, "train") is None or test is None:
            raise InputError(
                f"{folder} is no export in COCO's format: expected train/{FILE}, and valid/{FILE} or test/{FILE}"
            )
        objects = CocoInstances(
            str(folder),
            train=f"train/{FILE}",
            train_images="train",
            val=f"{val}/{FILE}" if val else None,
            val_images=val,
            test=f"{test}/{FILE}",
            test_images=test,
            categories=categories,
            value_range=value_range,
        )
        super().__init__(objects, **options)
        self.value_range = value_range


def _part(folder: Path, *names: str) -> str | None:
    return next((name for name in names if (folder / name / FILE).is_file()), None)
