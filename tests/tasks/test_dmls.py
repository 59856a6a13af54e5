from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lsseg.errors import ArgumentError, InputError
from lsseg.losses import (
    CrossEntropyLevelSetLoss,
    CrossEntropyLoss,
    CrossEntropyPlus,
    LevelSetLoss,
    WeightedCrossEntropy,
)
from lsseg.models import DFCN, DMLS, SegOutput, Step
from lsseg.tasks import ChanVeseTask, DMLSTask, SegmentationTask


def network(classes, **options):
    class Pointwise(nn.Sequential):
        def forward(self, image):
            return SegOutput(super().forward(image))

    return DMLS(classes, lambda count: Pointwise(nn.Conv2d(3, count, 1)), **{"steps": 2, **options})


def task(**options):
    torch.manual_seed(0)
    return DMLSTask(3, network, **{"class_weights": [0.5, 1.0, 2.0], "boundary_weight": 1.0, **options})


def example():
    g = torch.Generator().manual_seed(1)
    parts = [torch.randn(2, 3, 6, 7, generator=g) for _ in range(4)]
    target = torch.randint(0, 3, (2, 6, 7), generator=g)
    output = SegOutput(parts[3], (Step(parts[0], parts[1]), Step(parts[2], parts[3])))
    return parts, target, output


def test_every_step_and_both_its_predictions_are_supervised():
    parts, target, output = example()
    terms = task(step_weights=[0.25, 3.0], boundary_weight=2.0).losses(output, target)
    one, two, three, four = (WeightedCrossEntropy([0.5, 1.0, 2.0], 2.0)(part, target) for part in parts)
    torch.testing.assert_close(terms["step1"], one + two)
    torch.testing.assert_close(terms["step2"], three + four)
    torch.testing.assert_close(terms["loss"], 0.25 * (one + two) + 3.0 * (three + four))


def test_without_deep_supervision_only_the_last_prediction_is():
    parts, target, output = example()
    terms = task(deep_supervision=False).losses(output, target)
    assert terms.keys() == {"loss"}
    torch.testing.assert_close(terms["loss"], WeightedCrossEntropy([0.5, 1.0, 2.0], 1.0)(parts[3], target))


def test_without_level_sets_there_is_one_prediction_a_step():
    parts, target, _ = example()
    output = SegOutput(parts[1], (Step(parts[0]), Step(parts[1])))
    made = DMLSTask(3, lambda classes: network(classes, level_set=False))
    one, two = (CrossEntropyLoss()(part, target) for part in parts[:2])
    torch.testing.assert_close(made.losses(output, target)["loss"], (one + two) / 2)


def test_the_loss_is_a_mean_of_plain_cross_entropies_unless_weights_are_given():
    parts, target, output = example()
    mean = torch.stack([CrossEntropyLoss()(part, target) for part in parts]).mean()
    torch.testing.assert_close(DMLSTask(3, network).losses(output, target)["loss"], mean)
    printed = DMLSTask(3, network, step_weights=[1.0, 1.0]).losses(output, target)["loss"]
    torch.testing.assert_close(printed, 4 * mean)


@pytest.mark.parametrize("deep", [True, False])
def test_any_criterion_is_of_every_prediction(deep):
    parts, target, output = example()
    fused = CrossEntropyLevelSetLoss(0.3)
    both = DMLSTask(3, network, criterion=fused, deep_supervision=deep).losses(output, target)["loss"]
    expected = [fused(part, target) for part in (parts if deep else parts[3:])]
    torch.testing.assert_close(both, torch.stack(expected).mean())


def test_auxiliary_scores_of_every_step_weigh_as_its_predictions_do():
    class Auxiliary(nn.Sequential):
        def forward(self, x):
            return {"out": super().forward(x), "aux": 2 * super().forward(x)}

    inner = Auxiliary(nn.Conv2d(3, 3, 3, padding=1))
    made = DMLSTask(3, lambda classes: DMLS(classes, inner, steps=2), step_weights=[1, 3])
    image, target = torch.rand(2, 3, 20, 24), torch.randint(0, 3, (2, 20, 24))
    output = made(image)
    assert len(output.auxiliary) == 2
    terms = made.losses(output, target)
    extra = [made.loss_of(scores, target) for scores in output.auxiliary]
    expected = terms["step1"] + 3 * terms["step2"] + extra[0] + 3 * extra[1]
    torch.testing.assert_close(terms["loss"], expected)


def test_class_weights_go_to_the_weighted_cross_entropy_of_a_criterion():
    parts, target, output = example()
    boundary = {"boundary_weight": 1.0}
    plus = CrossEntropyPlus(WeightedCrossEntropy(**boundary), cross_entropy_weight=0, level_set_weight=0.3)
    both = DMLSTask(3, network, criterion=plus, class_weights=[0.5, 1, 2], deep_supervision=False)
    expected = WeightedCrossEntropy([0.5, 1.0, 2.0], **boundary)(parts[3], target)
    torch.testing.assert_close(both.losses(output, target)["loss"], expected + 0.3 * LevelSetLoss()(parts[3], target))
    with pytest.raises(ArgumentError, match=r"^class_weights need a criterion that is, or contains, Weighted"):
        DMLSTask(3, network, criterion=CrossEntropyLoss(), class_weights=[0.5, 1, 2])
    with pytest.raises(ArgumentError, match=r"^boundary_weight must not be set with criterion"):
        DMLSTask(3, network, criterion=CrossEntropyLoss(), **boundary)


@pytest.mark.parametrize("method", [DMLSTask, ChanVeseTask])
def test_an_argument_of_older_versions_names_the_criterion(method):
    with pytest.raises(ArgumentError, match=r"model\.criterion to CrossEntropyLevelSetLoss .* 0\.3"):
        method(3, level_set_weight=0.3)


@pytest.mark.parametrize("temperature", [None, 0.4])
def test_phi_is_positive_exactly_inside_each_region(temperature):
    made = DMLSTask(3, lambda classes: network(classes, temperature=temperature))
    logits = example()[0][0]
    phi = made.phi(logits)
    scaled = logits * (temperature or 1.0)
    for label in range(3):
        rivals = scaled[:, [other for other in range(3) if other != label]].amax(1)
        torch.testing.assert_close(phi[:, label], scaled[:, label] - rivals)
    assert torch.equal((phi > 0).sum(1), torch.ones(2, 6, 7, dtype=torch.long))
    assert torch.equal((phi > 0).to(torch.uint8).argmax(1), logits.argmax(1))


def test_the_prior_of_the_weights_is_taken_back():
    made, other = task(test_prior=True, class_weights=[0.5, 0.0, 2.0]).eval(), task().eval()
    image = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        prior = torch.tensor([0.5, 1.0, 2.0]).log().view(3, 1, 1)  # a class of weight 0 is left alone
        torch.testing.assert_close(made.infer(image), other.infer(image) - prior)
        torch.testing.assert_close(made.unrefined(image), other.unrefined(image) - prior)
        for one in (made, other):  # a photograph that is read in bands
            one.window = 16
        size = (torch.tensor([20]), torch.tensor([24]))
        batch = {"image": (image * 255).to(torch.uint8), "size": size, "path": ["a.png"]}
        labels = made.predict_step(batch, 0)["prediction"]
        expected = (other.infer(batch["image"] / 255) - prior).argmax(1)
        assert torch.equal(labels.long(), expected)
        assert (labels != other.predict_step(batch, 0)["prediction"]).any()
    with pytest.raises(InputError, match=r"test_prior needs class_weights"):
        task(test_prior=True, class_weights=None)


def test_what_was_before_the_evolution_is_the_last_steps_own_score():
    made = task().eval()
    image = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        torch.testing.assert_close(made.unrefined(image), made(image).steps[-1].logits)
    assert DMLSTask(3, lambda classes: network(classes, level_set=False)).unrefined(image) is None


def test_phi_without_level_sets_is_that_of_the_probabilities():
    logits = example()[0][0]
    plain = DMLSTask(3, lambda classes: network(classes, level_set=False), class_weights=None)
    torch.testing.assert_close(plain.phi(logits), logits.softmax(1) - 0.5)


def test_evolution_ends_with_the_prediction():
    made = task().eval()
    image = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        steps = made.evolution(image)
        assert len(steps) == 2
        torch.testing.assert_close(steps[-1], made.infer(image))


def test_step_weights_need_deep_supervision():
    with pytest.raises(InputError, match=r"step_weights need deep_supervision"):
        task(step_weights=[1.0, 1.0], deep_supervision=False)


def test_a_task_takes_a_network_as_it_is():
    own = network(3)
    assert DMLSTask(3, own).network is own


DILATED = partial(DFCN, encoder_name="tu-test_resnet.r160_in1k", width=8)


def recurrent(steps):
    return DMLSTask(3, lambda classes: DMLS(classes, DILATED, steps=steps, level_set=False))


def checkpoint_of(made):
    return {"state_dict": dict(made.state_dict()), "num_classes": 3, "global_step": 1}


@pytest.mark.parametrize("first", [lambda: SegmentationTask(3, DILATED), lambda: recurrent(1)], ids=["plain", "K = 1"])
def test_a_training_starts_from_a_network_without_steps(first, tmp_path):
    torch.manual_seed(7)
    few = first().train()
    few(torch.rand(2, 3, 64, 64))  # statistics of its own
    torch.save(checkpoint_of(few), tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=r"model\.start: .* start as in a new network: feedback\.weight"):
        many = DMLSTask(
            3, lambda classes: DMLS(classes, DILATED, steps=3, level_set=False), start=str(tmp_path / "last.ckpt")
        )
    image = torch.rand(1, 3, 64, 64)
    expected = few.eval()(image).logits
    for step in many.eval()(image).steps:  # W_P starts at 0: every step is the network that it came from
        torch.testing.assert_close(step.logits, expected)


def test_another_number_of_steps_is_said():
    content = checkpoint_of(recurrent(2))
    with pytest.warns(UserWarning, match="statistics of 2 steps, but this network has 3"):
        recurrent(3).on_load_checkpoint(content)


def test_a_training_with_other_groups_of_parameters_is_not_continued():
    made = DMLSTask(3, network)
    made._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), datamodule=None)
    count = sum(len(group["params"]) for group in made.recipe.groups(made))
    old = {**checkpoint_of(made), "optimizer_states": [{"param_groups": [{"params": list(range(count))}]}]}
    with pytest.raises(InputError, match=r"cannot be continued, .* start a new run from it with model\.start"):
        made.on_load_checkpoint(old)
