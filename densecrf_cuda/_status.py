"""What only the data can show, found by kernels that nobody waits for: the Python twin of csrc/status.h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["DeviceStatus", "describe"]

_FAULT_SHIFT, _DIMENSION_BITS, _POINT_BITS = 56, 6, 40


def _place(point: int, points: int) -> str:
    return f"point {point % points} of image {point // points}" if points else f"point {point}"


def _feature(place: int, points: int) -> tuple[int, str]:
    """Dimension and point of a fault of the features."""
    return place & ((1 << _DIMENSION_BITS) - 1), _place(place >> _DIMENSION_BITS, points)


def _bandwidth(place: int, points: int, bandwidths: Tensor | None) -> str:
    dimension, _ = _feature(place, points)
    value = "another value" if bandwidths is None else f"{bandwidths[dimension].item():g}"
    return f"bandwidths must be positive and finite, got {value} in dimension {dimension}"


def _not_finite(place: int, points: int, _: Tensor | None) -> str:
    dimension, point = _feature(place, points)
    return f"features must be finite, got NaN or infinity in dimension {dimension} of {point}"


def _key_range(place: int, points: int, bandwidths: Tensor | None) -> str:
    dimension, point = _feature(place, points)
    width = "its bandwidth" if bandwidths is None else f"bandwidth {bandwidths[dimension].item():g}"
    return (
        f"key coordinates must stay below 2^20 in magnitude, but feature dimension {dimension} / {width} is too large "
        f"at {point}: use a larger bandwidth"
    )


def _capacity(place: int, _: int, __: Tensor | None) -> str:
    return f"the lattice has {place} vertices, more than its capacity"


def _unary(place: int, points: int, _: Tensor | None) -> str:
    point = _place(place & ((1 << _POINT_BITS) - 1), points)
    return f"unary must not be NaN or -infinity, and must allow at least one label, at {point}"


def _overflow(place: int, points: int, _: Tensor | None) -> str:
    iteration, point = place >> _POINT_BITS, _place(place & ((1 << _POINT_BITS) - 1), points)
    return f"the energies overflow in iteration {iteration} at {point}: compat or unary is too large"


_DESCRIPTIONS: dict[int, Callable[[int, int, Tensor | None], str]] = {
    1: _bandwidth,
    2: _not_finite,
    3: _key_range,
    4: _capacity,
    5: _unary,
    6: _overflow,
}


_OF_THE_UPDATE = (5, 6)


def describe(word: int, *, points: int, bandwidths: Tensor | None = None, image: int = 0) -> str:
    """Say what a fault word means, naming the rule and the place.

    Args:
        word: a fault word of csrc/status.h.
        points: N, points of one image.
        bandwidths: [d] that the lattice was built with, to name the one at fault.
        image: where in a status [B] the word stands. Faults of the update count points from there; those of a lattice,
            which may have a batch of its own, from the first image.

    Example:
        >>> describe((5 << 56) + 3, points=20, image=1)
        'unary must not be NaN or -infinity, and must allow at least one label, at point 3 of image 1'
    """
    fault, place = word >> _FAULT_SHIFT, word & ((1 << _FAULT_SHIFT) - 1)
    if fault in _OF_THE_UPDATE:
        place += image * points
    if fault not in _DESCRIPTIONS:
        return f"the device reports an unknown fault, {word:#x}"
    return _DESCRIPTIONS[fault](place, points, bandwidths)


class _Copy(NamedTuple):
    """Words on their way from the device."""

    words: Tensor  # in pinned memory
    arrived: torch.cuda.Event
    points: int
    bandwidths: Tensor | None


class DeviceStatus:
    """Collects what devices report about the calls of one object, and raises it without making them wait.

    Example:
        >>> status = DeviceStatus()
        >>> status.watch(torch.zeros(2, dtype=torch.int64), points=20)
        >>> status.check()
    """

    def __init__(self) -> None:
        self._copies: list[_Copy] = []

    def watch(self, words: Tensor, points: int, bandwidths: Tensor | None = None) -> None:
        """Take note of a status [B], or of the number of vertices [] of a lattice.

        On a GPU the words are copied while the kernels run, to be read by a later call; not while a graph is captured
        or compiled, which would keep the copy but not the reading of it.

        Args:
            words: int64; no word of a fault, or minus such a word, is a number below 2**56.
            points: N, points of one image.
            bandwidths: [d], for the message.

        Raises:
            ValueError: the fault, where the words are on the CPU.
        """
        if torch.compiler.is_compiling() or words.device.type == "meta":
            return
        if words.device.type != "cuda":
            _raise_fault(words, points, bandwidths)
            return
        with torch.cuda.device(words.device):
            if torch.cuda.is_current_stream_capturing():
                return
            copy = torch.empty(words.shape, dtype=words.dtype, pin_memory=True)
            copy.copy_(words.detach(), non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._copies.append(_Copy(copy, arrived, points, bandwidths))

    def raise_if_known(self) -> None:
        """Raise the first fault among the words that have arrived; never waits.

        Raises:
            ValueError: the fault; everything noted so far is forgotten.
        """
        if torch.compiler.is_compiling() or not self._copies or torch.cuda.is_current_stream_capturing():
            return
        while self._copies and self._copies[0].arrived.query():
            self._read_first()

    def check(self) -> None:
        """Wait for all words, and raise the first fault among them.

        Raises:
            ValueError: the fault; everything noted so far is forgotten.
        """
        while self._copies:
            self._copies[0].arrived.synchronize()
            self._read_first()

    def _read_first(self) -> None:
        copy = self._copies[0]
        try:
            _raise_fault(copy.words, copy.points, copy.bandwidths)
        except ValueError:
            self._copies.clear()
            raise
        del self._copies[0]

    def __reduce__(self) -> tuple[Any, ...]:
        # Events belong to one process, and what is under way to the calls of one object: a copy starts anew.
        return DeviceStatus, ()


def _raise_fault(words: Tensor, points: int, bandwidths: Tensor | None) -> None:
    for image, word in enumerate(words.reshape(-1).abs().tolist()):
        if word >> _FAULT_SHIFT:
            raise ValueError(describe(word, points=points, bandwidths=bandwidths, image=image))
