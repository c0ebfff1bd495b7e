"""The memory of an inference by the formulas of docs/memory.md and docs/cuda.md, beside what is measured.

    python benchmarks/memory_formula.py
    python benchmarks/memory_formula.py --plans
    python benchmarks/memory_formula.py --cuda

Prints a table in Markdown. Measured is the rise of the peak of resident memory in a fresh process: for inference
without gradients; for forward and backward of a CRF with trainable weights, of one with everything trainable, and of
the latter with `checkpoint=True`. With `--plans` it is that of inferences within bounds, `max_memory=`, beside their
results. With `--cuda` it is the peak of what an inference has allocated: on a GPU, or where there is none by the same
code on the CPU, in the emulator of the tests.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common
from bench_mean_field import Case, build_lattices
from common import ITERATIONS, SRGB, SXY, SXY_GAUSSIAN, WEIGHT, WEIGHT_GAUSSIAN

from densecrf_cuda import _C, Bilateral, DenseCRF, Gaussian, memory_plans
from densecrf_cuda._tiles import num_tiles
from densecrf_cuda.ops import LatticeTensors

CASES = [
    Case(500, 375, 2, "astronaut"),
    Case(500, 375, 21, "astronaut"),
    Case(500, 375, 150, "astronaut"),
    Case(2048, 1024, 19, "mosaic"),
]
MODES: dict[str, dict[str, Any]] = {
    "inference": {},
    "training weights": {"trainable": "weights"},
    "training all": {"trainable": True},
    "training all, checkpoint": {"trainable": True, "checkpoint": True},
}

SHARES = (1.0, 0.7, 0.5, 0.3, 0.15)


def module(case: Case, **settings: Any) -> DenseCRF:
    """The CRF that is measured."""
    kernels = [Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN), Bilateral(SXY, SRGB, WEIGHT)]
    return DenseCRF(case.classes, kernels, iterations=ITERATIONS, **settings)


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(case.unary()), common.to_tensor(case.image())


def formula(case: Case) -> tuple[int, str]:
    """Bytes by the formula, result included, and what there is of vertices and partials to a point."""
    points, shares = case.width * case.height, []
    for lattice in build_lattices(case.image()):
        vertices, partials = int(lattice.num_vertices), int(lattice.tile_offsets[-1])
        shares.append(f"{vertices / points:.3f}, {partials / points:.3f}")
    return memory_plans(module(case), *inputs(case))[0].nbytes + 4 * case.classes * points, " / ".join(shares)


def measure_bound(case: Case, bound: int) -> tuple[int, float]:
    """Peak rise in this process beside the result, and seconds, of an inference within a bound."""
    small = torch.rand(case.classes, 16, 16), torch.zeros(3, 16, 16)
    unary, image = inputs(case)
    with torch.inference_mode():
        module(case, max_memory=1 << 30)(*small)
        begin = time.perf_counter()
        rise = common.peak_rise(lambda: module(case, max_memory=bound)(unary, image))
        return rise - 4 * unary.numel(), time.perf_counter() - begin


def print_plans() -> None:
    """What is chosen for bounds that are shares of what the uncut inference takes."""
    print("| | max_memory | plan | formula | measured | time |\n|---|---:|---|---:|---:|---:|")
    for case in CASES[1:]:
        crf, pictures = module(case), inputs(case)
        most = memory_plans(crf, *pictures)[0].max_memory
        for bound in (int(share * most) for share in SHARES):
            plans = memory_plans(crf, *pictures, max_memory=bound)
            plan = next((plan for plan in plans if plan.max_memory <= bound), None)
            if plan is None:
                continue
            arguments = ("--case", json.dumps(case), "--bound", str(bound))
            rise, seconds = common.in_fresh_process(__file__, *arguments)
            title = {"whole": "uncut", "labels": f"{plan.labels} labels at a time"}.get(
                plan.kind, f"strips, tables {'kept' if plan.keeps_tables else 'made anew'}"
            )
            sizes = " | ".join(f"{size / 2**20:.0f} MiB" for size in (plan.nbytes, rise))
            size = f"{case.width} × {case.height}, C = {case.classes}"
            print(f"| {size} | {bound / 2**20:.0f} MiB | {title} | {sizes} | {seconds:.1f} s |", flush=True)


def measure(case: Case, mode: str) -> int:
    """Peak rise in this process."""

    def run(unary: torch.Tensor, image: torch.Tensor) -> None:
        crf = module(case, **MODES[mode])
        if mode == "inference":
            with torch.inference_mode():
                crf(unary, image)
        else:
            crf(unary.requires_grad_(), image).sum().backward()

    run(torch.rand(case.classes, 16, 16), torch.zeros(3, 16, 16))
    unary, image = inputs(case)
    return common.peak_rise(lambda: run(unary, image))


# --- the CUDA side, in float32 ----------------------------------------------------------------------------------------

CUDA_CASES = [Case(500, 375, 21, "astronaut"), Case(2048, 1024, 19, "mosaic")]
MOST_EMULATED = 500_000  # points: larger pictures take minutes


class CudaLattice(NamedTuple):
    """A lattice whose batch is that of the values."""

    batch: int
    grid: tuple[int, int]
    d: int
    capacity: int  # vertices of all images together that there is room for

    @property
    def points(self) -> int:
        return self.batch * self.grid[0] * self.grid[1]

    @property
    def entries(self) -> int:
        return self.points * (self.d + 1)

    @property
    def tiles(self) -> int:
        return self.batch * num_tiles(self.grid)

    def tensor_bytes(self) -> int:
        """LatticeTensors::empty of csrc/lattice_tensors.h."""
        return (
            22 * self.entries + 2 * self.points + 8 * self.capacity * (self.d + 2) + 8 * (self.tiles + self.batch + 4)
        )

    def workspace_bytes(self) -> int:
        """build_workspace of csrc/cuda/lattice_build.cu; for d > 9 blocks have work in it, too."""
        slots = 64
        while slots < self.entries + self.entries // 4:
            slots *= 2
        keys = -(-self.d // 3) * self.entries
        arrays = [8 * slots, 8 * keys, *[4 * self.entries] * 2, *[4 * self.tiles] * 2, *[8 * (self.tiles + 1)] * 2]
        return sum(-(-size // 256) * 256 for size in [*arrays, *[4 * self.capacity] * 2, 8])

    def row_bytes(self, channels: int, precision: str) -> int:
        """RowBuffers::front_size and back_size of csrc/cuda/lattice_rows.h, for the fused way."""
        row = -(-channels // 4) * 4 * (2 if precision == "fp16" else 4)
        back = max(self.capacity, self.entries)
        front = back if (self.d + 2) // 2 % 2 else self.capacity  # an odd number of passes exchanges them
        return row * (front + back)


def cuda_lattices(case: Case, built: list[LatticeTensors]) -> list[CudaLattice]:
    """The Gaussian kernel's, which the cache has trimmed, and the bilateral one's, with room for all there can be."""
    grid = case.height, case.width
    trimmed = CudaLattice(1, grid, 2, int(built[0].num_vertices))
    return [trimmed, CudaLattice(1, grid, 5, case.width * case.height * 6)]


def cuda_peak(lattices: list[CudaLattice], channels: int, precision: str) -> int:
    """Peak of an inference: bilateral tensors and norm; the workspace of their build, later rows and the result."""
    bilateral = lattices[1]
    rows = sum(lattice.row_bytes(channels, precision) for lattice in lattices)
    inference = 4 * bilateral.points * (channels + 1) + rows
    return bilateral.tensor_bytes() + max(bilateral.workspace_bytes(), inference)


def cuda_measure(case: Case, precision: str) -> int | None:
    """What an inference allocates at its peak, the Gaussian kernel's lattice being cached."""
    kernels = [Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN), Bilateral(SXY, SRGB, WEIGHT)]
    crf = DenseCRF(case.classes, kernels, iterations=1, precision=precision)
    unary, image = torch.from_numpy(case.unary()), common.to_tensor(case.image()).contiguous()
    if _C.cuda_kernels and torch.cuda.is_available():
        crf, unary, image = crf.cuda(), unary.cuda(), image.cuda()
        with torch.inference_mode():
            crf(unary, image)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            crf(unary, image)
        return torch.cuda.max_memory_allocated() - before
    if unary[0].numel() > MOST_EMULATED:
        return None
    sys.path.insert(0, str(common.FOLDER.parent / "tests" / "emulator"))
    import emulated

    with emulated.enabled(), torch.inference_mode():
        crf(torch.rand(case.classes, case.height, case.width), image)
        return allocated_peak(lambda: crf(unary, image))


def allocated_peak(work: Callable[[], object]) -> int:
    """The most that a call has allocated on the CPU at a time, by the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def print_cuda_table() -> None:
    print("| | lattice | workspace | rows, fp32 / fp16 | of them used | history, each iteration |\n|---|" + 5 * "---:|")
    totals = []
    for case in CUDA_CASES:
        built = build_lattices(case.image())
        lattices = cuda_lattices(case, built)
        title = f"{case.width} × {case.height}, C = {case.classes}"
        for lattice, tensors in zip(lattices, built):
            vertices, partials = int(tensors.num_vertices), int(tensors.tile_offsets[-1])
            rows = [lattice.row_bytes(case.classes, precision) for precision in ("fp32", "fp16")]
            used = -(-case.classes // 4) * 16 * (vertices + max(vertices, partials))
            history = 4 * case.classes * lattice.points if lattice.d == 5 else 0
            columns = [lattice.tensor_bytes(), lattice.workspace_bytes() if lattice.d == 5 else 0, *rows, used, history]
            sizes = [f"{size / 2**20:.1f}" if size else "–" for size in columns]
            sizes[2:4] = [" / ".join(sizes[2:4])]
            print(f"| {title}, d = {lattice.d} | {' | '.join(sizes)} |", flush=True)
        for precision in ("fp32", "fp16"):
            measured = cuda_measure(case, precision)
            totals.append((title, precision, cuda_peak(lattices, case.classes, precision), measured))
    print(f"\nMiB. Peak of an inference:\n\n| | precision | formula | measured |\n|---|---|{2 * '---:|'}")
    for title, precision, total, measured in totals:
        size = "–" if measured is None else f"{measured / 2**20:.1f} MiB"
        print(f"| {title} | {precision} | {total / 2**20:.1f} MiB | {size} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="the formula of docs/cuda.md")
    parser.add_argument("--plans", action="store_true", help="inferences within bounds")
    parser.add_argument("--bound", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(measure(Case(*json.loads(options.case)), options.mode))
        return
    if options.bound:
        print(json.dumps(measure_bound(Case(*json.loads(options.case)), options.bound)))
        return
    if options.cuda:
        print_cuda_table()
        return
    if options.plans:
        print_plans()
        return
    print(f"| | M/N, P/N: Gaussian / bilateral | formula | {' | '.join(MODES)} |\n|---|---|---:|{'---:|' * len(MODES)}")
    for case in CASES:
        total, shares = formula(case)
        rises = [common.in_fresh_process(__file__, "--mode", mode, "--case", json.dumps(case)) for mode in MODES]
        sizes = " | ".join(f"{rise / 2**20:.0f} MiB" for rise in [total, *rises])
        print(f"| {case.width} × {case.height}, C = {case.classes} | {shares} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
