"""Bandwidths: numbers as users state them, and the tensors on any device that are made of them without waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Bandwidth", "Numbers", "bandwidth_tensor", "expanded", "filled", "moved", "parse_bandwidth"]

Bandwidth = float | Sequence[float] | Tensor
Numbers = float | tuple[float, ...]


def parse_bandwidth(name: str, bandwidth: Bandwidth) -> Numbers:
    """A bandwidth as one number, or one per dimension; positive and finite. A tensor on a GPU is waited for.

    Example:
        >>> parse_bandwidth("sxy", [3, 5])
        (3.0, 5.0)
    """
    numbers = _numbers(name, bandwidth)
    if not torch.compiler.is_compiling():  # there lattice_build checks it, when it runs
        for value in numbers if isinstance(numbers, tuple) else (numbers,):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
    return numbers


def bandwidth_tensor(
    name: str, bandwidth: Bandwidth, count: int, dtype: torch.dtype, device: torch.device, *, wanted: str | None = None
) -> Tensor:
    """The bandwidth of each of `count` dimensions on a device, without waiting for it.

    `wanted` says for an error what would do, beside a number.

    Raises:
        ValueError: another number of dimensions; what is not positive and finite, except in a tensor on a GPU, which
            reports that through the lattice.
    """
    if not isinstance(bandwidth, Tensor) or (bandwidth.device.type == "cpu" and not torch.compiler.is_compiling()):
        return filled(expanded(name, parse_bandwidth(name, bandwidth), count, wanted=wanted), dtype, device)
    _check_count(name, bandwidth.shape[0] if bandwidth.dim() else count, count, wanted)
    return moved(bandwidth.detach(), dtype, device).expand(count)


def expanded(name: str, numbers: Numbers, count: int, *, wanted: str | None = None) -> tuple[float, ...]:
    """One number for each of `count` dimensions."""
    if not isinstance(numbers, tuple):
        return (numbers,) * count
    _check_count(name, len(numbers), count, wanted)
    return numbers


def _check_count(name: str, got: int, count: int, wanted: str | None) -> None:
    if got != count:
        wanted = wanted or f"{count} numbers, one per dimension"
        raise ValueError(f"{name} must be a number or {wanted}, got {got}")


def filled(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor of numbers, written by kernels of the device: a copy from the host could make it wait.

    Example:
        >>> filled((3.0, 5.0), torch.float32, torch.device("cpu"))
        tensor([3., 5.])
    """
    if not numbers or all(number == numbers[0] for number in numbers):
        return torch.full((len(numbers),), numbers[0] if numbers else 1.0, dtype=dtype, device=device)
    return torch.cat([torch.full((1,), number, dtype=dtype, device=device) for number in numbers])


def moved(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor in another dtype, where another one needs it; to a GPU without waiting, from a GPU not without."""
    return tensor.to(device=device, dtype=dtype, non_blocking=device.type == "cuda")


def _numbers(name: str, bandwidth: Bandwidth) -> Numbers:
    if isinstance(bandwidth, (int, float)):
        return float(bandwidth)
    if isinstance(bandwidth, (list, tuple)) and bandwidth and all(isinstance(b, (int, float)) for b in bandwidth):
        return tuple(float(b) for b in bandwidth)
    try:
        tensor = torch.as_tensor(bandwidth, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or one number per dimension, got {bandwidth!r}") from error
    if tensor.dim() > 1 or tensor.numel() == 0:
        raise ValueError(f"{name} must be a number or one number per dimension, got shape {tuple(tensor.shape)}")
    return tuple(tensor.tolist()) if tensor.dim() == 1 else float(tensor)
