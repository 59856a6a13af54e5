"""The layers, and the files under experiments/."""

import ast
import importlib.util
from functools import cache, reduce
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parent.parent
LAYERS = {
    "functional": set(),
    "losses": {"functional"},
    "models": {"functional"},
    "data": {"functional"},
    "metrics": {"functional"},
    "tasks": {"functional", "losses", "models", "data", "metrics"},
    "callbacks": {"functional", "losses", "models", "data", "metrics", "tasks"},
    "ablation": {"functional", "losses", "models", "data", "metrics", "tasks", "callbacks"},
    "cli": {"functional", "losses", "models", "data", "metrics", "tasks", "callbacks", "ablation"},
    "bench": {"functional", "losses", "models", "data", "tasks"},
}
# Options by whole names, what a user did wrong, writing files whole, dying with the parent.
EVERYWHERE = {"arguments", "errors", "files", "process"}
# Above all rooms but the command line: reading configurations, saying what went wrong, loading a finished run.
ABOVE = {"failures", "load", "parser"}
CONFIGS = sorted((TOP / "experiments").rglob("*.yaml"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("layer", LAYERS)
def test_no_import_points_up(layer):
    for path in (TOP / "lsseg" / layer).rglob("*.py"):
        for name in imports(path):
            package, _, rest = name.partition(".")
            if package == "lsseg" and rest:
                target = rest.split(".")[0]
                assert target in LAYERS[layer] | EVERYWHERE | {layer} | (ABOVE if layer == "cli" else set()), (
                    f"{path} imports {name}"
                )
            if package == "pytorch_lightning":
                assert layer in ("data", "tasks", "callbacks", "ablation", "cli"), f"{path} imports {name}"
            if package == "wandb":
                assert layer in ("callbacks", "ablation", "cli"), f"{path} imports {name}"


def test_every_layer_is_known():
    folders = {path.name for path in (TOP / "lsseg").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == LAYERS.keys()


@cache
def content_of(path):
    """A configuration's, read once: reading YAML takes longer than most of what is asked of it."""
    return yaml.safe_load(path.read_text())


def test_files_and_functions_are_few_and_short():
    files = list((TOP / "lsseg").rglob("*.py"))
    assert len(files) <= 125
    for path in (*files, *(TOP / "tests").rglob("*.py")):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = ast.get_docstring(node, clean=False) is not None
                lines = node.end_lineno - node.lineno + 1
                lines -= first.end_lineno - first.lineno + 1 if documented else 0
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def is_suite(path):
    content = content_of(path)
    return "variants" in content or "grid" in content


def is_overlay(path):
    """A configuration that goes on top of others: it does not say which model."""
    return not is_suite(path) and "class_path" not in content_of(path).get("model", {})


def test_there_are_suites_and_configurations():
    assert {is_suite(path) for path in CONFIGS} == {True, False}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(TOP)))
def test_every_file_opens_with_its_command(path):
    head = [line for line in path.read_text().splitlines()[:4] if line.startswith("#")]
    assert any("lsseg " in line and path.name in line for line in head)


def smaller(path):
    """The configuration that makes those of its folder fit a small machine, where there is one."""
    return tuple(path.parent.glob("small.yaml"))


def shape(value):
    """A configuration without its quantities: the numbers in it do not matter to how a run is made."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return value if isinstance(value, bool | str | None) else type(value).__name__


def merged(low, high):
    """Two configurations, of which the second one wins."""
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    return low | {key: merged(low.get(key), value) for key, value in high.items()}


@cache
def all_runs():
    """(suite, run) of all suites, made small where that is to be."""
    from lsseg.ablation.spec import expand, load_suite

    return [(path, run) for path in CONFIGS if is_suite(path) for run in expand(load_suite(path, smaller(path)))]


def leaves(value, key):
    """(key, value) of all that stands in a configuration."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


def told_apart_by(run):
    """What a run is made of: its settings without their quantities, and which classes stand together."""
    whole = reduce(merged, [content_of(Path(file)) for file in run.variant.configs], {})
    parts = {key: whole[key] for key in ("model", "data", "trainer") if key in whole}
    found = {leaf for key, value in {**parts, **run.variant.settings}.items() for leaf in leaves(shape(value), key)}
    classes = {leaf for leaf in found if isinstance(leaf[1], str) and leaf[1][:1].isupper()}
    return found | {frozenset(classes)}


@cache
def runs():
    """(suite, run): a few runs that hold every setting of all suites, and all classes that stand together, once."""
    different = [((path, run), told_apart_by(run)) for path, run in all_runs()]
    missing, chosen = set().union(*(parts for _, parts in different)), []
    while missing:
        one, parts = max(different, key=lambda each: len(each[1] & missing))
        chosen.append(one)
        missing -= parts
    return chosen


@cache
def in_suites():
    """The configurations that some run of a suite is made of."""
    return {Path(file).resolve() for file in {file for _, run in all_runs() for file in run.variant.configs}}


def needs(files, settings=()):
    """Marks of the extras that a run needs."""
    content = " ".join([str([content_of(Path(file)) for file in files]), str(dict(settings))])
    crf = any(f"crf_iterations': {n}" in content for n in range(1, 100))
    weights = "'tu-tf_efficientnet_lite0'" in content and "'imagenet'" in content
    return [pytest.mark.extra(name) for name, needed in (("crf", crf), ("weights", weights)) if needed]


def with_its_base(path):
    """The files that a configuration is run with: its own and what makes it small, an overlay behind its base."""
    if not is_overlay(path):
        return (path, *smaller(path))
    bases = (path.parent / "base.yaml", path.parent / "gpu_base.yaml", path.parent.parent / "base.yaml")
    base = next(file for file in bases if file.is_file())
    small = smaller(base)
    behind = "small.yaml" in path.read_text()  # as its head says
    return (base, *((*small, path) if behind else (path, *small)))


FAST = ("--data.batch_size=2", "--data.num_workers=0", "--trainer.fast_dev_run=1", "--wandb.mode=disabled")


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(
            run,
            id=f"{path.parent.name}-{path.stem}-{run.variant.name}",
            marks=needs(run.variant.configs, run.variant.settings),
        )
        for path, run in runs()
    ],
)
@pytest.mark.filterwarnings("ignore:the training split has no pixel of")  # the tiny copies do not hold every class
def test_every_run_of_every_suite_goes_through_fit(run, lsseg, tmp_path, real_data, monkeypatch):
    monkeypatch.setenv("LSSEG_DATA", str(real_data))
    arguments = [argument for argument in run.arguments(tmp_path / "run") if "test_after_fit" not in argument]
    arguments = [argument for argument in arguments if not argument.startswith("--model.start=")]  # not trained here
    status, _, err = lsseg(*arguments, *FAST)
    assert status == 0, err


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=str(p.relative_to(TOP)), marks=needs(with_its_base(p)))
        for p in CONFIGS
        if not is_suite(p) and p.resolve() not in in_suites()
    ],
)
def test_a_configuration_that_no_suite_uses_goes_through_fit_and_test(path, lsseg, tmp_path, real_data, monkeypatch):
    monkeypatch.setenv("LSSEG_DATA", str(real_data))
    configs = [f"--config={file}" for file in with_its_base(path)]
    status, _, err = lsseg(
        "fit", *configs, "--trainer.default_root_dir", tmp_path / "run", *FAST, "--test_after_fit=true"
    )
    assert status == 0, err


def test_the_tables_are_what_their_script_writes():
    spec = importlib.util.spec_from_file_location("overview", TOP / "experiments" / "overview.py")
    overview = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(overview)
    for name in (*overview.SHOWN, "compare"):
        assert (TOP / "experiments" / name / "README.md").read_text() == overview.page(name)


def test_the_first_pages_stay_short():
    readme = (TOP / "README.md").read_text()
    assert len(readme.splitlines()) <= 170
    assert len(readme.encode()) <= 14 * 1024
    assert len((TOP / "experiments" / "README.md").read_text().splitlines()) <= 60


def test_configurations_of_one_data_set_differ_in_the_method_only():
    """The shared settings are the control of the comparison."""
    folder = TOP / "experiments" / "camvid"
    baseline, *others = (
        yaml.safe_load((folder / f"{name}.yaml").read_text())
        for name in ("cross_entropy", "level_set", "dmls", "chan_vese")
    )
    expected = baseline.pop("model")["init_args"]
    for other in others:
        arguments = other.pop("model")["init_args"]
        assert other == baseline
        if arguments["network"]["class_path"] in ("DMLS", "ChanVeseNet"):  # they wrap the same network
            arguments["network"] = arguments["network"]["init_args"]["network"]
        assert {key: arguments[key] for key in expected} == expected
