"""Makes `networks` importable, and skips the folder where torchvision is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason="torchvision is not installed")
sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the folder of a test out of it
