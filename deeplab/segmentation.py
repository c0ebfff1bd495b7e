"""The module that every DeepLab is: a backbone, a classifier of its features, logits at the size of the image."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .backbone import Backbone

__all__ = ["DeepLab"]


class DeepLab(nn.Module):
    """Per-pixel logits of images.

    Args:
        backbone: images to feature maps by name.
        classifier: the feature maps to logits, with `set_output_stride`.
        aux_classifier: of the map "aux", for a loss in training; with it `forward` gives a dict.
        align_corners: of the bilinear resizing to the image: True as in TensorFlow, False as in torchvision.

    Example:
        >>> import torch
        >>> import deeplab
        >>> model = deeplab.deeplabv3plus(backbone="mobilenet_v2").eval()
        >>> model(torch.zeros(1, 3, 65, 97)).shape
        torch.Size([1, 21, 65, 97])
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: Any,
        aux_classifier: nn.Module | None = None,
        *,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.classifier, self.aux_classifier = backbone, classifier, aux_classifier
        self.align_corners = align_corners
        self._frozen_norms = False

    def forward(self, input: Tensor) -> Any:
        """Classify every pixel.

        Args:
            input: images [B, 3, H, W], normalised as for the weights, of any size from 33 × 33.

        Returns:
            logits [B, num_classes, H, W]; with an auxiliary classifier a dict of them under "out" and "aux".

        Raises:
            ValueError: another shape; BatchNorm in training with one value per channel, which image pooling has for
                B = 1.
        """
        if input.ndim != 4 or input.shape[1] != 3:
            raise ValueError(f"input must be [B, 3, H, W], got {tuple(input.shape)}")
        features = self.backbone(input)
        out = self._resize(self.classifier(features), input)
        if self.aux_classifier is None:
            return out
        return {"out": out, "aux": self._resize(self.aux_classifier(features["aux"]), input)}

    def _resize(self, logits: Tensor, input: Tensor) -> Tensor:
        return F.interpolate(logits, input.shape[-2:], mode="bilinear", align_corners=self.align_corners)

    @property
    def output_stride(self) -> int:
        """Of the features that the pyramid reads."""
        return self.backbone.output_stride

    def set_output_stride(self, output_stride: int) -> None:
        """Compute denser or coarser features with the same parameters, dilations of the pyramid scaled along.

        Args:
            output_stride: 8, 16 or 32. The papers train at 16 and evaluate at 8.

        Raises:
            ValueError: another stride, or dilations of the pyramid that would be no whole numbers.

        Example:
            >>> import deeplab
            >>> model = deeplab.deeplabv3plus(backbone="mobilenet_v2", output_stride=16)
            >>> model.set_output_stride(8)
            >>> model.output_stride
            8
        """
        before = self.output_stride
        self.backbone.set_output_stride(output_stride)
        try:
            self.classifier.set_output_stride(output_stride)
        except ValueError:
            self.backbone.set_output_stride(before)
            raise

    def freeze_batch_norm(self, freeze: bool = True) -> DeepLab:
        """Keep BatchNorm at its running statistics in training too, its weight and bias without gradients.

        That is how the second stage of the papers' training runs, and any with few images per batch.

        Args:
            freeze: False makes BatchNorm train again.

        Returns:
            the model.

        Example:
            >>> import deeplab
            >>> model = deeplab.deeplabv3plus(backbone="mobilenet_v2").freeze_batch_norm().train()
            >>> any(norm.training for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
            False
        """
        self._frozen_norms = freeze
        for norm in self._norms():
            norm.requires_grad_(not freeze)
        return self.train(self.training)

    def train(self, mode: bool = True) -> DeepLab:
        """Training mode, in which a frozen BatchNorm stays as in evaluation."""
        super().train(mode)
        if self._frozen_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]
