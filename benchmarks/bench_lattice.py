"""Each operator of the lattice on its own, against its twin in plain PyTorch (`densecrf_cuda.reference`).

    python benchmarks/bench_lattice.py
    python benchmarks/bench_lattice.py --quick

lattice_build, lattice_filter (forward and transposed) and the gradient by the features, for the Gaussian (d = 2) and
the bilateral kernel (d = 5) of a photo. Results are compared before anything is timed. The mean-field operator has
bench_mean_field.py.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common

from densecrf_cuda import reference
from densecrf_cuda.ops import LatticeTensors

OPS: Any = torch.ops.densecrf_cuda
TOLERANCE = 1e-4  # relative to the largest entry: float32 sums in two orders


class Case(NamedTuple):
    width: int
    height: int
    classes: int
    bandwidth: tuple[float, ...]


GAUSSIAN = (common.SXY_GAUSSIAN,) * 2
BILATERAL = (common.SXY,) * 2 + (common.SRGB,) * 3
CASES = [Case(500, 375, classes, bandwidth) for bandwidth in (GAUSSIAN, BILATERAL) for classes in (2, 21)]
QUICK = [Case(120, 90, 5, bandwidth) for bandwidth in (GAUSSIAN, BILATERAL)]


class Inputs:
    """What the operators of one case are called with, another image in every repetition."""

    def __init__(self, case: Case, repeat: int) -> None:
        photo = common.photo("astronaut", case.height, case.width)
        self.grid = [case.height, case.width]
        self.points = case.height * case.width
        self.bandwidth = torch.tensor(case.bandwidth)
        images = [common.to_tensor(common.variant(photo, r)) for r in range(-1, repeat)]
        self.guides = [image[: len(case.bandwidth) - 2].reshape(1, -1, self.points) for image in images]
        self.capacity = self.points * (len(case.bandwidth) + 1)
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.points, case.classes)
        self.values, self.grad = (torch.rand(shape, generator=generator) for _ in range(2))
        self.lattices = [LatticeTensors(*self.build(OPS, guide)) for guide in self.guides]
        self.features = [reference.lattice_features(g, self.bandwidth, self.grid, True) for g in self.guides]

    def build(self, side: Any, guide: Tensor) -> list[Tensor]:
        return side.lattice_build(guide, self.bandwidth, self.grid, True, self.capacity)

    def filter(self, side: Any, r: int, reverse: bool) -> Tensor:
        return side.lattice_filter(self.values, None, None, None, list(self.lattices[r + 1]), self.grid, reverse)

    def feature_grad(self, side: Any, r: int) -> Tensor:
        lattice = list(self.lattices[r + 1])
        return side._lattice_feature_grad(self.values, self.grad, self.features[r + 1], lattice, self.grid, False)

    def works(self, side: Any) -> dict[str, Callable[[int], Any]]:
        return {
            "lattice_build": lambda r: self.build(side, self.guides[r + 1]),
            "lattice_filter": lambda r: self.filter(side, r, False),
            "lattice_filter, transposed": lambda r: self.filter(side, r, True),
            "_lattice_feature_grad": lambda r: self.feature_grad(side, r),
        }


def difference(ours: Any, plain: Any) -> float:
    """Relative to the largest entry; for lattices that of the barycentric weights."""
    if not isinstance(ours, Tensor):
        ours, plain = ours[0], plain[0]
    return ((ours - plain).abs().max() / plain.abs().max()).item()


def measure(case: Case, repeat: int, threads: list[int], bandwidths: dict[int, float]) -> list[dict[str, Any]]:
    inputs = Inputs(case, repeat)
    lattice = inputs.lattices[0]
    d, vertices = len(case.bandwidth), int(lattice.num_vertices)
    moved = common.filter_bytes(lattice, case.classes) + 8 * inputs.points * case.classes
    print(f"\n{case.width} x {case.height}, {case.classes} channels, d = {d}: {vertices} vertices")
    results = []
    ours, plain = inputs.works(OPS), inputs.works(reference)
    for op in ours:
        apart = difference(ours[op](0), plain[op](0))
        if apart > TOLERANCE:
            sys.exit(f"{op} differs from the reference by {apart:.1e} of the largest entry")
        works = {"reference": plain[op]} | {f"ours, {common.threads_text(count)}": ours[op] for count in threads}
        counts = {"reference": max(threads)} | {f"ours, {common.threads_text(count)}": count for count in threads}
        times = common.time_paired(works, repeat, counts)
        result = {**case._asdict(), "d": d, "vertices": vertices, "op": op, "largest_difference": apart}
        result |= {"seconds": times, "reference_threads": max(threads)}
        line = f"  {op:27}"
        for name, timing in times.items():
            line += f" {name} {common.in_ms(timing)}"
            if op.startswith("lattice_filter") and name != "reference":
                result["bytes_moved"] = moved
                rate = moved / timing["median"]
                line += f" ({rate / 1e9:.1f} GB/s, {rate / bandwidths[counts[name]]:.0%} of a copy's)"
            line += ";"
        print(line.rstrip(";"))
        results.append(result)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    options = common.parse_arguments(__doc__, parser)
    bandwidths = {count: common.copy_bandwidth(count) for count in options.threads}
    results = []
    for case in QUICK if options.quick else CASES:
        results += measure(case, options.repeat, options.threads, bandwidths)
    common.write_results("lattice", options, {"copy_bytes_per_second": bandwidths, "cases": results})


if __name__ == "__main__":
    main()
