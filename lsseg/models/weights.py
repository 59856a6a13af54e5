"""Weights of an encoder from a file on this disk."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsseg.errors import InputError
from lsseg.models.wide_resnet import WideResNet38

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


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
    first = next(iter(ours))
    prefixes = {key[: -len(first)] for key in theirs if key.endswith(first)} or {""}
    prefix = max(sorted(prefixes), key=lambda start: sum(start + key in theirs for key in ours))
    missing = [key for key in ours if prefix + key not in theirs]
    if missing:
        raise InputError(
            f"encoder_weights: {path} lacks {len(missing)} of the encoder's {len(ours)} weights, such as {missing[0]}"
        )
    for key, value in ours.items():
        if theirs[prefix + key].shape != value.shape:
            shapes = f"{tuple(theirs[prefix + key].shape)}, in the encoder {tuple(value.shape)}"
            raise InputError(f"encoder_weights: {path} is of another encoder: {key} is {shapes}")
    encoder.load_state_dict({key: theirs[prefix + key] for key in ours}, strict=False)


def classifier_of_file(path: str) -> dict[str, Tensor] | None:
    """The fully connected layers of a VGG as torchvision names them, by their number; None where a file lacks them."""
    parts = [(key.rpartition("classifier."), value) for key, value in _read(Path(path)).items()]
    return {short: value for (_, inside, short), value in parts if inside} or None


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"encoder_weights: {path} is not a file")
    try:
        content: Any = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        # What torch says of a file that it did not write is of no use to anyone.
        raise InputError(f"encoder_weights: {path} cannot be read as weights of torch or safetensors") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"encoder_weights: {path} holds no weights by name")
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
