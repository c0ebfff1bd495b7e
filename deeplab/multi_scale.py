"""One network at several scales of the image, its scores fused by the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .segmentation import DeepLab

__all__ = ["MultiScale"]


class MultiScale(nn.Module):
    """The score of a class is its largest over scales of the image, all of them seen by the same network.

    s = max_r resize(f(resize(x, r))), taken at the resolution of the scores of the whole image, then enlarged. Sides of
    smaller images are rounded down.

    Args:
        base: f; its parameters are the only ones.
        scales: besides 1, of the image's sides, > 0.

    Raises:
        ValueError: a scale that is not positive, or 1.
        TypeError: another network than a `DeepLab`.

    Chen, Papandreou, Kokkinos, Murphy & Yuille, "DeepLab: semantic image segmentation with deep convolutional nets,
    atrous convolution, and fully connected CRFs", 2016, section 4.1.2.

    Example:
        >>> import deeplab
        >>> model = deeplab.MultiScale(deeplab.deeplabv2(backbone="vgg16", aspp="largefov"))
        >>> logits = model.train()(torch.zeros(1, 3, 65, 65))
        >>> sorted(logits)
        ['out', 'scale_0.5', 'scale_0.75', 'scale_1']
        >>> model.eval()(torch.zeros(1, 3, 65, 65)).shape
        torch.Size([1, 21, 65, 65])
    """

    def __init__(self, base: DeepLab, scales: Sequence[float] = (0.5, 0.75)) -> None:
        super().__init__()
        if not isinstance(base, DeepLab):
            raise TypeError(f"base must be a DeepLab, got {type(base).__name__}")
        self.scales = tuple(float(scale) for scale in scales)
        for scale in self.scales:
            if not (scale > 0 and math.isfinite(scale)) or scale == 1:
                raise ValueError(f"scales must be positive and other than 1, which is always there, got {scale}")
        self.base = base

    def forward(self, input: Tensor) -> Any:
        """Classify every pixel.

        Args:
            input: images [B, 3, H, W]; at each scale at least 33 × 33.

        Returns:
            logits [B, num_classes, H, W]. In training a dict: those under "out", and those of each scale alone, for a
            loss on every one of them, as "scale_1", "scale_0.5", ...

        Raises:
            ValueError: as the network.
        """
        own = self._scores(input)
        scores = {"scale_1": own}
        for scale in self.scales:
            smaller = self._resized(input, [int(scale * side) for side in input.shape[-2:]])
            scores[f"scale_{scale:g}"] = self._scores(smaller)
        fused = own
        for name, map_ in scores.items():
            if name != "scale_1":
                fused = torch.maximum(fused, self._resized(map_, own.shape[-2:]))
        if not self.training:
            return self._resized(fused, input.shape[-2:])
        return {name: self._resized(map_, input.shape[-2:]) for name, map_ in {"out": fused, **scores}.items()}

    def _scores(self, input: Tensor) -> Tensor:
        """At the resolution of the network's map."""
        return self.base.classifier(self.base.backbone(input))

    def _resized(self, map_: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(map_, tuple(size), mode="bilinear", align_corners=self.base.align_corners)
