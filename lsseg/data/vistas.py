"""Reads Mapillary Vistas 1.2 (Neuhold 2017): street scenes of the whole world, 65 classes and void."""

from typing import Any

from lsseg.data.module import SegmentationData, Split
from lsseg.data.root import Origin, check_count, existing_root
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source, list_images, pair_up

# The official names and colours, by label. The 66th label, Unlabeled, is void.
# In the first release some classes share a colour.
TABLE = """
    Bird:a52a2a, Ground Animal:00c000, Curb:c4c4c4, Fence:be9999, Guard Rail:b4a5b4, Barrier:5a7896,
    Wall:66669c, Bike Lane:8040ff, Crosswalk - Plain:8c8cc8, Curb Cut:aaaaaa, Parking:faaaa0, Pedestrian
    Area:606060, Rail Track:e6968c, Road:804080, Service Lane:6e6e6e, Sidewalk:f423e8, Bridge:966464,
    Building:464646, Tunnel:96785a, Person:dc143c, Bicyclist:ff0000, Motorcyclist:ff0064, Other Rider:ff00c8,
    Lane Marking - Crosswalk:c88080, Lane Marking - General:ffffff, Mountain:40aa40, Sand:e6a032, Sky:4682b4,
    Snow:beffff, Terrain:98fb98, Vegetation:6b8e23, Water:00aa1e, Banner:ffff80, Bench:fa001e, Bike
    Rack:648cb4, Billboard:dcdcdc, Catch Basin:dc8080, CCTV Camera:de2828, Fire Hydrant:64aa1e, Junction
    Box:282828, Mailbox:212121, Manhole:6480a0, Phone Booth:8e0000, Pothole:466496, Street Light:d2aa64,
    Pole:999999, Traffic Sign Frame:808080, Utility Pole:000050, Traffic Light:faaa1e, Traffic Sign
    (Back):c0c0c0, Traffic Sign (Front):dcdc00, Trash Can:8c8c14, Bicycle:770b20, Boat:9600ff, Bus:003c64,
    Car:00008e, Caravan:00005a, Motorcycle:0000e6, On Rails:005064, Other Vehicle:804040, Trailer:00006e,
    Truck:000046, Wheeled Slow:0000c0, Car Mount:202020, Ego Vehicle:780a0a
"""
CLASSES = [entry.split(":") for entry in " ".join(TABLE.split()).split(", ")]
FOLDERS = {"train": ("training", 18000), "val": ("validation", 2000), "test": ("validation", 2000)}


class MapillaryVistas(SegmentationData):
    """Reads ``training|validation/images/*.jpg`` and ``training|validation/v1.2/labels/*.png`` of Mapillary Vistas.

    Older copies have ``labels/`` where newer ones have ``v1.2/labels/``. The test split is the validation split, since
    the annotations of the official test images are not public. Test scores are those of the last weights.

    Args:
        root: The folder; null looks in ``$LSSEG_DATA/mapillary_vistas``, then ``data/mapillary_vistas``.
        partial: Accept a split whose number of images is not the official one.
        **options: See :class:`SegmentationData`.
    """

    origin = Origin(
        "mapillary_vistas",
        "mapillary_vistas",
        {
            "training/images": 18000,
            "validation/images": 2000,
            "training/v1.2/labels": 18000,
            "validation/v1.2/labels": 2000,
        },
        "research use, registration needed; cite Neuhold et al. 2017",
        source="mapillary.com/dataset/vistas: training/ and validation/, each with images/ and v1.2/labels/",
        layout={
            "training/images": 18000,
            "validation/images": 2000,
            "training/labels": 18000,
            "validation/labels": 2000,
        },
    )
    class_names = tuple(name for name, _ in CLASSES)
    palette = tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for _, c in CLASSES)

    def __init__(self, root: str | None = None, partial: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.partial = root, partial

    def source(self, split: Split) -> Source:
        """Return the images of a split; raise ``InputError`` if folders or masks are missing."""
        root = existing_root(self.root, "mapillary_vistas", "`lsseg data mapillary_vistas` says how to get it")
        folder, official = FOLDERS[split]
        labels = next(
            (root / folder / part for part in ("v1.2/labels", "labels") if (root / folder / part).is_dir()), None
        )
        pairs = pair_up(list_images(root / folder / "images"), labels or root / folder / "v1.2" / "labels")
        check_count(root, folder, len(pairs), official, self.partial)
        return FilePairs(pairs, {len(CLASSES): IGNORE_INDEX} | {label: label for label in range(len(CLASSES))})
