"""Inference and training on a GPU, construction of the lattice included, beside the least time that the card allows.

    python benchmarks/gpu/bench_mean_field_gpu.py
    python benchmarks/gpu/bench_mean_field_gpu.py --profile
    python benchmarks/gpu/bench_mean_field_gpu.py --peer module:function
    python benchmarks/gpu/bench_mean_field_gpu.py --device cpu --small

Five iterations with a Gaussian (sxy 3, weight 3) and a bilateral kernel (weight 10), symmetric, eager and as one CUDA
graph (which copies its inputs to where it reads them), in both precisions. The lattice of the Gaussian kernel is kept,
as it is in use. Training is forward and backward with gradients of the unary, the weights and the compatibilities. A
peer is function(unary [C, H, W], image [3, H, W] uint8, sxy, srgb, iterations) -> Q [C, H, W], on the GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
import gpu_common
import roofline
from common import SXY_GAUSSIAN, WEIGHT, WEIGHT_GAUSSIAN
from roofline import Rates, Sizes

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, Lattice

ITERATIONS = 5
IMAGES = 4  # that take turns
PRECISIONS = ("fp32", "fp16")


class Case(NamedTuple):
    width: int
    height: int
    classes: int
    sxy: float
    srgb: float
    batch: int = 1
    training: bool = False

    @property
    def title(self) -> str:
        sizes = f"{self.width} × {self.height} × {self.classes}, {self.sxy:g}/{self.srgb:g}"
        return f"{self.batch} × {sizes}, forward and backward" if self.training else sizes

    def crf(self, precision: str = "fp32") -> DenseCRF:
        weight = 0.1 if self.training else 1.0  # leaves labels undecided, so that gradients do not vanish
        kernels = [
            Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN * weight),
            Bilateral(self.sxy, self.srgb, WEIGHT * weight),
        ]
        trainable = ("weights", "compatibility") if self.training else False
        return DenseCRF(self.classes, kernels, iterations=ITERATIONS, trainable=trainable, precision=precision)

    def images(self, device: str) -> list[Tensor]:
        """[B, 3, H, W] uint8 for each repetition."""
        big = self.height > 500
        scene = common.mosaic(self.height, self.width) if big else common.photo("astronaut", self.height, self.width)
        batches = [[common.variant(scene, self.batch * r + b) for b in range(self.batch)] for r in range(IMAGES)]
        return [torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous().to(device) for batch in batches]

    def unary(self, device: str) -> Tensor:
        """[B, C, H, W]."""
        energies = [common.noisy_unary(self.classes, self.height, self.width, seed) for seed in range(self.batch)]
        return torch.from_numpy(np.stack(energies)).to(device)

    def sizes(self, image: Tensor) -> list[Sizes]:
        """Of the lattices of the two kernels; the first serves all images."""
        grid, count = (self.height, self.width), self.height * self.width
        widths = torch.tensor([self.sxy] * 2 + [self.srgb] * 3, dtype=torch.float32, device=image.device)
        alone = Lattice.on_grid(widths.new_empty(1, 0, count), widths.new_full((2,), SXY_GAUSSIAN), grid, True)
        bilateral = Lattice.on_grid(image.flatten(2), widths, grid, True)
        # every image reads the tables and makes rows of its own
        spatial = Sizes(*(self.batch * size for size in Sizes.of(alone.tensors)))._replace(corners=3)
        return [spatial, Sizes.of(bilateral.tensors)]


CASES = [
    Case(500, 375, 21, 80, 13),
    Case(500, 375, 21, 50, 3),
    Case(2048, 1024, 19, 80, 13),
    Case(2048, 1024, 19, 50, 3),
    Case(321, 321, 21, 80, 13, batch=16, training=True),
]
SMALL = [Case(120, 90, 5, 80, 13), Case(60, 50, 3, 80, 13, batch=2, training=True)]

Work = Callable[[int], Tensor]


def inference_works(case: Case, device: str, peer: gpu_common.Peer | None) -> dict[str, Work]:
    unary, images = case.unary(device), case.images(device)
    works: dict[str, Work] = {}
    for precision in PRECISIONS:
        crf = case.crf(precision).to(device)
        works[f"{precision} eager"] = lambda r, crf=crf: crf(unary, images[r % IMAGES])
        if device == "cuda":
            graph = crf.compile_graph(unary, images[0])
            works[f"{precision} graph"] = lambda r, graph=graph: graph(unary, images[r % IMAGES], copy=False)
    if peer:
        works["peer"] = lambda r: peer(unary[0], images[r % IMAGES][0], case.sxy, case.srgb, ITERATIONS)[None]
    return works


def training_works(case: Case, device: str) -> dict[str, Work]:
    images, crf = case.images(device), case.crf().to(device)
    unary, image = case.unary(device).requires_grad_(), images[0].clone()
    weigh = torch.randn(unary.shape, generator=torch.Generator().manual_seed(0)).to(device)
    leaves = [unary, *crf.parameters()]

    def step(image: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((crf(unary, image) * weigh).sum(), leaves)

    works: dict[str, Work] = {"fp32 eager": lambda r: step(images[r % IMAGES])[0]}
    if device == "cuda":
        gradients: list[Tensor] = []

        def captured() -> None:
            gradients[:] = step(image)

        replay = gpu_common.in_graph(captured)

        def replayed(r: int) -> Tensor:
            image.copy_(images[r % IMAGES])
            replay()
            return gradients[0]

        works["fp32 graph"] = replayed
    return works


def check_equal(works: dict[str, Work]) -> dict[str, float]:
    """The largest difference of each side from the first; ends the run where the precision does not explain it.

    A peer may compute something else, a lattice without the symmetric norm say: its difference is only noted.
    """
    first, differences = works["fp32 eager"](0).clone(), {}
    for name, work in works.items():
        differences[name] = float((work(0) - first).abs().max() / first.abs().max())
        if differences[name] > {"fp32": 0, "fp16": 0.05}.get(name.split()[0], float("inf")):
            sys.exit(f"{name} does not agree with fp32 eager: {differences[name]:.1e}")
    return differences


def measure(case: Case, options: argparse.Namespace, rates: Rates, peer: gpu_common.Peer | None) -> dict[str, Any]:
    works = training_works(case, options.device) if case.training else inference_works(case, options.device, peer)
    differences = check_equal(works)
    times = gpu_common.time_in_turns(works, options.repeat, options.device)
    sizes = case.sizes(case.images(options.device)[0])
    floors = {}
    for precision in PRECISIONS[: 1 if case.training else 2]:
        if case.training:
            floors[precision] = roofline.training_seconds(sizes, case.classes, ITERATIONS, rates)
        else:
            floors[precision] = roofline.inference_seconds(sizes, case.classes, ITERATIONS, precision, rates)
    print(f"\n{case.title}: M = {[s.vertices for s in sizes]}, P = {[s.partials for s in sizes]}")
    for name, timing in times.items():
        floor = floors.get(name.split()[0])
        text = f", roofline {1e3 * floor:.3f} ms, {floor / timing['median']:.0%} of it" if floor else ""
        print(f"  {name:12} {1e3 * timing['median']:9.3f} ms ± {1e3 * timing['iqr'] / 2:.3f}{text}")
    if options.profile:
        gpu_common.print_profile(works["fp32 eager"], options.device)
    return {
        **case._asdict(),
        "lattices": [size._asdict() for size in sizes],
        "differences": differences,
        "seconds": times,
        "roofline_seconds": floors,
    }


def table_of(results: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for result in results for name in result["seconds"]))
    rows = []
    for result in results:
        cells = [Case(*(result[field] for field in Case._fields)).title]
        for name in names:
            timing, floor = result["seconds"].get(name), result["roofline_seconds"].get(name.split()[0])
            cells.append("" if not timing else f"{1e3 * timing['median']:.3f}")
            if name.endswith("eager"):
                cells.append("" if not floor else f"{1e3 * floor:.3f}")
        rows.append(cells)
    head = [title for name in names for title in ([name, "roofline"] if name.endswith("eager") else [name])]
    return gpu_common.markdown(["ms", *head], rows)


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="another program to time beside ours, module:function")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes, kernel by kernel")
    options = gpu_common.parse_arguments(__doc__, parser)
    peer, rates = gpu_common.load_peer(options.peer), gpu_common.measure_rates(options.device)
    print("measured: " + ", ".join(f"{name} {rate / 1e12:.2f} TB/s" for name, rate in rates._asdict().items()))
    results = [measure(case, options, rates, peer) for case in (SMALL if options.small else CASES)]
    report = {"bytes_per_second": rates._asdict(), "iterations": ITERATIONS, "cases": results}
    gpu_common.write_results("mean_field_gpu", options, report, table_of(results))


if __name__ == "__main__":
    main()
