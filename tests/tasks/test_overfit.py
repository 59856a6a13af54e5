"""A few scenes learnt by heart: refined scores are no worse than those before, and neither is a plain block in place.

The mathematics of a layer may be right and training with it go wrong, as it did on a scale that was too sharp.
"""

from functools import partial

import pytest
import torch

from lsseg.data import SyntheticShapes
from lsseg.metrics import Overlap
from lsseg.models import DMLS, ChanVeseNet, SmpNet
from lsseg.tasks import ChanVeseTask, DMLSTask, SegmentationTask

PLAIN = partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k", decoder={"decoder_channels": [32, 24, 16, 16, 16]})
HEAD = {"network": PLAIN, "features": 8, "stride": 2}
TASKS = {
    "cross-entropy": lambda: SegmentationTask(7, network=PLAIN),
    "DMLS": lambda: DMLSTask(7, network=partial(DMLS, network=PLAIN, steps=2)),
    "Chan-Vese": lambda: ChanVeseTask(7, network=partial(ChanVeseNet, **HEAD)),
    "convolution": lambda: ChanVeseTask(7, network=partial(ChanVeseNet, refine="convolution", **HEAD)),
}
UPDATES = 32


@pytest.fixture(scope="module")
def batch():
    scenes = SyntheticShapes(4, 1, 1, size=(64, 80), difficulty=0.2, batch_size=4, num_workers=0)
    samples = scenes.samples(scenes.source("train"), training=False)
    return {key: torch.stack([samples[i][key] for i in range(4)]) for key in ("image", "mask")}


def overlap(logits, mask):
    scores = Overlap(7)
    scores.update(logits.argmax(1), mask)
    return float(scores.compute()["miou"])


def memorised(make, batch):
    """mIoU after some updates, of the refined and of the unrefined scores."""
    torch.manual_seed(0)
    task = make().train()
    optimizer = torch.optim.AdamW(task.recipe.groups(task), lr=0.005)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        task.losses(task.train_output(batch), batch["mask"])["loss"].backward()
        optimizer.step()
    with torch.no_grad():  # in training mode: the running statistics lag behind so few updates
        output = task.train_output(batch)
    before = output.logits
    if output.steps:
        before = output.steps[-1 if isinstance(task, DMLSTask) else 0].logits
    return overlap(output.logits, batch["mask"]), overlap(before, batch["mask"])


@pytest.fixture(scope="module")
def learnt(batch):
    return {name: memorised(make, batch) for name, make in TASKS.items()}


def test_the_plain_network_learns_its_scenes(learnt):
    assert learnt["cross-entropy"][0] > 0.5


@pytest.mark.parametrize("name", ["DMLS", "Chan-Vese", "convolution"])
def test_refining_costs_nothing(learnt, name):
    refined, before = learnt[name]
    assert refined > before - 0.01
    assert refined > learnt["cross-entropy"][0] - 0.05


def test_a_head_that_learns_badly_is_seen(batch, learnt):
    """The first version of the Chan-Vese head: distances, from a tanh that is saturated, in cross-entropy's place."""
    head = partial(ChanVeseNet, initial="distances", slope=1.0, **HEAD)
    refined, _ = memorised(lambda: ChanVeseTask(7, network=head, final_weight=5.0), batch)
    assert refined < learnt["cross-entropy"][0] - 0.05
