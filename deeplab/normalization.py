"""How images are normalised for a network, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NORMALIZATIONS", "Normalization", "parse_normalization"]


class Normalization(NamedTuple):
    """What a network takes is (I - mean) / std of an image I on 0 to 255.

    Args:
        mean: per channel, in the order of the network.
        std: likewise, not 0.
        bgr: whether that order is blue, green, red.

    Example:
        >>> import deeplab
        >>> image = torch.full((1, 3, 2, 2), 255.0)
        >>> deeplab.NORMALIZATIONS["tf"].normalize(image).unique()
        tensor([1.])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def normalize(self, image: Tensor) -> Tensor:
        """The input of the network for an image [..., G, H, W] on 0 to 255, red first; float32 at least."""
        planes = [(plane - m) / s for plane, m, s in self._planes(image, flipped=self.bgr)]
        return torch.stack(planes, -3)

    def denormalize(self, input: Tensor) -> Tensor:
        """The image that an input of the network was made of: `normalize` undone, nothing is clipped."""
        planes = [plane * s + m for plane, m, s in self._planes(input)]
        return torch.stack(planes[::-1] if self.bgr else planes, -3)

    def _planes(self, image: Tensor, *, flipped: bool = False) -> list[tuple[Tensor, float, float]]:
        # numbers of the host, which no GPU is sent and no conversion of a model to half rounds
        if image.dim() < 3 or image.shape[-3] != len(self.mean):
            raise ValueError(f"images must be [..., {len(self.mean)}, H, W], got {tuple(image.shape)}")
        planes = image.to(torch.promote_types(image.dtype, torch.float32)).unbind(-3)
        return list(zip(planes[::-1] if flipped else planes, self.mean, self.std))


NORMALIZATIONS = {
    # torchvision's weights
    "imagenet": Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    # TensorFlow's Xception and MobileNets: from -1 to 1
    "tf": Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    # TensorFlow's beta ResNets
    "tf_resnet": Normalization((123.15, 115.90, 103.06), (1.0, 1.0, 1.0)),
    # Caffe's models of v1 and v2
    "caffe": Normalization((104.008, 116.669, 122.675), (1.0, 1.0, 1.0), bgr=True),
    "unit": Normalization((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "none": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def parse_normalization(normalization: str | Normalization | Sequence[Sequence[float]]) -> Normalization:
    """A normalization by its name, or (mean, std) in units of 0 to 255.

    Raises:
        ValueError: another name, means and deviations of different lengths, a deviation of 0.
    """
    if isinstance(normalization, str):
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
        return NORMALIZATIONS[normalization]
    mean, std, *bgr = normalization
    parsed = Normalization(tuple(map(float, mean)), tuple(map(float, std)), *bgr)
    if len(parsed.mean) != len(parsed.std) or not parsed.mean or 0 in parsed.std:
        raise ValueError(f"normalization must have as many deviations as means, none of them 0, got {parsed}")
    return parsed
