"""The notebooks run from the first cell to the last, and hold text only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

# W&B's answer, made up.
WANDB = """
import types, wandb

def runs(path, filters):
    assert (path, filters) == ("someone/lsseg", {"group": "s"})
    return [types.SimpleNamespace(tags=["ce"], summary={"test/miou": score}) for score in (0.40, 0.42)]

wandb.Api = lambda: types.SimpleNamespace(runs=runs)
"""
TOP = Path(__file__).parents[1]
NOTEBOOKS = sorted((TOP / "notebooks").iterdir())


@pytest.fixture
def suite(tmp_path):
    """A finished suite of two tiny runs."""
    (tmp_path / "tiny.yaml").write_text((TOP / "tests" / "cli" / "tiny.yaml").read_text())
    variants = [{"name": "ce", "label": "Cross-entropy"}, {"name": "ls", "set": {"model": "LevelSetLossTask"}}]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"name": "s", "base": "tiny.yaml", "variants": variants}))
    command = [sys.executable, "-m", "lsseg", "ablate", "s.yaml"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return tmp_path / "runs" / "s"


def test_notebooks_are_scripts_in_percent_format():
    assert [path.suffix for path in NOTEBOOKS] == [".py"] * 5
    for path in NOTEBOOKS:
        assert path.read_text().startswith("# %% [markdown]\n# # ")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.extra("notebooks")
@pytest.mark.filterwarnings("ignore")  # the kernel's own
def test_a_notebook_runs(path, tmp_path, request, monkeypatch):
    import jupytext
    import nbclient
    from nbformat.v4 import new_code_cell

    if path.stem == "comparison":
        monkeypatch.setenv("LSSEG_SUITE", str(request.getfixturevalue("suite")))
    monkeypatch.setenv("WANDB_MODE", "offline")
    notebook = jupytext.read(path)
    if path.stem == "comparison":
        monkeypatch.setenv("LSSEG_WANDB", "someone/lsseg")
        notebook.cells.insert(0, new_code_cell(WANDB))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(TOP)})
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures or path.stem == "own_data_and_loss"
    if path.stem == "comparison":
        (said,) = (o["text"] for o in notebook.cells[-1]["outputs"] if o["output_type"] == "stream")
        assert [line.split() for line in said.splitlines()][2:] == [["ce", "41.0", "1.414214", "2"]]
