"""DeepLab v3: atrous convolution in a pyramid with image pooling, or in a cascade."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.segmentation import (
    DeepLabV3_MobileNet_V3_Large_Weights,
    DeepLabV3_ResNet50_Weights,
    DeepLabV3_ResNet101_Weights,
)
from torchvision.models.segmentation.fcn import FCNHead

from densecrf_cuda.settings import whole_number

from .families import build_backbone, head_norm, pyramid_settings, resolve_layout
from .heads import CascadeHead, Pooling, PyramidHead
from .segmentation import DeepLab

__all__ = ["deeplabv3"]

WHOLE = {
    DeepLabV3_ResNet50_Weights: "resnet50",
    DeepLabV3_ResNet101_Weights: "resnet101",
    DeepLabV3_MobileNet_V3_Large_Weights: "mobilenet_v3_large",
}


def deeplabv3(
    *,
    backbone: str = "resnet101",
    num_classes: int = 21,
    output_stride: int | None = None,
    layout: str | None = None,
    multi_grid: Sequence[int] | None = None,
    cascade: int | None = None,
    atrous_rates: Sequence[int] | None = None,
    aspp_channels: int = 256,
    aspp_separable: bool = False,
    image_pooling: Pooling = True,
    aux: bool = False,
    tf_padding: bool | None = None,
    align_corners: bool | None = None,
    weights: WeightsEnum | None = None,
) -> DeepLab:
    """DeepLab v3.

    The layout says whose network it is. "torch" is torchvision's: keys of the state dict and outputs are the same, a
    3×3 convolution follows the pyramid. "tf" is TensorFlow's and the papers': no convolution there, the stride of a
    ResNet's stage in its last unit, TensorFlow's padding, bilinear resizing with aligned corners. "caffe" is "tf" with
    the stride of a ResNet's stage in its first 1×1 convolution and PyTorch's padding. BatchNorm has eps and momentum of
    the family.

    Args:
        backbone: "resnet50", "resnet101", "resnet50_beta", "resnet101_beta", "xception41", "xception65", "xception71",
            "mobilenet_v2" or "mobilenet_v3_large".
        num_classes: ≥ 1, with the background.
        output_stride: 8, 16 or 32; a cascade with more stages goes on to 64, 128, 256. None: 16, but 8 for ResNets with
            the layout "torch".
        layout: "torch", "tf" or "caffe". None: "torch" for "resnet50", "resnet101" and "mobilenet_v3_large", else "tf".
        multi_grid: three dilations of the last stage, times that of the output stride. None: 1, 2, 4 for the beta
            ResNets, else 1, 1, 1.
        cascade: the cascaded variant up to this block, 4 to 7, for ResNets; it has no pyramid.
        atrous_rates: dilations of the pyramid at this output stride, any number of them. None: 6, 12, 18 at 16, in
            proportion at others; twice that for MobileNetV3 with the layout "torch", none for MobileNets with "tf".
        aspp_channels: of the pyramid's branches.
        aspp_separable: whether its 3×3 convolutions are separable.
        image_pooling: True, False, or the size (H, W) of training images for TensorFlow's means over windows of it.
        aux: an auxiliary classifier; `forward` gives a dict then.
        tf_padding: TensorFlow's padding at strides. None: with the layout "tf", unless the weights are torchvision's.
        align_corners: of the bilinear resizing. None: except with the layout "torch".
        weights: torchvision's, downloaded: of a classifier of images for the backbone, or of the whole DeepLab.

    Returns:
        a `DeepLab` from images [B, 3, H, W] to logits [B, num_classes, H, W].

    Raises:
        ValueError, TypeError: an argument out of its range, or settings that do not go together.

    Chen, Papandreou, Schroff & Adam, "Rethinking atrous convolution for semantic image segmentation", 2017.

    Example:
        >>> import torch
        >>> import deeplab
        >>> with torch.device("meta"):
        ...     model = deeplab.deeplabv3(backbone="resnet50", aux=True)
        >>> sum(parameter.numel() for parameter in model.parameters())
        42004074
    """
    layout = resolve_layout(backbone, layout)
    num_classes = whole_number("num_classes", num_classes, 1)
    if output_stride is None:
        output_stride = 8 if layout == "torch" and backbone.startswith("resnet") else 16
    align_corners = layout != "torch" if align_corners is None else align_corners
    whole = weights if type(weights) in WHOLE else None
    features = build_backbone(
        backbone,
        layout,
        output_stride,
        ("aux", "out") if aux else ("out",),
        multi_grid=multi_grid,
        tf_padding=tf_padding,
        weights=None if whole else weights,
        cascade=4 if cascade is None else cascade,
    )
    head: nn.Module
    if cascade is None:
        settings = pyramid_settings(
            backbone,
            layout,
            output_stride,
            channels=aspp_channels,
            rates=atrous_rates,
            separable=aspp_separable,
            image_pooling=image_pooling,
            align_corners=align_corners,
        )
        head = PyramidHead(features.channels["out"], num_classes, settings, head_norm(layout), layout == "torch")
        head.set_output_stride(output_stride)
    elif atrous_rates is None and not aspp_separable:
        head = CascadeHead(features.channels["out"], num_classes)
    else:
        raise ValueError(f"cascade={cascade} has no pyramid, got atrous_rates={atrous_rates}, {aspp_separable=}")
    aux_head = FCNHead(features.channels["aux"], num_classes) if aux else None
    model = DeepLab(features, head, aux_head, align_corners=align_corners)
    if whole is not None:
        _load_whole(model, whole, backbone, layout, num_classes)
    return model


def _load_whole(model: DeepLab, weights: WeightsEnum, backbone: str, layout: str, num_classes: int) -> None:
    """Weights of torchvision's DeepLab, whose auxiliary classifier is left where the model has none."""
    wanted = (WHOLE[type(weights)], "torch", len(weights.meta["categories"]))
    if (backbone, layout, num_classes) != wanted:
        raise ValueError(
            f"{weights} are for backbone, layout and num_classes {wanted}, got {(backbone, layout, num_classes)}"
        )
    state = weights.get_state_dict(progress=True, check_hash=True)
    if model.aux_classifier is None:
        state = {name: value for name, value in state.items() if not name.startswith("aux_classifier.")}
    model.load_state_dict(state)
