"""fuse: replaces the depthwise-separable convolutions of any network by `AtrousSeparableConv2d`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from .chains import Slot, find_chains, runs
from .folding import is_frozen_batch_norm
from .separable_conv import AtrousSeparableConv2d

__all__ = ["fuse"]


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Run the depthwise-separable convolutions of a network as one operator each, with the same results.

    Found wherever these modules run straight after one another, each optional where the brackets say so:

        [ReLU or ReLU6 that is not in place], depthwise convolution, [BatchNorm2d], [ReLU or ReLU6],
        pointwise convolution, [BatchNorm2d], [ReLU or ReLU6]

    in an `nn.Sequential` (also across nested ones, as in torchvision's MobileNetV2, and in MobileNetV3 where a block
    has no squeeze-and-excitation and a ReLU), and in any module whose forward calls its children one after another, as
    `torch.fx` sees it (the separable convolutions of timm's Xception, for instance). `nn.SyncBatchNorm` and
    FrozenBatchNorm2d count as BatchNorm2d, `nn.Identity` as nothing.

    Left as they are: modules with hooks, parametrizations or weight norm, modules that are used in two places, those
    of subclasses, padding other than with zeros, kernels other than 1, 3, 5 and 7, strides above 2, functions between
    the modules, and forwards that ask for the type of their input or cannot be traced. Code that is not seen, which
    reads what a module between the two convolutions returns, would find the end result there.

    Each convolution found takes the place of its depthwise convolution and shares all modules with it; the places of
    the others hold `nn.Identity`. So an optimizer goes on with the same parameters, and keys of the state dict become
    those of `AtrousSeparableConv2d`: load checkpoints of the network before fusing it. Training goes on, too.

    Args:
        model: the network.
        inplace: change it, instead of a deep copy.

    Returns:
        the network.

    Raises:
        TypeError: model is no module.

    Example:
        >>> block = nn.Sequential(
        ...     nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1)
        ... )
        >>> fuse(block)
        Sequential(
          (0): AtrousSeparableConv2d(
            pre_activation='none', depthwise_activation='relu6', activation='none'
            (depthwise): Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8)
            (depthwise_bn): BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
            (pointwise): Conv2d(8, 4, kernel_size=(1, 1), stride=(1, 1))
          )
          (1): Identity()
          (2): Identity()
          (3): Identity()
        )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {model!r}")
    if not inplace:
        model = copy.deepcopy(model)
    for chain in find_chains(model, _is_leaf, _is_depthwise):
        _fuse_chain([slot for slot in chain if type(slot.module) is not nn.Identity])
    return model


def _is_leaf(module: nn.Module) -> bool:
    return not module._modules or isinstance(module, AtrousSeparableConv2d)


def _is_depthwise(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.groups == module.in_channels


def _is_pointwise(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.groups == 1


def _is_norm(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) or is_frozen_batch_norm(module)


def _is_activation(module: nn.Module) -> bool:
    return type(module) in (nn.ReLU, nn.ReLU6)


# What follows a depthwise convolution: all but the pointwise one may be missing.
PATTERN: tuple[Callable[[nn.Module], bool], ...] = (_is_norm, _is_activation, _is_pointwise, _is_norm, _is_activation)


def _fuse_chain(chain: list[Slot]) -> None:
    end = 0  # of what has been replaced
    for start in range(len(chain)):
        if start < end or not _is_depthwise(chain[start].module):
            continue
        parts = _following(chain[start + 1 :])
        if parts is None:
            continue
        before = chain[start - 1] if start > end and _is_pre_activation(chain[start - 1], chain[start]) else None
        slots = [chain[start], *parts]
        modules: list[Any] = [None if slot is None else slot.module for slot in slots]
        try:
            pre_activation = None if before is None else before.module
            fused = AtrousSeparableConv2d.from_modules(*modules, pre_activation=pre_activation)
        except (TypeError, ValueError):  # no convolution of this kind
            continue
        present = [slot for slot in (*slots, before) if slot is not None]
        if _replace(present, fused):
            end = start + len(present) - (before is not None)


def _replace(slots: list[Slot], fused: AtrousSeparableConv2d) -> bool:
    """Put the module in the first slot and nothing into the others, unless a forward reads more of what was there."""
    originals = [slot.module for slot in slots]
    for slot, original in zip(slots, originals):
        slot.replace(fused if slot is slots[0] else nn.Identity().train(original.training))
    if all(runs(slot.parent) for slot in slots):
        return True
    for slot, original in zip(slots, originals):
        slot.replace(original)
    return False


def _following(chain: list[Slot]) -> list[Slot | None] | None:
    """The slots of norm, activation, pointwise convolution, norm and activation, or None without the convolution."""
    parts: list[Slot | None] = []
    for accepts in PATTERN:
        present = len(chain) > 0 and accepts(chain[0].module)
        if accepts is _is_pointwise and not present:
            return None
        parts.append(chain[0] if present else None)
        chain = chain[present:]
    return parts


def _is_pre_activation(slot: Slot, depthwise: Slot) -> bool:
    # In place it changes what others may read too; in another module, what that module returns.
    return _is_activation(slot.module) and not slot.module.inplace and slot.parent is depthwise.parent
