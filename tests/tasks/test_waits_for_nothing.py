"""A training step asks no tensor for its values, which would wait for a GPU: on tensors without values it runs."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lsseg.errors import InputError
from lsseg.models import DMLS, ChanVeseNet, SmpNet
from lsseg.tasks import ChanVeseTask, DMLSTask, LevelSetLossTask, SegmentationTask

CLASSES = 5


def network(classes):
    return SmpNet(classes, "unet", "tu-test_resnet.r160_in1k", decoder={"decoder_channels": [32, 24, 16, 16, 8]})


def dmls(**options):
    return lambda: DMLSTask(CLASSES, network=lambda classes: DMLS(classes, network, steps=3, **options))


def chan_vese(**options):
    return lambda: ChanVeseTask(CLASSES, network=lambda classes: ChanVeseNet(classes, network, stride=2, **options))


TASKS = {
    "cross_entropy": lambda: SegmentationTask(CLASSES, network=network),
    "level_set": lambda: LevelSetLossTask(CLASSES, network=network),
    "dmls": dmls(),
    "dmls_temperature": dmls(temperature=0.4),
    "dmls_colour": dmls(likelihood="colour"),
    "chan_vese": chan_vese(),
    "chan_vese_few": chan_vese(max_classes=3),
    "chan_vese_distances": chan_vese(initial="distances"),
    "convolution": chan_vese(refine="convolution"),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_training_step_runs_on_tensors_without_values(name, monkeypatch):
    task = TASKS[name]().to("meta").train()
    logged = []
    monkeypatch.setattr(task, "log", lambda key, *_, **__: logged.append(key))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which this device does not have
    image = torch.empty(2, 3, 64, 96, device="meta")
    mask = torch.empty(2, 64, 96, dtype=torch.int64, device="meta")
    task.training_step({"image": image, "mask": mask}, 0).backward()
    assert "train/loss" in logged
    assert all(p.grad is not None for p in task.network.parameters())


def test_a_value_that_is_asked_for_is_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.empty(3, device="meta").isnan().any())


def test_a_loss_that_is_no_number_is_refused_when_it_is_logged(monkeypatch):
    """On a GPU, whose losses are fetched every few steps only: here as if this device were one."""
    task = SegmentationTask(CLASSES, network=network)
    monkeypatch.setattr(type(task), "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    task._trainer = trainer = SimpleNamespace(global_step=0, log_every_n_steps=5, datamodule=None)
    for step, loss in enumerate([1.0, float("nan"), 1.0, 1.0]):
        trainer.global_step = step
        task.log_losses({"loss": torch.tensor(loss)}, 1)
    trainer.global_step = 4
    with pytest.raises(InputError, match=r"between the steps 0 and 4: the training loss is not finite \(in loss\)"):
        task.log_losses({"loss": torch.tensor(1.0)}, 1)
    trainer.global_step = 5
    task.log_losses({"loss": torch.tensor(float("inf"))}, 1)
    with pytest.raises(InputError, match="step 5: the training loss is not finite"):
        task.on_save_checkpoint({})  # no spoilt weights are kept
