"""Makes `helpers` importable, and gives back what a test changes of torch's state."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the folder of a test out of it
pytest.register_assert_rewrite("convolutions", "helpers", "oracles")


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Leaves torch with as many threads as before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def project_gradients(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the emulator, gradcheck compares random projections of the Jacobians instead of every entry.

    An entry costs two evaluations, and the emulator takes milliseconds for each kernel; the kernels of the CPU, against
    which those of CUDA are tested by value, have every entry checked.
    """
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("rung") == "cuda-emulated":
        for name in ("gradcheck", "gradgradcheck"):
            check = getattr(torch.autograd, name)
            monkeypatch.setattr(torch.autograd, name, functools.partial(check, fast_mode=True))
