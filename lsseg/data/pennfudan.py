"""Reads the pedestrians of Penn-Fudan (Wang et al. 2007): 170 images, 423 people, one class."""

from pathlib import Path
from typing import Any

import numpy as np

from lsseg.data.instances import InstanceData, InstanceSource, MapPairs
from lsseg.data.loading import derived_seed
from lsseg.data.module import Split
from lsseg.data.root import Origin, existing_root
from lsseg.data.source import list_images, pair_up
from lsseg.errors import InputError

HINT = "`lsseg data pennfudan` says where it comes from"


class PennFudan(InstanceData):
    """Reads Penn-Fudan's ``PNGImages/`` and ``PedMasks/`` (a number for each person), as they are distributed.

    It also reads ``images/`` and ``masks/`` with files of the same names.

    The data set has no official splits. A seeded draw puts a fifth of the images in test and a tenth in val, for each
    of the two sources (Fudan, Penn) separately. Some people are not annotated; some have several components.

    Args:
        root: The folder; null looks in ``$LSSEG_DATA/pennfudan``, then ``data/pennfudan``.
        split_seed: Seed of the split; it does not depend on the run's seed.
        **options: See :class:`InstanceData`.
    """

    origin = Origin(
        "pennfudan",
        "pennfudan",
        {"PNGImages": 170, "PedMasks": 170},
        "none stated; cite Wang, Shi, Song and Shen 2007",
        source="cis.upenn.edu/~jshi/ped_html: PNGImages/ and PedMasks/ (or images/ and masks/ of the same names)",
        layout={"images": 170, "masks": 170},
    )
    class_names = ("pedestrian",)
    palette = ((220, 60, 60),)

    def __init__(self, root: str | None = None, split_seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.root = root
        self.split_seed = split_seed

    def source(self, split: Split) -> InstanceSource:
        """Return the images of a split; raise ``InputError`` if folders or masks are missing."""
        root = existing_root(self.root, "pennfudan", HINT)
        pairs = _pairs(root)
        chosen = []
        for number, source in enumerate(sorted({image.name[:4] for image, _ in pairs})):
            own = [pair for pair in pairs if pair[0].name.startswith(source)]
            order = np.random.default_rng(derived_seed(self.split_seed, number)).permutation(len(own))
            test, val = round(len(own) * 0.2), round(len(own) * 0.3)
            part = {"test": order[:test], "val": order[test:val], "train": order[val:]}[split]
            chosen += [own[i] for i in sorted(part)]
        return MapPairs(chosen)


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    if not (root / "PNGImages").is_dir():
        return pair_up(list_images(root / "images"), root / "masks")
    pairs = [(image, root / "PedMasks" / f"{image.stem}_mask.png") for image in list_images(root / "PNGImages")]
    for image, mask in pairs:
        if not mask.is_file():
            raise InputError(f"{image} has no mask: expected {mask}")
    return pairs
