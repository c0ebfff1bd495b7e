"""The CUDA kernels on the CPU: while they are enabled, CPU tensors meet them instead of the kernels of the CPU."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

from build_emulator import build

from densecrf_cuda import _library

FIRST_SEED = int(os.environ.get("DENSECRF_EMULATOR_SEED", "1"))


@functools.cache
def load() -> ctypes.CDLL:
    """The library, built where needed; ``DENSECRF_EMULATOR_LIBRARY`` names another one."""
    library = ctypes.CDLL(os.environ.get("DENSECRF_EMULATOR_LIBRARY") or str(build()))
    library.densecrf_emulator_enable.argtypes = [ctypes.c_int]
    library.densecrf_emulator_seed.argtypes = [ctypes.c_uint64]
    library.densecrf_emulator_switches.restype = ctypes.c_uint64
    for name in ("enable", "seed"):
        getattr(library, f"densecrf_emulator_{name}").restype = None
    return library


@contextmanager
def enabled(seed: int = FIRST_SEED) -> Iterator[None]:
    """Let the emulated kernels run, in the order of threads and blocks that follows from the seed."""
    library = load()
    library.densecrf_emulator_seed(seed)
    library.densecrf_emulator_enable(1)
    _library.SPLAT_PLAN_DEVICES.add("cpu")
    try:
        yield
    finally:
        _library.SPLAT_PLAN_DEVICES.discard("cpu")
        library.densecrf_emulator_enable(0)
