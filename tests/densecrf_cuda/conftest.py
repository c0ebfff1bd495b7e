"""Makes `helpers` importable, and gives back what a test changes of torch's state."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the folder of a test out of it
pytest.register_assert_rewrite("helpers", "oracles")


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Leaves torch with as many threads as before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
