"""Every model by name, for the command line and for configuration files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .deeplabv1 import VARIANTS, deeplabv1
from .deeplabv2 import RATES, deeplabv2
from .deeplabv3 import deeplabv3
from .deeplabv3plus import deeplabv3plus
from .families import BACKBONES
from .multi_scale import MultiScale

__all__ = ["create_model", "list_models"]


def _multi_scale(**options: Any) -> nn.Module:
    return MultiScale(deeplabv2(**options))


_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    **{f"deeplabv1_{variant}": partial(deeplabv1, variant=variant) for variant in VARIANTS},
    **{f"deeplabv1_{variant}_msc": partial(deeplabv1, variant=variant, multi_scale=True) for variant in VARIANTS},
    **{
        f"deeplabv2_{backbone}_{aspp.lower()}{suffix}": partial(make, backbone=backbone, aspp=aspp)
        for backbone in ("vgg16", "resnet101")
        for aspp in RATES
        for suffix, make in (("", deeplabv2), ("_msc", _multi_scale))
    },
    **{f"deeplabv3_{backbone}": partial(deeplabv3, backbone=backbone) for backbone in BACKBONES},
    **{f"deeplabv3plus_{backbone}": partial(deeplabv3plus, backbone=backbone) for backbone in BACKBONES},
}


def list_models(family: str = "") -> list[str]:
    """The names of all models, in the order in which they were published.

    Args:
        family: what the names begin with: "deeplabv1", "deeplabv2", "deeplabv3_" or "deeplabv3plus".

    Example:
        >>> import deeplab
        >>> deeplab.list_models("deeplabv1")[:4]
        ['deeplabv1_7x7', 'deeplabv1_4x4', 'deeplabv1_4x4-r8', 'deeplabv1_largefov']
    """
    return [name for name in _FACTORIES if name.startswith(family)]


def create_model(name: str, **options: Any) -> nn.Module:
    """Make a model by its name.

    Args:
        name: one of `list_models()`.
        options: arguments of its factory, `deeplabv1`, `deeplabv2`, `deeplabv3` or `deeplabv3plus`.

    Raises:
        ValueError: a name that no model has, or as the factory.
        TypeError: an option that the factory does not have.

    Example:
        >>> import torch
        >>> import deeplab
        >>> with torch.device("meta"):
        ...     model = deeplab.create_model("deeplabv3plus_xception65", num_classes=19)
        >>> sum(parameter.numel() for parameter in model.parameters())
        41054899
    """
    if name not in _FACTORIES:
        near = [known for known in _FACTORIES if known.startswith(str(name).split("_")[0])] or list(_FACTORIES)
        raise ValueError(f"name must be that of a model, for instance {', '.join(near[:9])}, got {name!r}")
    return _FACTORIES[name](**options)
