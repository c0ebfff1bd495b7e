"""The benchmark of the separable convolution on a GPU runs, and without a GPU says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("skimage", reason="the benchmarks need scikit-image")

SCRIPT = Path(__file__).parent.parent / "benchmarks/gpu/bench_separable_conv_gpu.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600)


def test_is_skipped_without_a_gpu() -> None:
    result = run(CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("SKIPPED: ")


def test_can_be_tried_out_on_the_cpu() -> None:
    result = run("--device", "cpu", "--small", "--repeat", "5", "--batch", "2")
    assert result.returncode == 0, result.stderr
    # two types, two convolutions each, a line and a row for each; the sides agree, or the run would have ended
    assert result.stdout.count("16>8, 9>9, d4") == result.stdout.count("24>40, 8>4, d1") == 4
    assert "only a trial: nothing written" in result.stdout
