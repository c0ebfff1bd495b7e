"""Faults planted in the depthwise kernels are found by their test on the emulator."""

from __future__ import annotations

import build_emulator
import pytest
from build_emulator import ROOT, Mutation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build_emulator.compiler_is_missing(), reason="the emulator is compiled with g++"),
]

TEST = ROOT / "tests/csrc/test_cuda_depthwise.cpp"
KERNELS = ["depthwise.cu", "depthwise_weight_gradient.cu", "depthwise_moments.cu"]

FORWARD, WEIGHT_GRADIENT, MOMENTS = (f"cuda/{name}" for name in KERNELS)
GATHER, STRIP, PACKETS = "cuda/depthwise_gather.h", "cuda/depthwise_strip.cuh", "cuda/packets.cuh"
MUTANTS = {
    "no barrier before weights are read": Mutation(
        FORWARD, "  __syncthreads();\n  if (strip.count == 0) return;", "  if (strip.count == 0) return;"
    ),
    "a pixel behind the last one": Mutation(
        STRIP,
        "static_cast<unsigned>(position) < static_cast<unsigned>(axis.end)",
        "static_cast<unsigned>(position) <= static_cast<unsigned>(axis.end)",
    ),
    "strips that are never shorter": Mutation(STRIP, "min(of_class, R)", "R"),
    "positions between pixels": Mutation(STRIP, "(axis.divisor == 1 || position % 2 == 0)", "true"),
    "the adjoint with its taps forwards": Mutation(STRIP, "gather.backwards ? taps - 1 - from : from", "from"),
    "the first tap instead of the live one": Mutation(GATHER, "axis.origin += first * dilation;", ""),
    "the last row of tiles left out": Mutation(
        GATHER, "static_cast<int>(ceil_div(rows, tiles.rows))", "static_cast<int>(rows / tiles.rows)"
    ),
    "relu6 without its upper end": Mutation(
        PACKETS, "if (activation == Activation::relu6) pair = __hmin2_nan(pair, six);", ""
    ),
    "sums of taps written over": Mutation(
        WEIGHT_GRADIENT, "      __syncthreads();  // the sums of the tap before have been read\n", ""
    ),
    "sums of taps read too early": Mutation(
        WEIGHT_GRADIENT,
        "sums[i][j][v];\n      __syncthreads();\n",
        "sums[i][j][v];\n",
    ),
    "parts that overlap": Mutation(
        WEIGHT_GRADIENT, "min_of((part + 1) * problem.parts.length,", "min_of((part + 1) * problem.parts.length + 1,"
    ),
    "no barrier before moments are joined": Mutation(
        MOMENTS, "  __syncthreads();\n  const int channel", "  const int channel"
    ),
    "strips that all count as full": Mutation(MOMENTS, "of_strip = static_cast<A>(strip.count)", "of_strip = A(R)"),
}


def test_passes_without_a_fault() -> None:
    result = build_emulator.run_program(TEST, KERNELS, None)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", MUTANTS)
def test_fault_is_found(name: str) -> None:
    assert build_emulator.run_program(TEST, KERNELS, MUTANTS[name]).returncode != 0
