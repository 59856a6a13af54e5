"""Reads a suite's YAML file and lists the runs that it describes.

::

    name: quickstart
    base: [quickstart/base.yaml]       # configuration files of every run, relative to this file
    set: {trainer.max_steps: 300}      # settings of every run
    seeds: [0, 1]
    baseline: cross_entropy            # the variant to compare the others with; by default the first one that is run
    variants:
      - {name: cross_entropy, label: Cross-entropy}
      - {name: level_set, config: level_set.yaml, set: {model: LevelSetLossTask}, paper: {miou: 76.5}}
      - {name: fcn_ls, config: [fcn.yaml, ls.yaml], baseline: fcn}      # compared with another baseline
      - {name: fine, start: coarse}             # starts from the last weights of an earlier variant, same seed
      - {name: views, start: fine, set: {trainer.max_steps: 0, model.test_flip: true}}         # only tests the weights
      - {name: crf, label: Dense CRF, cite: true, paper: {miou: 71.2}}   # shows only numbers of the paper; not run
    grid: {model.lr: [0.01, 0.1]}      # optional: runs every variant at every point of the grid
    subsets: {Seq05VD: "Seq05VD*"}     # optional: also scores the test images with these names
"""

import importlib
import itertools
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lsseg.errors import InputError
from lsseg.files import read_yaml
from lsseg.metrics.scores import COSTS, SCORES, can_be_cited, of_kind

KEYS = {"name", "base", "set", "seeds", "baseline", "variants", "grid", "subsets"}
VARIANT_KEYS = {"name", "label", "config", "set", "paper", "cite", "baseline", "start"}


OWN_KEYS = {
    "seed_everything": "the suite's seeds set it",
    "trainer.default_root_dir": "it is always the run folder (see --root)",
    "test_after_fit": "it is always true in a suite",
}


@dataclass(frozen=True)
class Variant:
    """Describes one row of the table.

    Attributes:
        name: Short name that is usable as a folder name.
        label: Name in the table.
        configs: Configuration files; later files override earlier ones.
        settings: Settings that override the files, by key.
        paper: The paper's scores (``miou``, ``iou/road``) in percent and costs (``test_seconds_per_image``) in seconds.
        cite: Whether the row shows only the paper's numbers and is not run.
        baseline: Name of the variant to compare it with; None means the suite's baseline.
        start: The earlier variant whose last weights are this variant's initial weights, or None.
    """

    name: str
    label: str
    configs: tuple[str, ...]
    settings: dict[str, Any]
    paper: dict[str, float] = field(default_factory=dict)
    cite: bool = False
    baseline: str | None = None
    start: "Variant | None" = None


@dataclass(frozen=True)
class Suite:
    """Holds a parsed suite."""

    name: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    baseline: str
    subsets: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run is one variant with one seed."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Return the name of the run and of its folder."""
        return f"{self.variant.name}-seed{self.seed}"

    @property
    def start(self) -> "Run | None":
        """Return the run whose last weights are this run's initial weights, or None."""
        return Run(self.variant.start, self.seed) if self.variant.start else None

    def arguments(self, folder: Path) -> list[str]:
        """Return the arguments of ``lsseg`` that train and test the run in ``folder``."""
        # The command line is read from left to right, so a class must come before its arguments.
        keys = sorted(self.variant.settings, key=lambda key: (key.count("."), key))
        flags = [f"--{key}={_value(self.variant.settings[key])}" for key in keys]
        return [
            "fit",
            *(f"--config={path}" for path in self.variant.configs),
            *flags,
            *([f"--model.start={folder.parent / self.start.name / 'last.ckpt'}"] if self.start else []),
            f"--seed_everything={self.seed}",
            f"--trainer.default_root_dir={folder}",
            "--test_after_fit=true",
        ]

    @property
    def task(self) -> str | None:
        """Return the name of the model's class, or None if no file or setting names it."""
        files = [(read_yaml(Path(path)) or {}).get("model") for path in self.variant.configs]
        for model in [self.variant.settings.get("model"), *reversed(files)]:
            if isinstance(model, str):
                return model
            if isinstance(model, dict) and "class_path" in model:
                return str(model["class_path"])
        return None

    def fingerprint(self) -> dict[str, Any]:
        """Return the run's settings with the contents of its files; an earlier run in its folder must have the same."""
        configs = [read_yaml(Path(path)) for path in self.variant.configs]
        start = {"start": self.start.fingerprint()} if self.start else {}
        return {"configs": configs, "set": self.variant.settings, "seed": self.seed, **start}


def load_suite(path: Path, extra: tuple[Path, ...] = ()) -> Suite:
    """Read and check a suite's file.

    Args:
        path: The suite's file.
        extra: Configuration files on top of those of every run, such as one that makes all runs smaller; their names
            become part of the suite's name.

    Raises:
        InputError: If anything in the file cannot be used; the message names the file and the key.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a mapping with keys among {', '.join(sorted(KEYS))}")
    _known(path, "", content, KEYS)
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and 0 <= s < 2**32 for s in seeds):
        raise InputError(f"{path}: seeds must be a list of whole numbers from 0 to {2**32 - 1}, not {seeds!r}")
    variants = tuple(_variants(path, content, extra))
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two variants have the same name {name!r}")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: a seed is given twice, so two runs have the same name")
    runnable = [variant.name for variant in variants if not variant.cite]
    if not runnable:
        raise InputError(f"{path}: every variant has cite: true, so there is nothing to run")
    baseline = content.get("baseline", runnable[0])
    if baseline not in runnable:
        raise InputError(f"{path}: baseline {baseline!r} is none of the variants {', '.join(runnable)}")
    for variant in variants:
        if variant.baseline not in (None, *runnable):
            raise InputError(
                f"{path}: baseline {variant.baseline!r} of variant {variant.name!r} is none of {', '.join(runnable)}"
            )
    name = "-".join([str(content.get("name", path.stem)), *(file.stem for file in extra)])
    subsets = _mapping(path, content, "subsets")
    if not all(isinstance(pattern, str) for pattern in subsets.values()):
        raise InputError(f"{path}: subsets must give each name a pattern of image names, such as 'Seq05VD*'")
    return Suite(_slug(path, name), variants, tuple(seeds), baseline, subsets)


def expand(suite: Suite) -> list[Run]:
    """Return all runs, seed by seed, so that every variant has a result early.

    Runs that start from another run come after the others of their seed, so that no run waits while another could run.
    """
    variants = sorted((v for v in suite.variants if not v.cite), key=_starts_before)
    return [Run(variant, seed) for seed in suite.seeds for variant in variants]


def _starts_before(variant: Variant) -> int:
    """Count the variants that must run before this one: its start, the start of its start, and so on."""
    return 0 if variant.start is None else 1 + _starts_before(variant.start)


def describe(suite: Suite) -> dict[str, Any]:
    """Return the description of a suite for ``suite.json``, from which its report is made."""
    content = asdict(suite)
    for variant in content["variants"]:
        variant["start"] = variant["start"] and variant["start"]["name"]
    content["runs"] = {v.name: {str(s): Run(v, s).name for s in suite.seeds} for v in suite.variants if not v.cite}
    return content


def _variants(path: Path, content: dict[str, Any], extra: tuple[Path, ...]) -> list[Variant]:
    base = content.get("base", [])
    base = [base] if isinstance(base, str) else base
    if not isinstance(base, list) or not all(isinstance(file, str) for file in base):
        raise InputError(f"{path}: base must be a file or a list of files, not {base!r}")
    shared = _mapping(path, content, "set")
    grid = _mapping(path, content, "grid")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: grid.{key} must be a list of values")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    entries = content.get("variants") or ([{"name": ""}] if grid else [])
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) and "name" in e for e in entries):
        raise InputError(f"{path}: variants must be a list of mappings with a name (or give a grid)")
    made: list[Variant] = []
    checked: set[str] = set()
    for entry, point in itertools.product(entries, points):
        _known(path, f"variants.{entry['name']}.", entry, VARIANT_KEYS)
        where = ",".join(f"{key.split('.')[-1]}={_short(value)}" for key, value in point.items())
        name = ",".join(part for part in (str(entry["name"]), where) if part)
        label = ", ".join(part for part in (str(entry.get("label", entry["name"])), where) if part)
        own = entry.get("config", [])
        own = own if isinstance(own, list) else [own]
        if not all(isinstance(text, str) for text in (*own, entry.get("label", ""))):
            raise InputError(
                f"{path}: config of variant {entry['name']!r} must be a text or a list of texts, and its label a text"
            )
        paper = _mapping(path, entry, "paper")
        for score, number in paper.items():
            known = can_be_cited(score, SCORES)
            if not known or isinstance(number, bool) or not isinstance(number, int | float):
                names = ", ".join(one.name for one in (*SCORES, *COSTS) if one.in_suites)
                raise InputError(f"{path}: paper.{score} is {number!r}, but must be a number for one of {names}")
        if not isinstance(entry.get("cite", False), bool):
            raise InputError(f"{path}: cite of variant {entry['name']!r} must be true or false")
        configs = tuple(str(_file(path, file)) for file in (*base, *own)) + tuple(map(str, extra))
        for config in set(configs) - checked:
            _check_config(config)
        checked.update(configs)
        settings = {**shared, **_mapping(path, entry, "set"), **point}
        _refuse_own_keys(path, entry["name"], settings)
        compared = f"{entry['baseline']},{where}".strip(",") if entry.get("baseline") is not None else None
        start = _earlier(path, entry, where, made) if entry.get("start") is not None else None
        if start is not None and (entry.get("cite") or "model.start" in settings):
            raise InputError(
                f"{path}: variant {entry['name']!r} has a start, so it must not have cite or set model.start"
            )
        cite = entry.get("cite", False)
        made.append(Variant(_slug(path, name), label, configs, settings, paper, cite, compared, start))
    return made


def _refuse_own_keys(path: Path, name: str, settings: dict[str, Any]) -> None:
    """Refuse keys that the suite sets for every run, and values that JSON cannot express, such as dates."""
    for key, value in settings.items():
        if key in OWN_KEYS:
            raise InputError(f"{path}: set of variant {name!r} must not have {key}: {OWN_KEYS[key]}")
        try:
            _value(value)
        except TypeError as error:
            raise InputError(
                f"{path}: {key} of variant {name!r} is {value!r}, which JSON cannot express; put it in quotes"
            ) from error


def _earlier(path: Path, entry: dict[str, Any], where: str, made: list[Variant]) -> Variant:
    """Return the variant that an entry starts from, at the same point of the grid."""
    wanted = f"{entry['start']},{where}".strip(",")
    for variant in made:
        if variant.name == wanted and not variant.cite:
            if variant.settings.get("trainer.max_steps") == 0:
                raise InputError(f"{path}: {entry['name']!r} cannot start from {variant.name!r}, which only tests")
            return variant
    raise InputError(
        f"{path}: start {entry['start']!r} of variant {entry['name']!r} must be an earlier variant that is run"
    )


def _known(path: Path, where: str, content: dict[str, Any], known: set[str]) -> None:
    for key in content:
        if key not in known:
            raise InputError(f"{path}: unknown key {where}{key}; expected {', '.join(sorted(known))}")


def _mapping(path: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    value = {} if content.get(key) is None else content[key]
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{path}: {key} must be a mapping of names, not {value!r}")
    return value


def _file(path: Path, name: Any) -> Path:
    file = path.parent / str(name)
    if not file.is_file():
        raise InputError(f"{path}: the configuration file {file} does not exist")
    return file


def _check_config(file: str) -> None:
    """Refuse a configuration file that no run could read, before the first run starts."""
    content = read_yaml(Path(file))
    if not isinstance(content, dict):
        raise InputError(
            f"{file} is not a configuration: it must be a mapping with keys such as model, data and trainer"
        )


def _slug(path: Path, name: str) -> str:
    if not re.fullmatch(r"[\w.,=+-]+", name) or name.startswith("."):
        raise InputError(f"{path}: the name {name!r} must be made of letters, digits and _ . , = + -")
    return name


def _short(value: Any) -> str:
    """Return a value as a part of a name: [64, 64] becomes 64x64."""
    text = "x".join(map(_value, value)) if isinstance(value, list) else _value(value)
    return re.sub(r"[^\w.+-]+", "-", text)


def _value(value: Any) -> str:
    # JSON is valid YAML, so null, true and [1, 2] are read as the same values; str(None) would be read as a text.
    return value if isinstance(value, str) else json.dumps(value)


def check_kinds(path: Path, suite: Suite) -> None:
    """Refuse a suite whose runs could not be compared, before the first run starts.

    Raises:
        InputError: If variants have different kinds of scores, or a number of the paper belongs to no score of that
            kind; the message names the suite's file, the variants and the number.
    """
    kinds: dict[str, str] = {}
    for variant in suite.variants:
        kind = None if variant.cite else _kind_of_task(Run(variant, suite.seeds[0]).task)
        if kind is not None:
            kinds.setdefault(kind, variant.name)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise InputError(
            f"{path}: the model of variant {first!r} is of kind {one} and that of {second!r} of kind {other}, but a "
            "suite can have only one kind"
        )
    for kind in kinds:
        scores = of_kind(kind)
        for variant in suite.variants:
            for score in variant.paper:
                if can_be_cited(score, scores):
                    continue
                names = ", ".join(one.name for one in scores if one.in_suites)
                raise InputError(
                    f"{path}: paper.{score} of variant {variant.name!r} is not a score of these models; expected one "
                    f"of {names}"
                )


def _kind_of_task(name: str | None) -> str | None:
    """Return the kind of a task, given its short name or import path; None if unknown, since the run will refuse it."""
    module, _, short = (name or "").rpartition(".")
    try:
        return getattr(getattr(importlib.import_module(module or "lsseg.tasks"), short), "kind", None)
    except (ImportError, AttributeError):
        return None
