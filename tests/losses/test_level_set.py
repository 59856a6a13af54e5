"""The level-set loss as a module, and what all losses share."""

import functools
from types import SimpleNamespace

import pytest
import torch

from lsseg.errors import ArgumentError
from lsseg.functional import cross_entropy_level_set, level_set_energy, regions
from lsseg.losses import (
    ActiveContourLoss,
    BoundaryLoss,
    CrossEntropyLevelSetLoss,
    CrossEntropyLoss,
    CrossEntropyPlus,
    LevelSetLoss,
    LossMaxPooling,
    WeightedCrossEntropy,
)
from lsseg.losses.cross_entropy import set_over_processes
from lsseg.models import SegOutput, SmpNet
from lsseg.tasks import LevelSetLossTask

OPTIONS = {"epsilon": 0.1, "heaviside": "ahf", "reduction": "batchmean", "ignore_index": 7}


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 6, 5), generator=g)
    target[:, 1] = 7
    return torch.randn(2, 3, 6, 5, generator=g), target


def test_modules_pass_every_option_on(batch):
    weights = [1.0, 0.0, 2.0]
    expected = cross_entropy_level_set(*batch, **OPTIONS, class_weights=torch.tensor(weights))
    torch.testing.assert_close(LevelSetLoss(**OPTIONS, class_weights=weights)(*batch), expected[1])
    both = CrossEntropyLevelSetLoss(0.3, **OPTIONS, class_weights=weights)
    torch.testing.assert_close(both(*batch), expected[0] + 0.3 * expected[1])
    assert not isinstance(both, LevelSetLoss)
    assert not both.state_dict()


def test_modules_take_soft_and_overlapping_regions(batch):
    logits = batch[0]
    truth, valid = torch.rand_like(logits), torch.rand(2, 6, 5) < 0.7
    for mode in ("multiclass", "multilabel"):
        expected = cross_entropy_level_set(logits, truth, mode=mode, valid=valid)
        torch.testing.assert_close(LevelSetLoss(mode=mode)(logits, truth, valid), expected[1])
        torch.testing.assert_close(
            CrossEntropyLevelSetLoss(1.0, mode=mode)(logits, truth, valid), expected[0] + expected[1]
        )


def test_modules_say_their_options():
    assert repr(CrossEntropyLevelSetLoss(0.5, mode="binary")) == (
        "CrossEntropyLevelSetLoss(level_set_weight=0.5, epsilon=0.05, heaviside='mahf', reduction='mean', "
        "ignore_index=255, mode='binary')"
    )


@pytest.mark.parametrize("make", [LevelSetLoss, CrossEntropyLevelSetLoss])
@pytest.mark.parametrize(
    "option",
    [
        {"epsilon": float("nan")},
        {"epsilon": 0},
        {"epsilon": float("inf")},
        {"heaviside": "sharp"},
        {"reduction": "median"},
        {"mode": "soft"},
        {"kernels": "cuda"},
        {"class_weights": [1.0, -1.0]},
    ],
)
def test_wrong_options_are_refused_when_the_loss_is_made(make, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        make(**option)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_a_wrong_weight_is_refused_when_it_is_given_and_when_it_is_set(weight):
    with pytest.raises(ValueError, match="level_set_weight must be"):
        CrossEntropyLevelSetLoss(weight)
    loss = CrossEntropyLevelSetLoss()
    with pytest.raises(ValueError, match="level_set_weight must be"):
        loss.level_set_weight = weight
    with pytest.raises(ValueError, match=r"^reduction must not be 'none', because"):
        CrossEntropyLevelSetLoss(reduction="none")


def test_the_weight_of_a_task_is_a_number_that_can_be_set():
    task = LevelSetLossTask(3, network=lambda classes: SmpNet(classes, encoder_name="tu-test_resnet.r160_in1k"))
    assert task.level_set_weight == 0.67
    task.level_set_weight = 0.2
    assert task.criterion.level_set_weight == 0.2


def test_the_energy_is_added_to_any_criterion():
    network = functools.partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k")
    task = LevelSetLossTask(3, 0.3, criterion=LossMaxPooling(), network=network)
    logits, target = torch.randn(2, 3, 6, 7), torch.randint(0, 3, (2, 6, 7))
    terms = task.losses(SegOutput(logits), target)
    torch.testing.assert_close(terms["criterion"], LossMaxPooling()(logits, target))
    torch.testing.assert_close(terms["loss"], terms["criterion"] + 0.3 * LevelSetLoss()(logits, target))


def test_epsilon_falls_from_wide_to_narrow(monkeypatch):
    network = functools.partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k")
    task = LevelSetLossTask(3, epsilon=0.05, epsilon_start=0.8, network=network)
    monkeypatch.setattr(LevelSetLossTask, "trainer", SimpleNamespace(estimated_stepping_batches=8))
    logits, target = torch.randn(2, 3, 6, 7), torch.randint(0, 3, (2, 6, 7))
    for step, epsilon in ((0, 0.8), (4, 0.2), (8, 0.05), (9, 0.05)):
        monkeypatch.setattr(LevelSetLossTask, "global_step", step)
        energy = task.train().losses(SegOutput(logits), target)["level_set"]
        torch.testing.assert_close(energy, LevelSetLoss(epsilon)(logits, target))
        energy = task.eval().losses(SegOutput(logits), target)["level_set"]
        torch.testing.assert_close(energy, LevelSetLoss(0.05)(logits, target))
    with pytest.raises(ArgumentError, match="epsilon_start must be positive, not 0"):
        LevelSetLossTask(3, epsilon_start=0, network=network)


LOSSES = {
    "cross_entropy": CrossEntropyLoss(),
    "both": CrossEntropyLevelSetLoss(),
    "weighted": WeightedCrossEntropy([1.0, 2.0, 3.0]),
    "weighted_without_boundary": WeightedCrossEntropy([1.0, 2.0, 3.0], boundary_weight=0),
    "max_pooling": LossMaxPooling(),
    "boundary": BoundaryLoss(),
    "active_contour": ActiveContourLoss(),
    "level_set": LevelSetLoss(),
    "plus": CrossEntropyPlus(BoundaryLoss()),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [3, -1, 256])
def test_every_loss_refuses_a_label_that_names_no_class(name, label, batch):
    target = batch[1].masked_fill(batch[1] == 7, 255)
    assert torch.isfinite(LOSSES[name](batch[0], target))
    target[1, 2, 3] = label
    with pytest.raises(ValueError, match=f"the label {label}: expected 0..2 or the ignore index 255"):
        LOSSES[name](batch[0], target)


def test_a_loss_in_anybodys_loop_leaves_the_other_processes_alone(batch, monkeypatch):
    """Rank 0 alone may ask for it; only where that is asked for are pixels counted over all processes."""
    calls = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: calls.append(float(values)))
    target = batch[1].masked_fill(batch[1] == 7, 255)
    logits = batch[0].requires_grad_()
    for loss in LOSSES.values():
        loss(logits, target)
    assert not calls
    loss = CrossEntropyPlus(BoundaryLoss())
    alone = CrossEntropyPlus(BoundaryLoss(), cross_entropy_weight=0)
    before = loss(logits, target) - alone(logits, target)
    set_over_processes(loss)
    after = loss(logits, target) - alone(logits, target)
    assert calls == [50]  # valid pixels
    torch.testing.assert_close(after, 2 * before)  # the other process seems to have none, and the mean is half as large


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [2, 160, 255, 256, 300, 65535])
def test_a_label_outside_is_in_no_region(dtype, classes):
    limits = torch.iinfo(dtype)
    every = (0, 1, -1, -100, 127, 254, 255, 256, classes - 1, classes, classes + 1, 65535, 70000, 2**40)
    labels = torch.tensor([x for x in every if limits.min <= x <= limits.max])
    found = regions(labels[None].to(dtype), classes)[0].nonzero()
    expected = [(int(label), place) for place, label in enumerate(labels) if 0 <= label < classes]
    assert sorted(map(tuple, found.tolist())) == sorted(expected)


def test_any_ignore_index_with_many_classes():
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(1, 160, 6, 6, generator=g), torch.randint(0, 160, (1, 6, 6), generator=g)
    target[0, :2] = -100
    other = target.masked_fill(target == -100, 255)
    for make in (BoundaryLoss, ActiveContourLoss, LevelSetLoss, CrossEntropyLoss, LossMaxPooling):
        torch.testing.assert_close(make(ignore_index=-100)(logits, target), make()(logits, other))
    assert level_set_energy(logits, target, ignore_index=-100) > 0
