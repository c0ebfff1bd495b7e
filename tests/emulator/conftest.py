"""Makes `helpers` importable, as beside the tests of the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "densecrf_cuda"))
pytest.register_assert_rewrite("helpers")
