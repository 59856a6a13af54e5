"""Every architecture and encoder of segmentation_models_pytorch, by name."""

from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.errors import InputError
from lsseg.models.output import SegOutput

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SmpNet(nn.Module):
    """A segmentation_models_pytorch network that takes images in [0, 1] of any size.

    Normalisation is a pair of buffers, so it travels with the checkpoint; padding to the encoder's stride (by repeating
    the edge) and cropping back happen here and nowhere else. An encoder that fixes its input size (dpt's vision
    transformers) keeps that limit.

    Args:
        num_classes: C.
        architecture: Any smp architecture: unet, unetplusplus, fpn, pspnet, deeplabv3plus, segformer, …
        encoder_name: Any smp encoder: resnet50, resnet101, mit_b0, …, and timm's as ``tu-NAME``.
        encoder_weights: ``imagenet`` or another name smp knows for this encoder (fetched once, then cached by smp), or
            null for random weights.
        decoder: Further arguments of the architecture, such as ``decoder_channels`` or ``encoder_depth``.

    Raises:
        InputError: If a name is unknown or the weights cannot be had.

    >>> net = SmpNet(3, "fpn", "tu-test_resnet.r160_in1k").eval()
    >>> net(torch.rand(1, 3, 45, 70)).logits.shape
    torch.Size([1, 3, 45, 70])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        architecture: str = "unet",
        encoder_name: str = "resnet50",
        encoder_weights: str | None = None,
        decoder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = _create(num_classes, architecture, encoder_name, encoder_weights, decoder or {})
        self.stride = int(self.net.get_submodule("encoder").output_stride)  # type: ignore[arg-type]
        mean, std = _normalisation(encoder_name, encoder_weights)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, image: Tensor) -> SegOutput:
        """Scores of a B×3×H×W image with values in [0, 1]."""
        height, width = image.shape[-2:]
        stride = self.stride
        x = (image - self.mean) / self.std
        x = F.pad(x, (0, -width % stride, 0, -height % stride), mode="replicate")
        return SegOutput(self.net(x)[..., :height, :width])


def _create(classes: int, architecture: str, encoder: str, weights: str | None, decoder: dict[str, Any]) -> nn.Module:
    known = smp.MODEL_ARCHITECTURES_MAPPING
    if architecture.lower() not in known:
        raise InputError(f"architecture: {architecture!r} is unknown; smp has {', '.join(sorted(known))}")
    # A timm encoder's weights are chosen by its name (tu-NAME.TAG): smp wants only to hear that there are some.
    given: str | bool | None = True if weights and encoder.startswith("tu-") else weights
    try:
        return smp.create_model(architecture, encoder_name=encoder, encoder_weights=given, classes=classes, **decoder)
    except KeyError as error:
        key = "encoder_weights" if "weights" in str(error) else "encoder_name"
        raise InputError(f"{key}: {str(error.args[0]).splitlines()[0][:300]}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"network {architecture} with {encoder}: {str(error).splitlines()[0]}") from error
    except (OSError, RuntimeError) as error:
        if weights is None:
            raise InputError(f"encoder_name {encoder!r}: {str(error).splitlines()[0]}") from error
        raise InputError(
            f"encoder_weights: cannot fetch {weights!r} for {encoder} ({type(error).__name__}); "
            "connect to the network once so that they are cached, or use null for random weights"
        ) from error


def _normalisation(encoder: str, weights: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the encoder's weights expect, for RGB in [0, 1]."""
    if weights is None:
        return IMAGENET_MEAN, IMAGENET_STD
    settings = smp.encoders.get_preprocessing_params(encoder, "imagenet" if encoder.startswith("tu-") else weights)
    if settings["input_space"] != "RGB":
        raise InputError(f"encoder_weights: {weights!r} of {encoder} expects {settings['input_space']}, not RGB")
    scale = float(settings["input_range"][1])
    return tuple(m / scale for m in settings["mean"]), tuple(s / scale for s in settings["std"])
