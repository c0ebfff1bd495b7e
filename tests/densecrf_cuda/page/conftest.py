"""Makes `browser_page` importable."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the folder of a test out of it
pytest.register_assert_rewrite("browser_page")
