from functools import partial

import pytest
import torch
from torch import nn

from lsseg.errors import InputError
from lsseg.functional import chan_vese_evolve
from lsseg.models import FCN, ChanVeseNet, SegOutput, SmpNet
from lsseg.models.hyperparameters import START, Hyperparameters

TINY = partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k", decoder={"decoder_channels": [16, 16, 8, 8, 8]})


def net(classes=4, **options):
    torch.manual_seed(0)
    options = {"network": TINY, "features": 6, **options}
    made = ChanVeseNet(classes, **options)
    if made.steps and made.hyperparameters.layers is not None:  # as after some training: objects differ
        nn.init.normal_(made.hyperparameters.layers[-1].weight)
    return made


def image(size=(45, 70), images=2):
    return torch.rand(images, 3, *size, generator=torch.Generator().manual_seed(1))


def test_start_values_and_range():
    numbers = Hyperparameters(5, 2)(torch.randn(3, 5))
    for name, start in START.items():
        torch.testing.assert_close(getattr(numbers, name), torch.full_like(getattr(numbers, name), start))
    head = Hyperparameters(5, 2)
    nn.init.normal_(head.layers[-1].weight, std=30)
    values = torch.cat([x.detach().flatten() for x in head(torch.randn(50, 5))])
    assert 0 <= float(values.min()) < 0.1
    assert 1.9 < float(values.max()) <= 2


def test_global_hyperparameters_are_one_set():
    head = Hyperparameters(5, 2, adaptive=False)
    numbers = head(torch.randn(3, 5))
    assert sum(p.numel() for p in head.parameters()) == 7
    assert numbers.dt.shape == (3, 2)
    sum(x.sum() for x in numbers).backward()
    assert bool((head.shared.grad > 0).all())


@pytest.mark.parametrize("stride", [None, 2, 4])
def test_each_class_of_each_image_is_one_object(stride):
    """What comes out is what the evolution makes of every class by itself."""
    made = net(stride=stride).eval()
    parts = made.parts(image())
    assert parts.classes.tolist() == [[0, 1, 2, 3]] * 2
    by_itself = [
        chan_vese_evolve(
            parts.start[m : m + 1], parts.features[m // 4 : m // 4 + 1], *[x[m : m + 1] for x in parts.numbers]
        )
        for m in range(8)
    ]
    final = made(image()).logits * 0.1
    if stride is None:
        torch.testing.assert_close(final.flatten(0, 1), torch.cat(by_itself), rtol=1e-4, atol=1e-4)
    else:  # the change, enlarged, is added to what the network's own scores show
        assert parts.start.shape[-2:] == (-(-45 // stride), -(-70 // stride))
        change = torch.nn.functional.interpolate(
            (torch.cat(by_itself) - parts.start)[:, None], scale_factor=stride, mode="bilinear"
        )
        expected = parts.phi.flatten(0, 1) + change[:, 0, :45, :70]
        torch.testing.assert_close(final.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_evolution_shows_every_iteration():
    made = net(stride=2).eval()
    output, scores = made(image()), made.evolution(image())
    assert len(scores) == 4
    torch.testing.assert_close(scores[0], output.steps[0].logits)
    torch.testing.assert_close(scores[-1], output.logits, rtol=1e-4, atol=1e-4)


def test_initial_scores_are_the_networks_own_through_tanh():
    made = net().eval()
    output = made(image())
    torch.testing.assert_close(output.steps[0].logits, torch.tanh(made.network(image()).logits) / 0.1)


def test_only_the_most_likely_classes_evolve_and_those_of_the_truth_first():
    made = net(classes=7, max_classes=3).eval()
    phi = made.parts(image()).phi
    expected = phi.amax((2, 3)).topk(3, 1).indices
    output = made(image())
    moved = (output.logits != output.steps[0].logits).flatten(2).any(2)
    assert [set(row.nonzero()[:, 0].tolist()) for row in moved] == [set(row.tolist()) for row in expected]
    present = torch.zeros(2, 7, dtype=torch.bool)
    present[0, 6], present[1, 0] = True, True
    classes = made.parts(image(), present).classes
    assert 6 in classes[0].tolist()
    assert 0 in classes[1].tolist()


def test_many_classes_fit():
    made = net(classes=150, network=partial(SmpNet, architecture="fpn", encoder_name="tu-test_resnet.r160_in1k")).eval()
    assert made.parts(image()).start.shape[0] == 2 * 16
    assert made(image()).logits.shape == (2, 150, 45, 70)


@pytest.mark.parametrize("max_classes", [16, 2])
def test_detached_the_final_loss_does_not_reach_the_initial_phi(max_classes):
    for detach in (False, True):
        made = net(detach_init=detach, hyperparameters="global", max_classes=max_classes)
        made(image()).logits.square().sum().backward()
        head = made.network.net.segmentation_head[0].weight.grad
        assert (head is None or not head.any()) == detach
        assert made.feature_head[0].weight.grad.any()
        assert made.hyperparameters.shared.grad.any()


def test_gradients_reach_everything():
    made = net().train()
    output = made(image())
    (output.logits.square().mean() + output.steps[0].logits.square().mean()).backward()
    without = [name for name, p in made.named_parameters() if p.grad is None]
    assert without == []


def test_without_iterations_it_is_the_network():
    made = net(steps=0).eval()
    output = made(image())
    assert len(output.steps) == 1
    assert made.evolution(image())[0].shape == output.logits.shape
    assert not any("head" in name and not name.startswith("network") for name, _ in made.named_parameters())


def test_half_precision_scores_are_float32():
    made = net().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = made(image())
    assert output.logits.dtype == torch.float32
    assert bool(output.logits.isfinite().all())


class Featureless(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.scores = nn.Conv2d(3, num_classes, 1)

    def forward(self, x):
        return SegOutput(self.scores(x))


def test_wrong_options_and_networks_are_named():
    for options, match in (
        ({"steps": -1}, "steps"),
        ({"features": 0}, "features"),
        ({"stride": 3}, "stride"),
        ({"max_classes": 0}, "max_classes"),
        ({"delta": "sharp"}, "delta"),
        ({"eta": 0.0}, "eta"),
        ({"network": Featureless}, "Featureless must return SegOutput with features"),
    ):
        with pytest.raises(InputError, match=match):
            net(**options)


def test_any_network_with_features_will_do():
    made = net(network=partial(FCN, encoder_name="tu-test_resnet.r160_in1k", width=8)).eval()
    assert made.stride == made.feature_stride > 1
    assert made(image()).logits.shape == (2, 4, 45, 70)
