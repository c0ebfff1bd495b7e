"""Faults planted in the fused separable convolution are found by its test on the emulator."""

from __future__ import annotations

import build_emulator
import pytest
from build_emulator import ROOT, Mutation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build_emulator.compiler_is_missing(), reason="the emulator is compiled with g++"),
]

TEST = ROOT / "tests/csrc/test_cuda_separable_fused.cpp"
KERNELS = [
    *(f"separable_fused_{name}.cu" for name in ("half", "bfloat16", "float", "double")),
    "finish_pointwise.cu",
]

KERNEL, PRODUCE, FINISH, MULTIPLY, TILE = (
    *(f"cuda/separable_fused_{part}.cuh" for part in ("kernel", "produce", "finish", "multiply", "tile")),
)
MUTANTS = {
    "no barrier between two chunks": Mutation(
        KERNEL,
        "    wait_for_copies();\n    __syncthreads();\n  }\n",
        "    wait_for_copies();\n  }\n",
    ),
    "no barrier before the first chunk": Mutation(
        KERNEL,
        "  __syncthreads();\n  produce<T, Tile, WholePackets, Product>(problem, memory, 0);\n",
        "  produce<T, Tile, WholePackets, Product>(problem, memory, 0);\n",
    ),
    "copies that nobody waits for": Mutation(
        KERNEL,
        "    wait_for_copies();\n    __syncthreads();\n  }\n",
        "    __syncthreads();\n  }\n  wait_for_copies();\n",
    ),
    "factors of the next chunk in the place of this one's": Mutation(
        KERNEL, "memory.factors(next % 2)", "memory.factors(stage)"
    ),
    "weights written over while they are used": Mutation(
        KERNEL,
        "load_weights(problem, next + 1, memory.weights_of(stage))",
        "load_weights(problem, next + 1, memory.weights_of(next % 2))",
    ),
    "no barrier before pixels have places to go": Mutation(
        KERNEL, "memory.offsets());\n  __syncthreads();\n", "memory.offsets());\n"
    ),
    "the last channel left out": Mutation(
        PRODUCE, "exists && channel + v < channels", "exists && channel + v < channels - 1"
    ),
    "the last pixel left out": Mutation(
        PRODUCE, "first_pixel + p < problem.pixels", "first_pixel + p < problem.pixels - 1"
    ),
    "a tap behind the last column": Mutation(PRODUCE, "column < columns.size;", "column <= columns.size;"),
    "one output too many": Mutation(
        FINISH,
        "if (at.out >= 0 && output < outputs)\n            from_accumulator",
        "if (at.out >= 0 && output <= outputs)\n            from_accumulator",
    ),
    "a last band as high as the others": Mutation(
        TILE, "min_of(kBandRows, rows.outputs - first)", "static_cast<int64_t>(kBandRows)"
    ),
    "segments that are exchanged by one side alone": Mutation(
        MULTIPLY, "factor_segment = lane / 8 % 2;", "factor_segment = lane / 16;"
    ),
    "outputs of the neighbouring lane": Mutation(
        FINISH, "upper ? words[i] : words[i + step], step);", "upper ? words[i] : words[i + step], 1);"
    ),
    "no activation": Mutation(
        FINISH, "pairs[i / 2].set(i % 2, activate(y, affine.activation));", "pairs[i / 2].set(i % 2, y);"
    ),
}


def test_passes_without_a_fault() -> None:
    result = build_emulator.run_program(TEST, KERNELS, None)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", MUTANTS)
def test_fault_is_found(name: str) -> None:
    assert build_emulator.run_program(TEST, KERNELS, MUTANTS[name]).returncode != 0
