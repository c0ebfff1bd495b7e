"""DeepLab v1: VGG-16 with holes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from densecrf_cuda.settings import check_choice, whole_number

from .geometry import place
from .segmentation import DeepLab
from .vgg import VGG16, VGGClassifier, initialise_hidden, load_vgg

__all__ = ["deeplabv1"]

# Kernel, rate at output stride 8 and channels of fc6.
VARIANTS = {"7x7": (7, 4, 4096), "4x4": (4, 4, 4096), "4x4-r8": (4, 8, 4096), "largefov": (3, 12, 1024)}
BRANCH = 128  # channels of a side branch
STRIDES = {"image": 1, "pool1": 2, "pool2": 4, "pool3": 8, "pool4": 16}  # of the maps, as far as there are strides


def deeplabv1(
    *,
    variant: str = "largefov",
    multi_scale: bool = False,
    num_classes: int = 21,
    output_stride: int = 8,
    pool: int = 2,
    align_corners: bool = True,
    weights: VGG16_Weights | None = None,
) -> DeepLab:
    """DeepLab v1.

    | variant | fc6 | rate | channels | name in the paper |
    |---|---|---:|---:|---|
    | "7x7" | 7 × 7 | 4 | 4096 | DeepLab-7x7 |
    | "4x4" | 4 × 4 | 4 | 4096 | DeepLab |
    | "4x4-r8" | 4 × 4 | 8 | 4096 | |
    | "largefov" | 3 × 3 | 12 | 1024 | DeepLab-LargeFOV |

    Args:
        variant: one of these.
        multi_scale: five side branches, from the image and the first four poolings to the classifier (MSc).
        num_classes: ≥ 1, with the background.
        output_stride: 8, 16 or 32; rates are in proportion.
        pool: window of the poolings: 2 as in VGG-16, or 3 as in the released models, whose receptive field is larger.
        align_corners: of the bilinear resizing to the image: True as in Caffe.
        weights: torchvision's VGG-16 for images, downloaded; fc6 and fc7 are decimated from its classifier.

    Returns:
        a `DeepLab` from images [B, 3, H, W] to logits [B, num_classes, H, W].

    Raises:
        ValueError, TypeError: an argument out of its range; weights without a classifier.

    Chen, Papandreou, Kokkinos, Murphy & Yuille, "Semantic image segmentation with deep convolutional nets and fully
    connected CRFs", 2015, sections 3.1, 3.2 and 4.1, tables 1 and 2.

    Example:
        >>> import torch
        >>> import deeplab
        >>> with torch.device("meta"):
        ...     model = deeplab.deeplabv1(variant="largefov")
        >>> sum(parameter.numel() for parameter in model.parameters())
        20505429
    """
    kernel, rate, channels = VARIANTS[check_choice("variant", variant, tuple(VARIANTS))]
    num_classes = whole_number("num_classes", num_classes, 1)
    backbone = VGG16(pool=pool)
    more = BRANCH * len(STRIDES) if multi_scale else 0
    main = VGGClassifier(num_classes, kernel=kernel, rate=rate, channels=channels, more=more)
    classifier: nn.Module = main
    if multi_scale:
        backbone.taps = (*STRIDES, "out")
        classifier = _WithSideBranches(main, backbone.channels)
    if weights is not None:
        load_vgg(backbone, [main], weights)
    model = DeepLab(backbone, classifier, align_corners=align_corners)
    model.set_output_stride(output_stride)
    return model


class _WithSideBranches(nn.Module):
    """A classifier that also reads finer maps, each through a 3 × 3 and a 1 × 1 convolution."""

    def __init__(self, main: VGGClassifier, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.main = main
        self.branches = nn.ModuleDict({name: _SideBranch(channels[name]) for name in STRIDES})

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Logits at the resolution of the map "out"."""
        return self.main(maps, *(branch(maps[name]) for name, branch in self.branches.items()))

    def set_output_stride(self, output_stride: int) -> None:
        """Bring every map to the size of the last one."""
        self.main.set_output_stride(output_stride)
        for name, stride in STRIDES.items():
            place(self.branches.get_submodule(name).first, max(output_stride // stride, 1), 1)  # type: ignore[arg-type]


class _SideBranch(nn.Sequential):
    first: nn.Conv2d

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, conv in (("first", nn.Conv2d(channels, BRANCH, 3)), ("second", nn.Conv2d(BRANCH, BRANCH, 1))):
            initialise_hidden(conv)
            self.add_module(name, conv)
            self.add_module(f"relu_{name}", nn.ReLU(inplace=True))
            self.add_module(f"drop_{name}", nn.Dropout(0.5))
