"""What tests of networks share: parameters and statistics with which no layer is trivial."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def randomised(model: Module, seed: int = 0) -> Module:
    """The model in evaluation, with convolutions that keep a signal's variance and BatchNorms that are not all alike.

    Initialisations that count on the statistics of a batch let a signal die out in evaluation, and with it what a test
    could see.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))
    return model.eval()


def on_meta(factory: Any, **settings: Any) -> nn.Module:
    """A model without memory, for counting."""
    with torch.device("meta"):
        return factory(**settings).eval()


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise of a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def distance(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest value: single values of a map may be small by cancellation."""
    assert result.shape == expected.shape
    return float((result - expected).abs().max() / expected.abs().max())
