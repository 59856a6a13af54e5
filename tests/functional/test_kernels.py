"""Triton's kernels without a GPU: under the interpreter, in a process of its own, and compiled for two of them."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from lsseg.functional import kernels, level_set_energy

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_compute_what_the_whole_tensor_form_does(which):
    file = Path(__file__).with_name("interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", which, str(file)]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**ours, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]


POINTERS = {"target": "*i64", "kinds": "*u8", "present": "*u8", "squared": "*i32", "total": "*fp64"}
NUMBERS = {"epsilon": "fp32", "eta": "fp32", "dt": "fp32", "log_rho": "fp32", "limit": "fp32", "log_range": "fp32"}
WHOLE = [
    "classes",
    "pixels",
    "by_image",
    "by_class",
    "by_pixel",
    "out_by_image",
    "out_by_class",
    "out_by_pixel",
    "ignore",
    "blocks",
    "width",
    "height",
    "images",
    "chunks",
    "depth",
    "objects",
    "step",
    "steps",
    "reach",
    "far",
]
CONSTANTS = {
    "level_set": {
        "KIND": 1,
        "BC": 4,
        "BP": 128,
        "ROWS": 8,
        "COLUMNS": 32,
        "SCALING": 3,
    },
    "chan_vese": {"BD": 64, "BP": 128, "ROWS": 16, "PRINTED": True},
    "multiphase": {"BP": 256, "CURVED": True, "BY_CLASS": False},
    "partition": {"BP": 256},
}
KERNELS = {
    "level_set": ["_block_sums", "_add_up", "_energy", "_gradient"],
    "chan_vese": [
        "_bend",
        "_draw",
        "_means",
        "_advance",
        "_by_force",
        "_through_means",
        "_by_side",
        "_by_normal",
        "_by_phi",
        "_by_features",
    ],
    "multiphase": ["_add_up", "_advance", "_by_curvature", "_by_phi"],
    "partition": ["_compete", "_compete_backward", "_along_rows", "_along_columns"],
}


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize(("module", "logits"), [*((module, "*fp32") for module in KERNELS), ("level_set", "*bf16")])
def test_kernels_compile(module, logits, capability, monkeypatch, tmp_path):
    """What the interpreter lets pass need not compile."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name in KERNELS[module]:
        kernel = getattr(import_module(f"lsseg.functional.kernels.{module}"), name)
        constants = {n: value for n, value in CONSTANTS[module].items() if n in kernel.arg_names}
        constants |= {n: 1 for n in ("by_pixel", "out_by_pixel", "images") if n in kernel.arg_names}  # as Triton does
        types = {"logits": logits, **POINTERS, **NUMBERS, **dict.fromkeys(WHOLE, "i32")}
        if name == "_gradient":
            types["out"] = logits
        signature = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in kernel.arg_names}
        places = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
        source = ASTSource(kernel, signature, places)
        assert "ptx" in triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm


def test_what_cannot_be_had_is_said():
    logits, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="runs on GPUs, but the tensor is on cpu"):
        level_set_energy(logits, target, kernels="triton")
    with pytest.raises(ValueError, match="must be 'auto', 'triton' or 'torch', not 'cuda'"):
        level_set_energy(logits, target, kernels="cuda")


def test_the_environment_chooses_where_a_call_does_not(monkeypatch):
    logits, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    monkeypatch.setattr(kernels, "INSTALLED", True)
    monkeypatch.setattr(kernels, "ASKED", "triton")
    with pytest.raises(ValueError, match="runs on GPUs, but the tensor is on cpu"):
        level_set_energy(logits, target)
    level_set_energy(logits, target, kernels="torch")
    monkeypatch.setattr(kernels, "ASKED", "cuda")
    with pytest.raises(ValueError, match="LSSEG_KERNELS must be auto, triton or torch, not 'cuda'"):
        level_set_energy(logits, target)
