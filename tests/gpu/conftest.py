"""Tests that only a GPU can run; elsewhere each of them is skipped and says so."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent
for folder in (FOLDER, FOLDER.parent / "densecrf_cuda"):  # pytest's importlib mode leaves them out
    sys.path.insert(0, str(folder))
pytest.register_assert_rewrite("gpu_cases", "helpers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.cuda)


@pytest.fixture
def never_waiting() -> Callable[[], AbstractContextManager[None]]:
    """A context in which PyTorch raises wherever the host would wait for the GPU."""

    @contextmanager
    def guard() -> Iterator[None]:
        torch.cuda.synchronize()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mode is said to be a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guard
