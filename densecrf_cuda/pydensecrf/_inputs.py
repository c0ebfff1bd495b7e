"""What programs hand to pydensecrf, checked and brought to one form: arrays and tensors of any kind, numbers, names."""

from __future__ import annotations

import os
from enum import IntEnum
from numbers import Number
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._library import build_facts
from ..bandwidths import expanded, parse_bandwidth
from ..compatibility import parse_compat
from .eigen import MatrixXf

__all__ = [
    "as_array",
    "check_type",
    "read_compat",
    "read_device",
    "read_enum",
    "read_image",
    "read_integer",
    "read_marginals",
    "read_matrix",
    "read_widths",
]

DEVICE_VARIABLE = "DENSECRF_DEVICE"

Member = TypeVar("Member", bound=IntEnum)


def as_array(name: str, value: Any) -> NDArray[Any]:
    """The numbers of an array, a tensor on any device, or a list, as they lie in memory where that is possible.

    Raises:
        TypeError: what are not real numbers.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise TypeError(f"{name} must be an array of numbers, got {value!r}") from error
    if array.dtype.kind not in "buif":
        got = f"{array.dtype}" if array.ndim else repr(value)
        raise TypeError(f"{name} must be an array of numbers, got {got}")
    return array


def _copied(array: NDArray[Any], dtype: type[np.generic] = np.float32) -> Tensor:
    """A C-contiguous copy: what the program does to its array later changes nothing here."""
    return torch.from_numpy(np.array(array, dtype, order="C"))


def read_matrix(name: str, value: Any, shape: tuple[int | None, int | None]) -> Tensor:
    """A float32 copy of a matrix whose shape is known, but for the None in it.

    Raises:
        ValueError: another shape. Of an energy or of features [rows, N] that are still pictures it says what to do.
    """
    array = as_array(name, value)
    if array.ndim != 2 or any(want not in (None, got) for want, got in zip(shape, array.shape)):
        wanted = ", ".join("?" if size is None else str(size) for size in shape)
        hint = ""
        if array.ndim == 2 and array.shape[0] == shape[1] and shape[0] in (None, array.shape[1]):
            hint = ": it looks transposed"
        elif array.ndim > 2 and array[0].size == shape[1]:
            hint = f": flatten it with reshape({array.shape[0]}, -1)"
        raise ValueError(f"Bad shape for {name} (Need ({wanted}), got {array.shape}){hint}")
    return _copied(array)


def read_marginals(Q: Any, shape: tuple[int, int]) -> Tensor:
    """The numbers [C, N] of a matrix, not copied.

    Raises:
        ValueError: another shape or dtype; NaN or infinity.
        TypeError: not a MatrixXf.
    """
    check_type("Q", Q, MatrixXf)
    if Q.shape != shape or Q.dtype != np.float32:
        raise ValueError(f"Q must be float32 of shape {shape}, got {Q.dtype} of shape {Q.shape}")
    q = torch.from_numpy(np.asarray(Q))
    if not q.isfinite().all():
        raise ValueError(f"Q must be finite, got {q[~q.isfinite()][0].item()}")
    return q


def check_type(name: str, value: Any, wanted: type) -> None:
    """Refuse what is not an instance of a class."""
    if not isinstance(value, wanted):
        raise TypeError(f"{name} must be of class {wanted.__name__}, got {type(value).__name__}")


def read_compat(compat: Any, labels: int) -> Tensor:
    """A compatibility, [], [C] or [C, C], float32; a matrix is made symmetric, as pydensecrf does."""
    array = as_array("compat", compat)
    tensor = parse_compat(torch.from_numpy(np.array(array, np.float64)), labels).float()
    return (tensor + tensor.mT) / 2 if tensor.dim() == 2 else tensor


def read_image(image: Any, height: int, width: int) -> Tensor:
    """Channels [3, H*W] of a picture [H, W, 3], uint8 as it came, else float32.

    Raises:
        ValueError: another shape.
    """
    array = as_array("rgbim", image)
    if array.ndim != 3 or array.shape[:2] != (height, width):
        hint = ""
        if array.shape[:2] == (width, height):
            hint = ": width and height look swapped, DenseCRF2D takes the width first"
        elif array.shape == (3, height, width):
            hint = ": the channels look like the first axis, use transpose(1, 2, 0)"
        raise ValueError(f"Bad shape for pairwise bilateral (Need {(height, width, 3)}, got {array.shape}){hint}")
    if array.shape[2] != 3:
        raise ValueError(
            f"addPairwiseBilateral takes pictures of three channels, got {array.shape[2]}: for others, make features "
            "with utils.create_pairwise_bilateral and add them with addPairwiseEnergy"
        )
    dtype = np.uint8 if array.dtype == np.uint8 else np.float32
    return _copied(array.transpose(2, 0, 1).reshape(3, -1), dtype)


def read_widths(name: str, value: Any, count: int) -> tuple[float, ...]:
    """Bandwidths of `count` dimensions, > 0, from a number or one for each."""
    return expanded(name, parse_bandwidth(name, as_array(name, value).tolist()), count)


def read_integer(name: str, value: Any, least: int | None = None) -> int:
    """A number cut to an integer, as pydensecrf cuts it."""
    if not isinstance(value, Number) or isinstance(value, complex):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value)  # type: ignore[call-overload]
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(number)


def read_enum(name: str, kind: type[Member], value: Any) -> Member:
    """A member of an enumeration, from itself or from its number."""
    number = read_integer(name, value)
    if number not in list(kind):
        raise ValueError(f"{name} must be one of {', '.join(member.name for member in kind)}, got {value!r}")
    return kind(number)


def read_device(device: str | torch.device | None) -> torch.device:
    """The device that is named by the argument, else by the environment, else the CPU.

    Raises:
        ValueError: a name that is not that of a CPU or CUDA device.
        RuntimeError: a device that cannot be used here.
    """
    name = os.environ.get(DEVICE_VARIABLE) or "cpu" if device is None else device
    try:
        parsed = torch.device(name)
    except (RuntimeError, TypeError):
        parsed = torch.device("meta")
    if parsed.type not in ("cpu", "cuda"):
        source = "device" if device is not None else DEVICE_VARIABLE
        raise ValueError(f"{source} must be 'cpu', 'cuda' or 'cuda:<number>', got {str(name)!r}")
    if parsed.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"device {str(name)!r} is not available: torch finds no GPU that it can use")
        if (parsed.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"device {str(name)!r} is not available: there are {torch.cuda.device_count()} GPUs")
        build = build_facts()
        if build is not None and not build.cuda_kernels:
            raise RuntimeError(f"device {str(name)!r} is not available: the compiled library has no CUDA kernels")
    return parsed
