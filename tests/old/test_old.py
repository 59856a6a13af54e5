"""Runs of older versions load and predict the same, or one line names the key that brings their defaults back."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

from lsseg.errors import InputError
from lsseg.load import load_run

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.yaml"))
CHAN_VESE = HERE / "chan_vese.yaml"
FIRST_FORM = {"initial": "distances", "slope": 1.0}


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make", HERE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(file, folder, make, **settings):
    """A run's folder as the older version left it; settings go into the network's arguments."""
    content = yaml.safe_load(file.read_text())
    network = content["config"]["model"]["init_args"]["network"]["init_args"]
    for key, value in settings.items():
        network.pop(key) if value is None else network.update({key: value})
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(content["config"]))
    state = make.weights(content["shapes"])
    torch.save({"state_dict": state, "num_classes": content["num_classes"], "global_step": 2}, folder / "last.ckpt")
    return content["predicted"]


def test_there_is_a_file_of_each_method(make):
    assert {file.stem for file in FILES} == make.METHODS.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_old_run_predicts_the_same(file, make, tmp_path):
    expected = run_of(file, tmp_path / "run", make, **(FIRST_FORM if file == CHAN_VESE else {}))
    found = make.predicted(load_run(tmp_path / "run").task)
    assert found == pytest.approx(expected, abs=1e-4)


def test_an_old_chan_vese_head_names_its_keys(make, tmp_path):
    run_of(CHAN_VESE, tmp_path / "run", make)
    with pytest.raises(InputError, match=r"set model\.network\.initial to distances and model\.network\.slope to 1"):
        load_run(tmp_path / "run")


def test_defaults_of_dmls_that_have_changed_are_named(make, tmp_path):
    run_of(HERE / "dmls.yaml", tmp_path / "run", make, temperature=None)
    with pytest.raises(InputError, match=r"no network\.level_set\.log_temperature; set model\.network\.temperature"):
        load_run(tmp_path / "run")
