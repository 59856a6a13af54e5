from functools import partial

import pytest
import torch
from torch import nn

from lsseg.errors import InputError
from lsseg.functional import chan_vese_evolve
from lsseg.models import FCN, ChanVeseNet, SegOutput, SmpNet
from lsseg.models.heads import START, Hyperparameters

TINY = partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k", decoder={"decoder_channels": [16, 16, 8, 8, 8]})


def net(classes=4, **options):
    torch.manual_seed(0)
    options = {"network": TINY, "features": 6, **options}
    made = ChanVeseNet(classes, **options)
    if (
        made.refine == "chan_vese" and made.steps and made.refiner.hyperparameters.layers is not None
    ):  # as after some training: objects differ
        nn.init.normal_(made.refiner.hyperparameters.layers[-1].weight)
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


FORMS = {"scores": {"gain": 4.0}, "distances": {"initial": "distances"}}


@pytest.mark.parametrize("stride", [None, 2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_each_class_of_each_image_is_one_object(stride, form):
    """What comes out is what the evolution makes of every class by itself."""
    made = net(stride=stride, **FORMS[form]).eval()
    logits = made.network(image()).logits
    parts = made.parts(image())
    assert parts.classes.tolist() == [[0, 1, 2, 3]] * 2
    assert parts.start.shape[-2:] == (-(-45 // made.stride), -(-70 // made.stride))
    by_itself = [
        chan_vese_evolve(
            parts.start[m : m + 1], parts.features[m // 4 : m // 4 + 1], *[x[m : m + 1] for x in parts.numbers]
        )
        for m in range(8)
    ]
    change = (torch.cat(by_itself) - parts.start)[:, None]
    if made.stride > 1:
        change = torch.nn.functional.interpolate(change, scale_factor=made.stride, mode="bilinear")
    change = change[:, 0, :45, :70].view(logits.shape)
    assert change.abs().max() > 1e-3
    if form == "scores":  # φ⁰ = 2 P - 1, and g times the change goes to the logits
        torch.testing.assert_close(parts.phi, 2 * logits.softmax(1) - 1)
        expected = logits + 4.0 * change
    else:  # φ⁰ = tanh(slope · logits), and the scores are φ / 0.1
        torch.testing.assert_close(parts.phi, torch.tanh(0.3 * logits))
        expected = (parts.phi + change) / 0.1
    torch.testing.assert_close(made(image()).logits, expected, rtol=1e-4, atol=1e-3)


def test_the_scores_before_are_the_networks_own():
    made = net().eval()
    assert torch.equal(made(image()).steps[0].logits, made.network(image()).logits)
    distances = net(initial="distances", slope=0.2).eval()
    expected = torch.tanh(0.2 * distances.network(image()).logits) / 0.1
    torch.testing.assert_close(distances(image()).steps[0].logits, expected)


@pytest.mark.parametrize("stride", [None, 2])
@pytest.mark.parametrize("features", [6, 32])
def test_the_control_is_a_block_of_as_many_weights_on_the_same_features(stride, features):
    evolving = net(stride=stride, features=features, classes=5)
    control = net(stride=stride, features=features, classes=5, refine="convolution").eval()
    theirs, ours = (sum(p.numel() for p in made.parameters()) for made in (evolving, control))
    assert abs(theirs - ours) <= features + 5 + 1 + 5  # one hidden unit's weights
    assert not any("hyperparameters" in name for name, _ in control.named_parameters())
    parts = control.parts(image())
    x = torch.cat([parts.features, parts.start.view(2, 5, *parts.start.shape[1:])], 1)
    change = control.block(x)
    if stride:
        change = torch.nn.functional.interpolate(change, scale_factor=stride, mode="bilinear")[..., :45, :70]
    expected = control.network(image()).logits + 10 * change
    torch.testing.assert_close(control(image()).logits, expected, rtol=1e-4, atol=1e-4)
    assert len(control.evolution(image())) == 2


def test_without_refining_it_is_the_network():
    made = net(refine="none").eval()
    output = made(image())
    torch.testing.assert_close(output.logits, made.network(image()).logits)
    assert len(output.steps) == len(made.evolution(image())) == 1
    assert all(name.startswith("network.") for name, _ in made.named_parameters())


def test_a_network_may_be_given_instead_of_made():
    own = TINY(4)
    assert net(network=own).network is own


@pytest.mark.parametrize("form", FORMS)
def test_an_absent_class_has_finite_gradients(form):
    """A class whose probability is 0 in float32, everywhere."""

    class Sure(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.scores = nn.Conv2d(3, num_classes, 1)

        def forward(self, x):
            logits = self.scores(x) + torch.tensor([500.0, 0, -500, 3]).view(4, 1, 1)
            return SegOutput(logits, features=torch.cat([x, x], 1))

    made = net(network=Sure, **FORMS[form])
    output = made(image())
    output.logits.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_evolution_shows_every_iteration():
    made = net(stride=2).eval()
    output, scores = made(image()), made.evolution(image())
    assert len(scores) == 4
    torch.testing.assert_close(scores[0], output.steps[0].logits)
    torch.testing.assert_close(scores[-1], output.logits, rtol=1e-4, atol=1e-4)


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
        assert made.refiner.feature_head.convolutions[0][0].weight.grad.any()
        assert made.refiner.hyperparameters.shared.grad.any()


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
        ({"gain": 0.0}, "gain"),
        ({"slope": float("inf")}, "slope"),
        ({"initial": "phi"}, "initial.*one of scores, distances"),
        ({"refine": "evolution"}, "refine.*one of chan_vese, convolution, none"),
        ({"network": Featureless}, "Featureless must return SegOutput with features"),
    ):
        with pytest.raises(InputError, match=match):
            net(**options)


def test_any_network_with_features_will_do():
    made = net(network=partial(FCN, encoder_name="tu-test_resnet.r160_in1k", width=8)).eval()
    assert made.stride == made.feature_stride > 1
    assert made(image()).logits.shape == (2, 4, 45, 70)
