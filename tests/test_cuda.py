"""What a CUDA device computes is what the CPU does; run where there is one."""

import json
import traceback
import warnings

import pytest
import torch

from lsseg.bench.command import main
from lsseg.functional import (
    chan_vese_evolve,
    cross_entropy_level_set,
    curvature,
    label_boundary,
    multiphase_evolve,
    signed_distance,
)
from lsseg.losses import WeightedCrossEntropy
from lsseg.models import DMLS, ChanVeseNet, MultiphaseLevelSet, SmpNet
from lsseg.tasks import ChanVeseTask, DMLSTask, LevelSetLossTask, SegmentationTask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def assert_same_on_both(function, *inputs):
    """Values and gradients on the CPU and on the GPU."""
    results = []
    for device in ("cpu", "cuda"):
        own = [x.to(device).requires_grad_(x.is_floating_point()) for x in (x.detach().clone() for x in inputs)]
        out = function(*own)
        outs = out if isinstance(out, tuple) else (out,)
        sum((x.float().square().sum() for x in outs), torch.zeros((), device=device)).backward()
        results.append([x.detach().cpu() for x in outs] + [x.grad.cpu() for x in own if x.grad is not None])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-3, atol=2e-5)


def scores(*shape, scale=3.0):
    coarse = torch.randn(shape[0], shape[1], 5, 6, generator=torch.Generator().manual_seed(0))
    return scale * torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 19, 33, 47), (1, 2, 64, 64), (3, 150, 17, 9)])
@pytest.mark.parametrize("options", [{}, {"reduction": "log", "heaviside": "ramp", "epsilon": 0.5}])
def test_level_set_loss(options, shape, dtype):
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    target[torch.rand(target.shape) < 0.2] = 255
    logits = scores(*shape).to(dtype).float()
    expected = logits.clone().requires_grad_()
    sum(cross_entropy_level_set(expected, target, **options)).backward()
    found = logits.to("cuda", dtype).requires_grad_()
    sum(cross_entropy_level_set(found, target.cuda(), **options)).backward()
    assert found.grad.dtype == dtype
    torch.testing.assert_close(found.grad.float().cpu(), expected.grad, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("boundary_weight", [0.0, 1.0])
def test_a_label_that_names_no_class_makes_the_weighted_loss_no_number(boundary_weight):
    loss = WeightedCrossEntropy([1.0, 2.0, 3.0], boundary_weight).cuda()
    assert torch.isnan(loss(torch.zeros(1, 3, 4, 4).cuda(), torch.full((1, 4, 4), 7).cuda()))


@pytest.mark.parametrize("stride", [1, 4])
def test_chan_vese(stride):
    features = torch.randn(5, 16, -(-45 // stride), -(-38 // stride), generator=torch.Generator().manual_seed(1)) / 4
    numbers = (torch.ones(5), torch.ones(5), torch.full((5,), 0.25), torch.ones(5, 3), torch.ones(5, 3))
    phi = scores(5, 1, 45, 38)[:, 0]
    assert_same_on_both(lambda p, f, *n: chan_vese_evolve(p, f, *n, stride=stride), phi, features, *numbers)


@pytest.mark.parametrize("normalize", ["gradient", "classes"])
def test_multiphase(normalize):
    phi = scores(2, 7, 37, 41)
    assert_same_on_both(
        lambda p, f: multiphase_evolve(p, f.log_softmax(1), steps=3, eta=0.1, normalize=normalize), phi, phi / 2
    )
    assert_same_on_both(MultiphaseLevelSet().forward, phi)


@pytest.mark.parametrize("limit", [None, 3.0, 10.0, 40.0])
def test_distances_and_boundaries(limit):
    mask = scores(3, 2, 51, 67).argmax(1) > 0
    torch.testing.assert_close(signed_distance(mask.cuda(), limit).cpu(), signed_distance(mask, limit))
    labels = scores(3, 4, 51, 67).argmax(1)
    assert torch.equal(label_boundary(labels.cuda(), 255).cpu(), label_boundary(labels, 255))


def test_curvature():
    assert_same_on_both(curvature, scores(3, 1, 40, 50)[:, 0])


def network(classes):
    return SmpNet(classes, "unet", "tu-test_resnet.r160_in1k", decoder={"decoder_channels": [32, 24, 16, 16, 8]})


TASKS = {
    "cross_entropy": lambda: SegmentationTask(11, network=network),
    "level_set": lambda: LevelSetLossTask(11, network=network),
    "dmls": lambda: DMLSTask(11, network=lambda classes: DMLS(classes, network, steps=3)),
    "chan_vese": lambda: ChanVeseTask(11, network=lambda classes: ChanVeseNet(classes, network, stride=2)),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_training_step_waits_for_the_device_nowhere(name, monkeypatch):
    task = TASKS[name]().cuda().train()
    monkeypatch.setattr(task, "log", lambda *arguments, **options: None)
    batch = {"image": torch.rand(2, 3, 96, 128).cuda(), "mask": torch.randint(0, 11, (2, 96, 128)).cuda()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode itself is new
        torch.cuda.set_sync_debug_mode("warn")
        torch.cuda.set_sync_debug_mode("default")
        task.training_step(batch, 0).backward()  # what is made once may wait
    waits = []

    def note(*_, **__):
        own = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack() if "lsseg" in frame.filename]
        waits.append(own[-1] if own else "torch")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", note)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            task.training_step(batch, 0).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not waits


def test_a_benchmark_says_how_long_the_card_works(capsys, tmp_path):
    shape = ["--shape", "1", "3", "32", "32", "--dtype", "bfloat16", "--repeats", "1"]
    assert main(["bench", "losses", "--device", "cuda", *shape, "--output", str(tmp_path / "figures.json")]) == 0
    assert "kernels ms" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(seconds > 0 for seconds in figures["kernel_seconds"].values())
    # The level-set loss leaves nothing behind but the gradient, of 2 bytes each.
    assert figures["peak_bytes"]["fused"] < 2 * figures["peak_bytes"]["cross_entropy"]
