"""What a criterion must be, whatever the method; what it gives is refused in one line where it is not."""

from functools import partial

import pytest
import torch
from torch import nn

from lsseg.errors import ArgumentError
from lsseg.losses import (
    BoundaryLoss,
    CrossEntropyLevelSetLoss,
    CrossEntropyLoss,
    CrossEntropyPlus,
    LevelSetLoss,
    WeightedCrossEntropy,
)
from lsseg.models import DMLS, ChanVeseNet, SegOutput, SmpNet, Step
from lsseg.tasks import ChanVeseTask, DMLSTask, LevelSetLossTask, SegmentationTask

PLAIN = partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k")
TASKS = {
    "plain": partial(SegmentationTask, 3, network=PLAIN),
    "level set": partial(LevelSetLossTask, 3, network=PLAIN),
    "DMLS": partial(DMLSTask, 3, network=partial(DMLS, network=PLAIN)),
    "Chan-Vese": partial(ChanVeseTask, 3, network=partial(ChanVeseNet, network=PLAIN)),
}


class Own(nn.Module):
    """A loss that is made of what it gives."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, logits, target):
        return self.give(logits)


WRONG = {
    "by pixel": (lambda x: x.mean(1), r"scalar tensor, not a tensor of shape \(2, 6, 7\)"),
    "of one number": (lambda x: x.mean().view(1), r"scalar tensor, not a tensor of shape \(1,\)"),
    "number": (lambda x: x.mean().item(), "scalar tensor, not 'float'"),
    "nothing": (lambda x: None, "scalar tensor, not 'NoneType'"),
    "detached": (lambda x: x.mean().detach(), "does not depend on the scores, or is detached"),
}


@pytest.mark.parametrize("method", TASKS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_loss_is_refused(method, name):
    give, message = WRONG[name]
    logits, target = torch.randn(2, 3, 6, 7, requires_grad=True), torch.randint(0, 3, (2, 6, 7))
    task = TASKS[method](criterion=Own(give))
    with pytest.raises(ArgumentError, match=f"^criterion .*{message}"):
        task.losses(SegOutput(logits, (Step(logits, logits), Step(logits, logits))), target)


@pytest.mark.parametrize("criterion", [CrossEntropyLevelSetLoss(), CrossEntropyPlus(LevelSetLoss())])
def test_the_energy_is_not_added_twice(criterion):
    with pytest.raises(ArgumentError, match=r"^criterion must not contain the level-set energy, which this task adds"):
        TASKS["level set"](criterion=criterion)


def test_weights_of_classes_are_numbers_of_the_classes():
    for weights in ([-1.0, 1, 1], [0.0, 0, 0], [float("nan"), 1, 1], []):
        with pytest.raises(ArgumentError, match=r"^class_weights must be numbers of at least 0"):
            WeightedCrossEntropy(weights)
    with pytest.raises(ArgumentError, match=r"^boundary_weight must not be negative"):
        WeightedCrossEntropy(boundary_weight=-1)
    logits, target = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    for boundary in (0.0, 1.0):
        with pytest.raises(ArgumentError, match=r"^class_weights must be 3 numbers, not 2"):
            WeightedCrossEntropy([1.0, 2.0], boundary)(logits, target)
    with pytest.raises(ArgumentError, match=r"^class_weights are given twice"):
        TASKS["DMLS"](criterion=WeightedCrossEntropy([1.0, 2, 3]), class_weights=[1.0, 2, 3])


@pytest.mark.parametrize("loss", [WeightedCrossEntropy(), BoundaryLoss()])
def test_a_loss_of_contours_is_not_given_pixels(loss):
    with pytest.raises(ArgumentError, match=r"^pixels must be false, because"):
        CrossEntropyPlus(loss, pixels=True)
    assert CrossEntropyPlus(CrossEntropyLoss(), pixels=True).pixels
