"""Faults planted in the CUDA kernels are found by tests of the package that run on the emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import build_emulator
import pytest
from build_emulator import ROOT, Mutation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build_emulator.compiler_is_missing(), reason="the emulator is compiled with g++"),
]

# What must find the faults: a file and a selection of its tests.
BUILD = ("test_lattice_build.py", "test_equals_the_reference and (d5 or d8)")
FILTER = ("test_lattice_filter.py", "test_equals_the_reference and (d2 or d5)")
MEAN_FIELD = ("test_mean_field.py", "test_any_number_of_labels")

MUTANTS = {
    "no barrier between writing and reading a rank": (
        Mutation(
            "cuda/block.cuh",
            "  if (lane == 0) warps[warp] = __popc(votes);\n  __syncthreads();\n",
            "  if (lane == 0) warps[warp] = __popc(votes);\n",
        ),
        BUILD,
    ),
    "no barrier before a rank is written over": (
        Mutation("cuda/block.cuh", "  __syncthreads();  // the numbers of the call before have been read\n", ""),
        BUILD,
    ),
    "no barrier before points are grouped": (
        Mutation(
            "cuda/tile_embedding.cuh",
            "work.members[i] = 0;\n  __syncthreads();\n",
            "work.members[i] = 0;\n",
        ),
        BUILD,
    ),
    "a barrier that not every thread meets": (
        Mutation(
            "cuda/lattice_vertices.cuh",
            "const int64_t offset = next + block_scan<int64_t>(v < end ? tables.partial_counts[v] : 0, warps, total);",
            "if (v >= end) continue;\n    "
            "const int64_t offset = next + block_scan<int64_t>(tables.partial_counts[v], warps, total);",
        ),
        BUILD,
    ),
    "a search that starts one slot too far": (
        Mutation(
            "cuda/lattice_vertices.cuh",
            "for (uint64_t at = hash >> 32;; ++at) {",
            "for (uint64_t at = (hash >> 32) + 1;; ++at) {",
        ),
        BUILD,
    ),
    "a vertex that keeps the place of whoever came first": (
        Mutation(
            "cuda/lattice_vertices.cuh",
            "if (word < found) atomicMin(slot, static_cast<unsigned long long>(word));",
            "",
        ),
        BUILD,
    ),
    "neighbours swapped": (
        Mutation(
            "cuda/lattice_vertices.cuh",
            "problem.neighbours[2 * (axis * problem.capacity + v) + 1] = id;\n"
            "      problem.neighbours[2 * (axis * problem.capacity + id)] = static_cast<int32_t>(v);",
            "problem.neighbours[2 * (axis * problem.capacity + v)] = id;\n"
            "      problem.neighbours[2 * (axis * problem.capacity + id) + 1] = static_cast<int32_t>(v);",
        ),
        BUILD,
    ),
    "no barrier before the splat": (
        Mutation(
            "cuda/splat_slice.cu",
            "  __syncthreads();\n  splat_tile<T, S, V>",
            "  splat_tile<T, S, V>",
        ),
        FILTER,
    ),
    "axes in the same order for the adjoint": (
        Mutation(
            "cuda/lattice_rows.cu",
            "reverse ? last - a : a;\n      axes.second[i] = b > last ? -1 : reverse ? last - b : b;",
            "a;\n      axes.second[i] = b > last ? -1 : b;",
        ),
        FILTER,
    ),
    "no barrier before the softmax": (
        Mutation(
            "cuda/update_kernel.cuh",
            "    __syncthreads();\n  }\n\n  // 2. Q of the pixel",
            "  }\n\n  // 2. Q of the pixel",
        ),
        MEAN_FIELD,
    ),
}


def run_tests(library: Path, check: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    file, selection = check
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", f"tests/densecrf_cuda/{file}"]
    # no option or worker of the run that this test is part of
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["DENSECRF_EMULATOR_LIBRARY"] = str(library)
    command += ["-k", f"emulated and {selection}"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("check", [BUILD, FILTER, MEAN_FIELD], ids=lambda check: check[0])
def test_checks_pass_without_a_fault(check: tuple[str, str]) -> None:
    result = run_tests(build_emulator.build(), check)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", MUTANTS)
def test_fault_is_found(name: str) -> None:
    mutation, check = MUTANTS[name]
    result = run_tests(build_emulator.build(mutation), check)
    # tests fail, or the program ends by a signal
    assert result.returncode == pytest.ExitCode.TESTS_FAILED or result.returncode < 0, result.stdout + result.stderr


def test_fault_must_be_planted_in_one_place() -> None:
    with pytest.raises(ValueError, match=r"must stand exactly once in common\.h, not 0 times"):
        build_emulator.build(Mutation("common.h", "no such text", ""))
