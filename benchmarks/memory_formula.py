"""The memory of an inference by the formula of docs/memory.md, beside what is measured.

    python benchmarks/memory_formula.py

Prints a table in Markdown. Measured is the rise of the peak of resident memory in a fresh process: for inference
without gradients; for forward and backward of a CRF with trainable weights, of one with everything trainable, and of
the latter with `checkpoint=True`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common
from bench_mean_field import Case, build_lattices
from common import ITERATIONS, SRGB, SXY, SXY_GAUSSIAN, WEIGHT, WEIGHT_GAUSSIAN

from densecrf_cuda import Bilateral, DenseCRF, Gaussian

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


def formula(case: Case) -> tuple[int, str]:
    """Bytes by the formula, and what there is of vertices and partials to a point."""
    points, row = case.width * case.height, common.row_bytes(case.classes)
    total, shares = points * (4 * case.classes + row), []
    for lattice in build_lattices(case.image()):
        corners = lattice.weights.shape[2]
        vertices, partials = int(lattice.num_vertices), int(lattice.tile_offsets[-1])
        total += points * (6 * corners + 14) + 8 * vertices * (corners + 1) + 12 * partials
        total += row * (partials + 2 * vertices)
        shares.append(f"{vertices / points:.3f}, {partials / points:.3f}")
    return total, " / ".join(shares)


def measure(case: Case, mode: str) -> int:
    """Peak rise in this process."""

    def run(unary: torch.Tensor, image: torch.Tensor) -> None:
        kernels = [Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN), Bilateral(SXY, SRGB, WEIGHT)]
        crf = DenseCRF(case.classes, kernels, iterations=ITERATIONS, **MODES[mode])
        if mode == "inference":
            with torch.inference_mode():
                crf(unary, image)
        else:
            crf(unary.requires_grad_(), image).sum().backward()

    run(torch.rand(case.classes, 16, 16), torch.zeros(3, 16, 16))
    unary, image = torch.from_numpy(case.unary()), common.to_tensor(case.image())
    return common.peak_rise(lambda: run(unary, image))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(measure(Case(*json.loads(options.case)), options.mode))
        return
    print(f"| | M/N, P/N: Gaussian / bilateral | formula | {' | '.join(MODES)} |\n|---|---|---:|{'---:|' * len(MODES)}")
    for case in CASES:
        total, shares = formula(case)
        rises = [common.in_fresh_process(__file__, "--mode", mode, "--case", json.dumps(case)) for mode in MODES]
        sizes = " | ".join(f"{rise / 2**20:.0f} MiB" for rise in [total, *rises])
        print(f"| {case.width} × {case.height}, C = {case.classes} | {shares} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
