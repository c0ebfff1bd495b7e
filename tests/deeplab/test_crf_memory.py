"""A training step of a whole network with the CRF inside fits into the memory of a usual machine."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("resource", reason="only Unix tells how much memory a process took")

GIB = 1024  # MiB


@pytest.mark.slow
def test_a_training_step_fits(record_property: pytest.RecordProperty) -> None:
    script = Path(__file__).with_name("training_step.py")
    command = [sys.executable, str(script), "513", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    numbers = dict(re.findall(r"(\w+) ([-+.\w]+)", done.stdout))
    record_property("peak_mib", numbers["peak"])
    assert math.isfinite(float(numbers["loss"]))
    assert float(numbers["network"]) > 0 and float(numbers["CRF"]) > 0
    assert float(numbers["peak"]) < 24 * GIB
