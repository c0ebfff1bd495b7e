"""Makes `commands` importable, and skips what needs the packages of the command line where they are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for package in ("typer", "tqdm", "PIL"):
    pytest.importorskip(package, reason='the command line is not installed: pip install "densecrf_cuda[cli]"')

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the folder of a test out of it
pytest.register_assert_rewrite("commands")
