"""The matrices that pydensecrf hands out, as NumPy arrays, which have the buffer protocol on every Python version."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MatrixXf", "VectorXf", "matrixXf", "vectorXf"]


class _EigenArray(np.ndarray):
    """A float32 array whose functions of NumPy return plain arrays; what they write to with `out=` stays what it is."""

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        return self if result is self else _plain(result)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        if array is self:
            return self
        return array[()] if return_scalar else _plain(array)


def _plain(result: Any) -> Any:
    return result.view(np.ndarray) if isinstance(result, _EigenArray) else result


class MatrixXf(_EigenArray):
    """A float32 matrix in Fortran order, as Eigen keeps it; made without arguments, it is empty.

    Example:
        >>> MatrixXf().shape
        (0, 0)
    """

    def __new__(cls) -> MatrixXf:
        return np.empty((0, 0), np.float32, order="F").view(cls)


class VectorXf(_EigenArray):
    """A float32 vector; made without arguments, it is empty.

    Example:
        >>> VectorXf().shape
        (0,)
    """

    def __new__(cls) -> VectorXf:
        return np.empty(0, np.float32).view(cls)


def vectorXf(arr: ArrayLike) -> VectorXf:
    """A copy of a vector.

    Args:
        arr: [n], float32.

    Returns:
        [n].

    Raises:
        ValueError: another number of dimensions or another dtype.
        TypeError: None.

    Example:
        >>> vectorXf(np.ones(3, np.float32)).shape
        (3,)
    """
    return _copy(arr, 1).view(VectorXf)


def matrixXf(arr: ArrayLike) -> MatrixXf:
    """A copy of a matrix.

    Args:
        arr: [n, m], float32.

    Returns:
        [n, m], in Fortran order.

    Raises:
        ValueError: another number of dimensions or another dtype.
        TypeError: None.

    Example:
        >>> matrixXf(np.ones((3, 2), np.float32)).strides
        (4, 12)
    """
    return _copy(arr, 2).view(MatrixXf)


def _copy(arr: ArrayLike, ndim: int) -> NDArray[np.float32]:
    # No other dtype is converted: these two say that a buffer of float is wanted, and programs test for the error.
    if arr is None:
        raise TypeError("arr must be an array of float32, got None")
    array = np.asarray(arr)
    if array.ndim != ndim:
        raise ValueError(f"arr must have {ndim} dimensions, got shape {array.shape}")
    if array.dtype != np.float32:
        raise ValueError(f"arr must be float32, got {array.dtype}")
    return np.array(array, np.float32, order="F")
