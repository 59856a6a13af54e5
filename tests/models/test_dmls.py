import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lsseg.errors import InputError
from lsseg.models import DFCN, DMLS, FCN, SegOutput, SmpNet
from lsseg.models.dmls import StepNorm, batch_norms
from lsseg.models.multiphase import enlarged

TINY = "tu-test_resnet.r160_in1k"
dfcn = partial(DFCN, encoder_name=TINY, width=8)


def make(**options):
    torch.manual_seed(0)
    return DMLS(3, dfcn, **options)


def image(count=2, size=(33, 46)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def with_feedback(net):
    """W_P starts at 0; give it something to do."""
    torch.manual_seed(5)
    nn.init.normal_(net.feedback.weight, std=0.3)
    return net


def gradients(net, x):
    loss = sum(step.last.square().mean() for step in net(x).steps)
    return torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad], allow_unused=True)


def test_first_step_is_the_plain_network_and_so_are_all_while_the_new_kernel_is_zero():
    net = make(steps=3, level_set=False).eval()
    plain = net.network(image()).logits
    for step in net(image()).steps:
        assert step.refined is None
        torch.testing.assert_close(step.logits, plain)


def test_later_steps_see_the_previous_prediction_through_its_own_kernel():
    net = with_feedback(make(steps=3, level_set=False)).eval()
    first, second, third = (step.logits for step in net(image()).steps)
    torch.testing.assert_close(first, net.network(image()).logits)
    # By hand: the first convolution's response plus W_P * P, P padded as the image is.
    (conv,) = (m for m in net.network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    previous = F.pad(first.softmax(1), (0, -46 % net.network.stride, 0, -33 % net.network.stride))
    extra = F.conv2d(previous, net.feedback.weight, None, conv.stride, conv.padding)
    handle = conv.register_forward_hook(lambda module, inputs, response: response + extra)
    torch.testing.assert_close(second, net.network(image()).logits)
    handle.remove()
    assert (third - second).abs().max() > 1e-4


def test_pretrained_kernel_is_kept_and_the_new_one_starts_at_zero():
    torch.manual_seed(0)
    alone = dfcn(3).state_dict()
    net = make(steps=2, batch_norm="shared")
    kept = net.network.state_dict()
    assert alone.keys() == kept.keys()
    assert all(torch.equal(alone[key], kept[key]) for key in alone)
    assert net.feedback.weight.shape[1] == 3
    assert not net.feedback.weight.any()


def test_one_step_has_no_recurrence():
    net = make(steps=1)
    assert net.feedback is None
    assert not any(isinstance(m, StepNorm) for m in net.modules())


@pytest.mark.parametrize(
    "network",
    [
        partial(SmpNet, architecture="unet", encoder_name=TINY, decoder={"decoder_channels": [16, 16, 8, 8, 8]}),
        partial(SmpNet, architecture="segformer", encoder_name="mit_b0"),
        partial(FCN, encoder_name="vgg11", width=16),
        partial(DFCN, encoder_name="vgg11", width=8),
        partial(DFCN, encoder_name="efficientnet-b0", width=8),  # its first convolution pads by itself
    ],
)
@pytest.mark.parametrize("likelihood", ["confidence", "colour", "features"])
def test_wraps_any_network_with_any_likelihood(network, likelihood):
    torch.manual_seed(0)
    net = with_feedback(DMLS(4, network, steps=2, likelihood=likelihood))
    output = net(image(2, (45, 70)))
    assert output.logits.shape == (2, 4, 45, 70)
    assert output.logits is output.steps[-1].refined
    output.logits.square().mean().backward()
    for parameter in (net.feedback.weight, net.level_set.log_gain):
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any()


def test_gradients_flow_back_through_the_previous_prediction():
    net = with_feedback(make(steps=2)).train()
    first, second = net(image(2)).steps
    (gradient,) = torch.autograd.grad(second.logits.square().sum(), first.refined)
    assert gradient.any()


def test_features_of_a_stride_lie_where_the_image_does():
    """A network whose features are the true place of each pixel, at stride 4 of an image that is no multiple of it."""

    class Places(nn.Module):
        def forward(self, x):
            height, width = x.shape[-2:]
            rows = torch.arange(-(-height // 4)) * 4 + 1.5
            columns = torch.arange(-(-width // 4)) * 4 + 1.5
            grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
            return SegOutput(x, features=grid.expand(len(x), -1, -1, -1), feature_stride=4)

    places = enlarged(Places()(torch.zeros(1, 3, 33, 46)).features, 4, torch.zeros(1, 3, 33, 46))
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(46.0), indexing="ij")
    inner = (..., slice(2, 30), slice(2, 42))
    torch.testing.assert_close(places[0][inner], torch.stack([rows, columns])[inner])


@pytest.mark.parametrize("size", [(33, 33), (45, 70), (64, 64), (9, 90)])
@pytest.mark.parametrize(
    "network", [dfcn, partial(FCN, encoder_name=TINY, width=8), partial(SmpNet, encoder_name=TINY)]
)
def test_features_cover_the_image(network, size):
    output = network(3).eval()(torch.rand(1, 3, *size))
    stride = output.feature_stride
    assert output.features.shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))


def test_a_network_without_features_cannot_have_their_likelihood():
    class Plain(nn.Conv2d):
        def forward(self, x):
            return SegOutput(super().forward(x))

    net = DMLS(4, lambda classes: Plain(3, classes, 3, padding=1), steps=1, likelihood="features")
    with pytest.raises(InputError, match="needs a network that returns its features"):
        net(image())


def test_a_call_that_fails_leaves_nothing_behind():
    """The previous prediction is an argument of a call: one that fails leaves none behind."""
    torch.manual_seed(0)
    net = with_feedback(make(steps=2, level_set=False)).eval()
    expected = net(image()).logits
    fails = net.network.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        net(image())
    fails.remove()
    torch.testing.assert_close(net(image()).logits, expected)


# --- weights of relatives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_more_steps_start_from_fewer(steps):
    """Step k has its own statistics; those that are missing are the last ones that there are."""
    torch.manual_seed(3)
    few = make(steps=steps, level_set=False).train()
    few(image(3, (64, 64)))  # statistics of its own
    many = make(steps=4, level_set=False)
    state = {**few.state_dict()}
    if steps == 1:
        state["feedback.weight"] = many.feedback.weight
    many.load_state_dict(state)
    few.eval(), many.eval()
    for ours, theirs in zip(many(image()).steps[:steps], few(image()).steps, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits)
    norm = next(m for m in many.modules() if isinstance(m, StepNorm))
    assert torch.equal(norm.norms[3].running_mean, norm.norms[steps - 1].running_mean)
    assert norm.norms[0].running_mean.any()


def test_fewer_steps_and_the_plain_network_take_the_first_ones():
    many = make(steps=3, level_set=False).train()
    many(image(3, (64, 64)))
    many.eval()
    fewer = make(steps=2, level_set=False)
    fewer.load_state_dict(many.state_dict())
    torch.testing.assert_close(fewer.eval()(image()).steps[0].logits, many(image()).steps[0].logits)


def test_a_state_of_something_else_is_still_refused():
    with pytest.raises(RuntimeError, match="Unexpected key"):
        make(steps=2).load_state_dict({**make(steps=2).state_dict(), "other.weight": torch.zeros(1)})


# --- batch normalisation ---------------------------------------------------------------------------------------------


def test_each_step_has_statistics_of_its_own():
    net = with_feedback(make(steps=2, level_set=False, batch_norm="per_step"))
    norm = next(m for m in net.modules() if isinstance(m, StepNorm))
    assert norm.norms[0].weight is norm.norms[1].weight
    for each in batch_norms(net):
        each.momentum = 1.0  # the running statistics are those of the last batch
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(image(4, (64, 64)))
    assert len(seen) == 2
    for x, own in zip(seen, norm.norms, strict=True):
        torch.testing.assert_close(own.running_mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(own.running_var, x.var((0, 2, 3)))
    assert (norm.norms[0].running_mean - norm.norms[1].running_mean).abs().max() > 1e-3
    # Evaluation takes each step's own.
    seen.clear()
    responses = []
    norm.register_forward_hook(
        lambda module, inputs, response: responses.append(response.clone())
    )  # ReLU follows in place
    net.eval()(image(1, (64, 64)))
    for x, own, response in zip(seen, norm.norms, responses, strict=True):
        torch.testing.assert_close(response, own(x))


def test_shared_statistics_count_every_step():
    net = make(steps=3, level_set=False, batch_norm="shared")
    net(image())
    assert {int(norm.num_batches_tracked) for norm in batch_norms(net)} == {3}


@pytest.mark.parametrize(("batch_norm", "count", "frozen"), [("frozen", 2, True), (None, 1, True), (None, 2, False)])
def test_frozen_statistics_are_the_default_for_single_images(batch_norm, count, frozen):
    net = make(steps=2, batch_norm=batch_norm).train()
    before = copy.deepcopy({k: v for k, v in net.state_dict().items() if "running" in k})
    net(image(count)).logits.mean().backward()
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before) == frozen
    assert all(norm.weight.grad is not None for norm in batch_norms(net))


# --- memory ----------------------------------------------------------------------------------------------------------


def test_what_the_network_itself_froze_stays_frozen():
    net = make(steps=2, batch_norm=None)
    first, *others = batch_norms(net)
    for count in (1, 2):
        net.train()
        first.eval()
        net(image(count))
        assert not first.training
        assert all(norm.training == (count == 2) for norm in others)
    net(image(1))
    net(image(2))
    assert [norm.training for norm in (first, *others)] == [False, *[True] * len(others)]


@pytest.mark.parametrize("batch_norm", ["per_step", "shared", "frozen"])
def test_checkpointing_changes_neither_gradients_nor_statistics(batch_norm):
    plain, saving = (with_feedback(make(steps=3, batch_norm=batch_norm, checkpoint=c)) for c in (False, True))
    x = image(2, (40, 52))
    expected, found = gradients(plain, x), gradients(saving, x)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two)
    ours, theirs = saving.state_dict(), plain.state_dict()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, msg=key)


def test_nothing_of_a_graph_is_left_behind():
    network = partial(SmpNet, encoder_name=TINY, decoder={"decoder_channels": [16, 16, 8, 8, 8]})
    net = with_feedback(DMLS(3, network, steps=2, level_set=False, checkpoint=True))
    net(image(2, (64, 64))).logits.mean().backward()
    assert net.network._features is None
    assert all(getattr(module, "previous", None) is None for module in net.modules())
    assert copy.deepcopy(net).steps == 2  # a tensor of a graph inside cannot be copied


def test_half_precision_weights():
    net = with_feedback(make(steps=2)).bfloat16()
    assert net(image().bfloat16()).logits.shape == (2, 3, 33, 46)


def test_a_network_can_be_saved_whole(tmp_path):
    net = with_feedback(make(steps=2)).eval()
    torch.save(net, tmp_path / "net.pt")
    found = torch.load(tmp_path / "net.pt", weights_only=False)
    torch.testing.assert_close(found(image()).logits, net(image()).logits)


def test_a_copy_is_independent():
    net = with_feedback(make(steps=2)).eval()
    other = copy.deepcopy(net)
    nn.init.zeros_(other.feedback.weight)
    a, b = net(image()), other(image())
    assert not torch.equal(a.steps[1].logits, b.steps[1].logits)
    torch.testing.assert_close(a.steps[0].logits, b.steps[0].logits)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0), ("rho", 0.0), ("rho", 1.01), ("rho", float("nan")), ("truncation", 0.0), ("epsilon", -1.0),
        ("dt", 0.7), ("inner_steps", 0), ("temperature", 0.0), ("gain", 0.0), ("epsilon", 2.1),
        ("epsilon", float("inf")),
        ("truncation", float("inf")), ("likelihood", "feature"), ("normalize", "x"),
    ],
)  # fmt: skip
def test_bad_options_are_named(option, value):
    with pytest.raises(InputError, match=f"^{option} must"):
        make(**{option: value})


def test_unknown_options_are_refused_even_where_the_layer_is_off():
    with pytest.raises(TypeError, match="epsilom"):
        make(level_set=False, epsilom=3)
