"""Provides every architecture and encoder of segmentation_models_pytorch by name."""

from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from lsseg.errors import ArgumentError
from lsseg.models.encoder import EncoderNet, encoder_weights_for, load_local_weights, readable_errors
from lsseg.models.output import SegOutput

# torch's error messages contain these words if a layer's output would have no pixel.
TOO_SMALL = ("Output size is too small", "greater than actual input size", "sizes should be greater than 0")


class SmpNet(EncoderNet):
    """Applies a segmentation_models_pytorch network to images in [0, 1] of any size that the architecture accepts.

    Most architectures accept any size, whatever their stride. PAN needs images of 128 pixels or more.

    Args:
        num_classes: Number of classes, C.
        architecture: Any smp architecture: unet, unetplusplus, fpn, pspnet, deeplabv3plus, segformer, …
        encoder_name: Any smp encoder: resnet50, resnet101, mit_b0, …, and timm's as ``tu-NAME``.
        encoder_weights: ``imagenet`` or another name that smp knows for this encoder (fetched once, then cached by
            smp), a file of weights, or null for random weights. The weights of ``tu-tf_efficientnet_lite0`` come with
            the extra ``weights`` and need no network.
        decoder: Further arguments of the architecture, such as ``decoder_channels`` or ``encoder_depth``.
        mean: Mean of RGB in [0, 1] that the weights expect; null looks it up (for a file: timm's, or ImageNet's).
        std: Standard deviation of RGB, likewise.

    Raises:
        InputError: If a name is unknown or the weights cannot be had; later, if an image is too small.

    >>> import torch
    >>> net = SmpNet(3, "fpn", "tu-test_resnet.r160_in1k").eval()
    >>> net(torch.rand(1, 3, 45, 70)).logits.shape
    torch.Size([1, 3, 45, 70])
    """

    def __init__(
        self,
        num_classes: int,
        architecture: str = "unet",
        encoder_name: str = "resnet50",
        encoder_weights: str | None = None,
        decoder: dict[str, Any] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        net = _create(num_classes, architecture, encoder_name, encoder_weights, decoder or {})
        stride = int(net.get_submodule("encoder").output_stride)  # type: ignore[arg-type]
        super().__init__(encoder_name, encoder_weights, stride, mean, std)
        self.net = net
        self._features: Tensor | None = None
        net.get_submodule("segmentation_head").register_forward_pre_hook(self._keep)

    def forward(self, image: Tensor) -> SegOutput:
        """Return the scores of a B×3×H×W image with values in [0, 1], and the decoder's features."""
        padded = self.prepare(image)
        try:
            logits = self.net(padded)
            assert self._features is not None
            return self.output(logits, self._features, image, padded)
        except (RuntimeError, ValueError) as error:
            if not any(words in str(error) for words in TOO_SMALL):
                raise
            size = "×".join(map(str, image.shape[-2:]))
            raise ArgumentError(
                f"architecture {type(self.net).__name__} cannot take an image of {size}, which is too small for it: "
                "set a larger data.crop_size or data.resize, or take another architecture"
            ) from error
        finally:  # the autograd graph must not outlive the call
            self._features = None

    def _keep(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep the input of the segmentation head, which is the decoder's features."""
        self._features = inputs[0]


def _create(classes: int, architecture: str, encoder: str, weights: str | None, decoder: dict[str, Any]) -> nn.Module:
    known = smp.MODEL_ARCHITECTURES_MAPPING
    if architecture.lower() not in known:
        raise ArgumentError(f"architecture: {architecture!r} is unknown; smp has {', '.join(sorted(known))}")
    with readable_errors(encoder, weights, decoder):
        given = encoder_weights_for(encoder, weights)
        net = smp.create_model(architecture, encoder_name=encoder, encoder_weights=given, classes=classes, **decoder)
    load_local_weights(net.encoder, encoder, weights)
    return net
