"""Groups of parameters with learning rates and weight decay of their own, as DeepLabs are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["parameter_groups"]

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    multipliers: Mapping[str, float] | None = None,
    bias: float = 1.0,
    weight_decay: float = 0.0,
    decay_depthwise: bool = True,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: the learning rate times the multiplier of a part of the model, and that of biases.

    Biases and the parameters of norms have no weight decay. Parameters that need no gradient are left out.

    | recipe | lr | multipliers | bias | weight_decay | decay_depthwise |
    |---|---|---|---|---|---|
    | v2, Caffe | 2.5e-4 | classifier 10 | 2 | 5e-4 | |
    | v3, torchvision | 0.02 | aux_classifier 10 | 1 | 1e-4 | |
    | v3+, TensorFlow | 0.007 | | 1 | 4e-5, ResNet 1e-4 | False |

    Args:
        model: any module.
        lr: > 0, where a multiplier is 1.
        multipliers: of parts of the model by their names, for instance {"classifier": 10}; the longest name that a
            parameter's begins with decides, and 1 where none does.
        bias: multiplier of biases of convolutions, on top of that of their part.
        weight_decay: ≥ 0, of the other weights.
        decay_depthwise: whether that holds for depthwise kernels.

    Returns:
        dicts with "name", "params", "lr" and "weight_decay", none of them without parameters.

    Raises:
        ValueError: lr ≤ 0, a negative multiplier or weight decay, a part that the model does not have.

    Example:
        >>> import deeplab
        >>> model = deeplab.deeplabv3plus(backbone="mobilenet_v2")
        >>> groups = deeplab.parameter_groups(model, 0.007, multipliers={"classifier": 10}, weight_decay=4e-5)
        >>> for group in groups[-2:]:
        ...     print(group["name"], round(group["lr"], 3), group["weight_decay"])
        classifier depthwise 0.07 4e-05
        classifier bias 0.07 0.0
    """
    parts = dict(multipliers or {})
    if not lr > 0:
        raise ValueError(f"lr must be > 0, got {lr}")
    for name, value in {**parts, "bias": bias, "weight_decay": weight_decay}.items():
        if not value >= 0:
            raise ValueError(f"multipliers and weight_decay must be ≥ 0, got {value} for {name}")
    missing = parts.keys() - {name for name, _ in model.named_modules()}
    if missing:
        raise ValueError(f"multipliers must name parts of the model, which has no {', '.join(sorted(missing))}")
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, kind, parameter in _trained(model):
        part = max((part for part in parts if f"{name}.".startswith(f"{part}.")), key=len, default="")
        decays = kind == "weight" or (kind == "depthwise" and decay_depthwise)
        group = groups.setdefault(
            (part, kind),
            {
                "name": f"{part} {kind}".strip(),
                "params": [],
                "lr": lr * parts.get(part, 1.0) * (bias if kind == "bias" else 1.0),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _trained(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Name, kind and value of every parameter that is trained, each once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}", _kind(module, name), parameter


def _kind(module: nn.Module, name: str) -> str:
    if isinstance(module, NORMS):
        return "norm"
    if name == "bias":
        return "bias"
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    return "depthwise" if depthwise else "weight"
