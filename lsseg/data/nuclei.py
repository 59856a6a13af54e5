"""Nuclei of the Data Science Bowl 2018 (Caicedo et al. 2019): several kinds of microscopes, one class."""

from pathlib import Path
from typing import Any

from lsseg.data.instances import InstanceData, InstanceSource, MapPairs, MaskFolders
from lsseg.data.loading import derived_seed
from lsseg.data.lookalikes import Modality, group_lookalikes, split_groups
from lsseg.data.module import SPLITS, Split
from lsseg.data.root import existing_root
from lsseg.data.source import list_images, pair_up
from lsseg.errors import InputError

HINT = "`lsseg data dsb2018` says where it comes from"
SHARES = {"train": 0.65, "val": 0.1, "test": 0.25}


class NucleiDSB2018(InstanceData):
    """Nuclei: ``stage1_train/ID/images/ID.png`` and ``…/masks/*.png`` as they are distributed.

    ``images/`` and ``labels/`` of the same names, in which each nucleus has a number, are read, too.

    The images are crops of a smaller number of fields, so a random split would test on the fields it trains on. Here
    images that look alike stay on one side (see :mod:`lsseg.data.lookalikes`), and each side has its share of every
    modality: 65 % train, 10 % validate, 25 % test, as nearly as whole groups allow. The images are read once for that.

    Args:
        root: The folder; null looks in ``$LSSEG_DATA/dsb2018``, then ``data/dsb2018``.
        split_seed: Seed of the split; it does not depend on the run's seed.
        modality: ``all``, ``fluorescence`` (grey, dark ground) or ``stained`` (the others).
        **options: See :class:`InstanceData`.
    """

    class_names = ("nucleus",)
    palette = ((90, 160, 230),)

    def __init__(self, root: str | None = None, split_seed: int = 0, modality: str = "all", **options: Any) -> None:
        super().__init__(**options)
        if modality not in ("all", "fluorescence", "stained"):
            raise InputError(f"data.modality must be all, fluorescence or stained, not {modality!r}")
        self.root = root
        self.split_seed = split_seed
        self.modality = modality
        self._sources: dict[str, MapPairs | MaskFolders] = {}

    def source(self, split: Split) -> InstanceSource:
        """The images of a split; raises ``InputError`` where folders or label files are missing."""
        if not self._sources:
            root = existing_root(self.root, "dsb2018", HINT)
            pairs = _pairs(root)
            modalities, groups = group_lookalikes([image for image, _ in pairs])
            kind = MaskFolders if pairs[0][1].is_dir() else MapPairs
            part = split_groups(modalities, groups, list(SHARES.values()), derived_seed(self.split_seed))
            for number, name in enumerate(SPLITS):
                chosen = [i for i in range(len(pairs)) if part[i] == number and self._wanted(modalities[i])]
                self._sources[name] = kind([pairs[i] for i in chosen])
        return self._sources[split]

    def _wanted(self, kind: Modality) -> bool:
        fluorescence = kind[2] and not kind[3]
        return self.modality == "all" or fluorescence == (self.modality == "fluorescence")


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Images and their maps, or folders of masks."""
    if not (root / "stage1_train").is_dir():
        return pair_up(list_images(root / "images"), root / "labels")
    folders = sorted(folder for folder in (root / "stage1_train").iterdir() if folder.is_dir())
    if not folders:
        raise InputError(f"there is no image in {root / 'stage1_train'}")
    return [(folder / "images" / f"{folder.name}.png", folder / "masks") for folder in folders]
