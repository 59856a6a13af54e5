from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from lsseg.errors import InputError
from lsseg.models import DFCN, FCN, LevelSetRCNN, SmpNet
from lsseg.models.encoder import make_encoder

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
    with pytest.raises(InputError, match="holds no weights by name"):
        load(str(tmp_path / "list.pth"))
    key = next(iter(state))
    torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "short.pth")
    with pytest.raises(InputError, match=rf"lacks 1 of the encoder's \d+ weights, such as {key}"):
        load(str(tmp_path / "short.pth"))
    torch.save({**state, key: state[key][:1]}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"is of another encoder: {key} is"):
        load(str(tmp_path / "other.pth"))
