"""When the host may wait for a GPU, and when it may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["is_capturing", "is_eager", "may_wait", "no_sync"]

_forbidden: ContextVar[bool] = ContextVar("densecrf_cuda_no_sync", default=False)


@contextmanager
def no_sync() -> Iterator[None]:
    """Within it nothing here waits for a GPU, on any device, in this thread.

    Without it the host waits in two cases, once each: the first time that a `Gaussian` of some size and bandwidth is
    used, to trim its lattice for the cache; and where the most vertices that a lattice can have would take more
    than 1 GiB an image, to build it again if the usual capacity did not do. Within it the cache is read but not
    filled, and a lattice that overflows is a fault like others: NaN in the result, a `ValueError` at the next call
    or at `check()`. Capturing a CUDA graph implies it.

    Example:
        >>> from densecrf_cuda import DenseCRF, Gaussian
        >>> with no_sync():
        ...     q = DenseCRF(2, [Gaussian(3)])(torch.zeros(2, 8, 8))
    """
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def is_capturing(device: torch.device) -> bool:
    """Whether what runs on the device becomes part of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def is_eager(device: torch.device) -> bool:
    """Whether code runs now, once: neither compiled nor captured."""
    return not torch.compiler.is_compiling() and not is_capturing(device)


def may_wait(device: torch.device) -> bool:
    """Whether a number may be read from the device. The CPU never makes anybody wait."""
    return is_eager(device) and (device.type == "cpu" or not _forbidden.get())
