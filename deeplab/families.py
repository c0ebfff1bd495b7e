"""The backbones by name, and what differs between them and between the layouts: norms, padding, rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn
from torchvision.models import WeightsEnum

from densecrf_cuda.settings import check_choice, whole_number

from .backbone import Backbone
from .heads import ASPPSettings, Pooling
from .mobilenet import MobileNet
from .resnet import LAYOUTS, ResNet
from .xception import AlignedXception

__all__ = ["BACKBONES", "build_backbone", "head_norm", "pyramid_settings", "resolve_layout"]

RESNETS = ("resnet50", "resnet101", "resnet50_beta", "resnet101_beta")
XCEPTIONS = ("xception41", "xception65", "xception71")
MOBILENETS = ("mobilenet_v2", "mobilenet_v3_large")
BACKBONES = (*RESNETS, *XCEPTIONS, *MOBILENETS)

Norm = Callable[[int], nn.Module]


def _norm(eps: float, momentum: float) -> Norm:
    return partial(nn.BatchNorm2d, eps=eps, momentum=momentum)


def _backbone_norm(backbone: str, layout: str) -> Norm:
    """BatchNorm as torchvision has it, or with TensorFlow's eps and 1 - its decay as momentum."""
    if backbone == "mobilenet_v3_large":
        return _norm(1e-3, 3e-3 if layout == "tf" else 0.01)
    if layout == "tf":
        return _norm(1e-3, 3e-3) if backbone == "mobilenet_v2" else _norm(1e-5, 0.05)
    return _norm(1e-5, 0.1)


def head_norm(layout: str) -> Norm:
    """BatchNorm of pyramid and decoder."""
    return _norm(1e-5, 0.1 if layout == "torch" else 3e-4)


def resolve_layout(backbone: str, layout: str | None) -> str:
    """The layout, or the default of a backbone: that of the code in which its published weights were trained."""
    check_choice("backbone", backbone, BACKBONES)
    if layout is None:
        return "torch" if backbone in ("resnet50", "resnet101", "mobilenet_v3_large") else "tf"
    check_choice("layout", layout, LAYOUTS)
    if layout == "caffe" and backbone not in RESNETS:
        raise ValueError(f"layout 'caffe' is one of ResNets, got it for {backbone!r}")
    return layout


def build_backbone(
    backbone: str,
    layout: str,
    output_stride: int,
    taps: tuple[str, ...],
    *,
    multi_grid: Sequence[int] | None,
    tf_padding: bool | None,
    weights: WeightsEnum | None,
    cascade: int = 4,
) -> Backbone:
    """A backbone with the settings of its family.

    Args:
        backbone: one of BACKBONES.
        layout: "torch", "tf" or "caffe".
        output_stride: of its last map.
        taps: names of the maps that are wanted.
        multi_grid: dilations of the last stage; None: 1, 2, 4 for the beta ResNets, 1, 1, 1 for the others.
        tf_padding: TensorFlow's padding at strides; None: with the layout "tf", unless the weights are torchvision's.
        weights: torchvision's, with the norm's settings that they were trained with.
        cascade: number of a ResNet's stages, 4 to 7.

    Raises:
        ValueError: settings that the backbone does not have.
    """
    if tf_padding is None:
        tf_padding = layout == "tf" and weights is None
    norm = _backbone_norm(backbone, layout if weights is None else "torch")
    if cascade != 4 and backbone not in RESNETS:
        raise ValueError(f"the cascade is one of ResNets, got cascade={cascade} for {backbone!r}")
    model: Backbone
    if backbone in MOBILENETS:
        if multi_grid is not None:
            raise ValueError(f"multi_grid must be None for {backbone!r}, got {multi_grid}")
        model = MobileNet(
            backbone,
            output_stride=output_stride,
            layout=layout,
            norm=norm,
            tf_padding=tf_padding,
            weights=weights,
            taps=taps,
        )
    elif backbone in XCEPTIONS:
        if weights is not None:
            raise ValueError(f"weights of torchvision are of another network than {backbone!r}, got {weights}")
        model = AlignedXception(backbone, output_stride=output_stride, multi_grid=multi_grid, taps=taps)
    else:
        model = ResNet(
            backbone,
            output_stride=output_stride,
            layout=layout,
            multi_grid=(1, 2, 4) if multi_grid is None and backbone.endswith("_beta") else multi_grid,
            cascade=cascade,
            norm=norm,
            tf_padding=tf_padding,
            weights=weights,
            taps=taps,
        )
    return model


def pyramid_settings(
    backbone: str,
    layout: str,
    output_stride: int,
    *,
    channels: int,
    rates: Sequence[int] | None,
    separable: bool,
    image_pooling: Pooling,
    align_corners: bool,
) -> ASPPSettings:
    """The pyramid of a family: dilations 6, 12, 18 at output stride 16 and in proportion to the map at others.

    torchvision's MobileNetV3 has twice that at 16; TensorFlow's MobileNets have a 1×1 convolution and image pooling
    alone.
    """
    stride = output_stride
    if rates is None:
        stride = 16
        rates = (12, 24, 36) if (backbone, layout) == ("mobilenet_v3_large", "torch") else (6, 12, 18)
        if layout == "tf" and backbone in MOBILENETS:
            rates = ()
    return ASPPSettings(
        channels=whole_number("aspp_channels", channels, 1),
        rates=tuple(whole_number("atrous_rates", rate, 1) for rate in rates),
        stride=stride,
        separable=separable,
        image_pooling=_check_pooling(image_pooling),
        dropout=0.5 if layout == "torch" else 0.1,
        align_corners=align_corners,
    )


def _check_pooling(image_pooling: Pooling) -> Pooling:
    if isinstance(image_pooling, bool):
        return image_pooling
    size = tuple(whole_number("image_pooling", side, 1) for side in image_pooling)
    if len(size) != 2:
        raise ValueError(f"image_pooling must be True, False or the size (H, W) of an image, got {image_pooling}")
    return size
