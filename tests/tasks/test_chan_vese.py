from functools import partial

import pytest
import torch

from lsseg.errors import InputError
from lsseg.functional import signed_distance
from lsseg.losses import CrossEntropyLevelSetLoss, CrossEntropyLoss, LevelSetLoss, TSDFLoss
from lsseg.models import DMLS, ChanVeseNet, SegOutput, SmpNet, Step
from lsseg.tasks import ChanVeseTask

NETWORK = partial(ChanVeseNet, network=partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k"), features=4)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    made = partial(NETWORK, stride=2, initial="distances")
    return ChanVeseTask(3, network=made, truncation=4.0, final_weight=5.0)


def scene():
    g = torch.Generator().manual_seed(2)
    target = torch.randint(0, 3, (2, 5, 7), generator=g)
    target[0, :2, :3] = 255
    logits = [torch.randn(2, 3, 5, 7, generator=g) for _ in range(2)]
    return target, SegOutput(logits[1], (Step(logits[0]), Step(logits[1])))


def test_loss_is_the_sum_over_both_and_void_counts_for_nothing(task):
    target, output = scene()
    valid = (target != 255)[:, None].expand(2, 3, 5, 7)
    mask = torch.stack([target == label for label in range(3)], 1)
    phi = signed_distance(mask, 8.0) / 8  # τ = 4 cells of 2 pixels
    expected = [TSDFLoss()(0.1 * step.logits[valid], phi[valid], mask[valid]) for step in output.steps]
    terms = task.losses(output, target)
    torch.testing.assert_close(terms["initial"], expected[0])
    torch.testing.assert_close(terms["final"], expected[1])
    torch.testing.assert_close(terms["loss"], expected[0] + 5 * expected[1])
    torch.testing.assert_close(task.losses(SegOutput(output.logits), target)["loss"], 5 * expected[1])


def test_scores_have_cross_entropy_before_and_after():
    target, output = scene()
    terms = ChanVeseTask(3, network=NETWORK, initial_weight=0.5, final_weight=2.0).losses(output, target)
    before, after = (CrossEntropyLoss()(step.logits, target) for step in output.steps)
    torch.testing.assert_close(terms["loss"], 0.5 * before + 2 * after)
    plain = ChanVeseTask(3, network=partial(NETWORK, refine="none"), final_weight=2.0)
    torch.testing.assert_close(plain.losses(SegOutput(output.logits), target)["loss"], after)
    assert plain.unrefined(torch.rand(1, 3, 40, 40)) is None


def test_any_criterion_is_of_the_scores_before_and_after():
    target, output = scene()
    fused = CrossEntropyLevelSetLoss(0.3)
    found = ChanVeseTask(3, network=NETWORK, criterion=fused, final_weight=2.0).losses(output, target)["loss"]
    before, after = (fused(step.logits, target) for step in output.steps)
    torch.testing.assert_close(found, before + 2 * after)


def test_a_criterion_is_added_to_the_loss_of_distances():
    target, output = scene()
    network = partial(NETWORK, initial="distances")
    plain = ChanVeseTask(3, network=network).losses(output, target)["loss"]
    terms = ChanVeseTask(3, network=network, criterion=LevelSetLoss()).losses(output, target)
    torch.testing.assert_close(terms["loss"], plain + LevelSetLoss()(output.logits, target))


@pytest.mark.parametrize("initial", ["scores", "distances"])
def test_what_was_before_the_evolution(initial):
    made = ChanVeseTask(3, network=partial(NETWORK, initial=initial)).eval()
    image = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(made.unrefined(image), made(image).steps[0].logits)
        torch.testing.assert_close(made.evolution(image)[-1], made.infer(image), rtol=1e-4, atol=1e-4)


def test_an_image_that_is_all_void_costs_nothing(task):
    image = torch.rand(2, 3, 40, 40)
    target = torch.full((2, 40, 40), 255)
    loss = task.losses(task(image, target), target)["loss"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in task.parameters())


def test_an_absent_class_and_one_that_fills_the_image_have_no_contour(task):
    target = torch.ones(2, 5, 7, dtype=torch.long)
    scores = torch.tensor([-10.0, 10.0, -10.0]).view(1, 3, 1, 1).expand(2, 3, 5, 7)
    exact = task.losses(SegOutput(scores), target)["final"]
    torch.testing.assert_close(exact, TSDFLoss()(torch.ones(1), torch.ones(1), torch.ones(1) > 0))


def test_the_truths_classes_evolve_in_training():
    task = ChanVeseTask(5, network=partial(NETWORK, max_classes=1)).train()
    target = torch.full((2, 40, 40), 4)
    output = task.train_output({"image": torch.rand(2, 3, 40, 40), "mask": target})
    moved = (output.logits != output.steps[0].logits).flatten(2).any(2)
    assert moved.nonzero().tolist() == [[0, 4], [1, 4]]


def test_wrong_options_are_named():
    for options, match in (
        ({"initial_weight": -1.0}, "initial_weight"),
        ({"final_weight": float("nan")}, "final_weight"),
        ({"truncation": 0.0}, "truncation"),
        ({"network": partial(DMLS, network=partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k"))}, "ChanVeseNet"),
    ):
        with pytest.raises(InputError, match=match):
            ChanVeseTask(3, **{"network": NETWORK, **options})
