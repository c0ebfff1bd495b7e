"""DeepLab v3+: the pyramid of v3 with a decoder, and separable convolutions in both."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.models import WeightsEnum
from torchvision.models.segmentation.fcn import FCNHead

from densecrf_cuda.settings import whole_number

from .families import build_backbone, head_norm, pyramid_settings, resolve_layout
from .heads import DecoderHead, Pooling
from .segmentation import DeepLab

__all__ = ["deeplabv3plus"]


def deeplabv3plus(
    *,
    backbone: str = "xception65",
    num_classes: int = 21,
    output_stride: int = 16,
    layout: str | None = None,
    separable: bool = True,
    decoder_channels: int = 256,
    multi_grid: Sequence[int] | None = None,
    atrous_rates: Sequence[int] | None = None,
    aspp_channels: int = 256,
    image_pooling: Pooling = True,
    aux: bool = False,
    tf_padding: bool | None = None,
    align_corners: bool | None = None,
    weights: WeightsEnum | None = None,
) -> DeepLab:
    """DeepLab v3+.

    The decoder brings the pyramid to the stride 4 of a low-level map, beside 48 channels of that, for two 3×3
    convolutions. With the layout "tf" the low-level map is TensorFlow's: 256 channels before the stride of its stage,
    after a convolution and its norm, for Xception and ResNet; the depthwise convolution of a MobileNet's last block at
    stride 4 (144 channels for V2, 72 for V3). With "torch" and "caffe" it is the output of the last unit at stride 4
    (256 for ResNet, 24 for MobileNets).

    Args:
        backbone: as for `deeplabv3`.
        num_classes: ≥ 1, with the background.
        output_stride: 8, 16 or 32, of the features that the pyramid reads.
        layout: "torch", "tf" or "caffe", as for `deeplabv3`, but without a 3×3 convolution between pyramid and decoder.
        separable: whether the 3×3 convolutions of pyramid and decoder are separable.
        decoder_channels: of the decoder's 3×3 convolutions.
        multi_grid: as for `deeplabv3`.
        atrous_rates: as for `deeplabv3`; MobileNets with the layout "tf" have none by default.
        aspp_channels: of the pyramid's branches.
        image_pooling: as for `deeplabv3`. The authors' networks for Cityscapes have none.
        aux: an auxiliary classifier; `forward` gives a dict then.
        tf_padding: as for `deeplabv3`.
        align_corners: as for `deeplabv3`.
        weights: torchvision's, of a classifier of images, for the backbone; downloaded.

    Returns:
        a `DeepLab` from images [B, 3, H, W] to logits [B, num_classes, H, W].

    Raises:
        ValueError, TypeError: an argument out of its range, or settings that do not go together.

    Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-decoder with atrous separable convolution for semantic image
    segmentation", 2018.

    Example:
        >>> import torch
        >>> import deeplab
        >>> with torch.device("meta"):
        ...     model = deeplab.deeplabv3plus(backbone="xception65")
        >>> sum(parameter.numel() for parameter in model.parameters())
        41055413
    """
    layout = resolve_layout(backbone, layout)
    num_classes = whole_number("num_classes", num_classes, 1)
    align_corners = layout != "torch" if align_corners is None else align_corners
    features = build_backbone(
        backbone,
        layout,
        output_stride,
        ("low", "aux", "out") if aux else ("low", "out"),
        multi_grid=multi_grid,
        tf_padding=tf_padding,
        weights=weights,
    )
    settings = pyramid_settings(
        backbone,
        layout,
        output_stride,
        channels=aspp_channels,
        rates=atrous_rates,
        separable=separable,
        image_pooling=image_pooling,
        align_corners=align_corners,
    )
    decoder_channels = whole_number("decoder_channels", decoder_channels, 1)
    head = DecoderHead(features.channels, num_classes, settings, head_norm(layout), decoder_channels, separable)
    head.set_output_stride(output_stride)
    aux_head = FCNHead(features.channels["aux"], num_classes) if aux else None
    return DeepLab(features, head, aux_head, align_corners=align_corners)
