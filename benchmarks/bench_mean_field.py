"""Inference, construction of the lattices included, against pydensecrf: time on one and two threads, and peak memory.

    python benchmarks/bench_mean_field.py
    python benchmarks/bench_mean_field.py --quick

Ten iterations with a Gaussian (sxy 3, weight 3) and a bilateral kernel (sxy 80, srgb 13, weight 10), symmetric. Both
sides get the same image and unary, another image in every repetition; their Q is compared before anything is timed.
pydensecrf has one thread. Memory is the rise of the peak of resident memory over one inference in a fresh process.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common
from common import ITERATIONS, SRGB, SXY, SXY_GAUSSIAN, WEIGHT, WEIGHT_GAUSSIAN

from densecrf_cuda import Bilateral, DenseCRF, Gaussian
from densecrf_cuda.ops import LatticeTensors, lattice_build

try:
    import pydensecrf.densecrf as pydensecrf
except ImportError:  # no release for this Python
    pydensecrf = None

TOLERANCE = 1e-3  # of Q: ten iterations in float32, summed in another order
MARGIN = 1e-3  # between the two best labels, above which labels must agree


class Case(NamedTuple):
    width: int
    height: int
    classes: int
    photo: str  # of scikit-image, or "mosaic"

    @property
    def title(self) -> str:
        return f"{self.width} x {self.height}, {self.classes} classes"

    def image(self) -> np.ndarray:
        if self.photo == "mosaic":
            return common.mosaic(self.height, self.width)
        return common.photo(self.photo, self.height, self.width)

    def unary(self) -> np.ndarray:
        return common.noisy_unary(self.classes, self.height, self.width)


CASES = [
    Case(500, 375, 2, "astronaut"),
    Case(500, 375, 21, "astronaut"),
    Case(500, 375, 150, "astronaut"),
    Case(2048, 1024, 19, "mosaic"),
]
QUICK = [Case(160, 120, 2, "astronaut"), Case(160, 120, 21, "astronaut")]

Infer = Callable[[np.ndarray, np.ndarray], np.ndarray]  # unary [C, H, W], image [H, W, 3] -> Q [C, N]


def infer_ours(unary: np.ndarray, image: np.ndarray) -> np.ndarray:
    kernels = [Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN), Bilateral(SXY, SRGB, WEIGHT)]
    crf = DenseCRF(len(unary), kernels, iterations=ITERATIONS)
    with torch.inference_mode():
        return crf(torch.from_numpy(unary), common.to_tensor(image)).flatten(1).numpy()


def infer_pydensecrf(unary: np.ndarray, image: np.ndarray) -> np.ndarray:
    crf = pydensecrf.DenseCRF2D(image.shape[1], image.shape[0], len(unary))
    crf.setUnaryEnergy(unary.reshape(len(unary), -1))
    crf.addPairwiseGaussian(sxy=SXY_GAUSSIAN, compat=WEIGHT_GAUSSIAN)
    crf.addPairwiseBilateral(sxy=SXY, srgb=SRGB, rgbim=image, compat=WEIGHT)
    return np.asarray(crf.inference(ITERATIONS))


SIDES: dict[str, Infer] = {"ours": infer_ours, "pydensecrf": infer_pydensecrf}


def check_equal(unary: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """Largest difference of Q, and labels that differ; ends the run where that is more than rounding."""
    ours, theirs = infer_ours(unary, image), infer_pydensecrf(unary, image)
    difference = float(np.abs(ours - theirs).max())
    best = np.partition(theirs, -2, axis=0)[-2:]
    clear = best[1] - best[0] > MARGIN
    other = int(((ours.argmax(0) != theirs.argmax(0)) & clear).sum())
    if difference > TOLERANCE or other:
        sys.exit(f"the two sides do not agree: |dQ| up to {difference:.2e}, {other} clear labels differ")
    return {"largest_difference": difference, "mean_difference": float(np.abs(ours - theirs).mean())}


def build_lattices(image: np.ndarray) -> list[LatticeTensors]:
    height, width = image.shape[:2]
    guide = common.to_tensor(image).reshape(1, 3, -1)
    xy = torch.tensor([SXY_GAUSSIAN] * 2), torch.tensor([SXY] * 2 + [SRGB] * 3)
    guides = guide[:, :0], guide
    return [
        lattice_build(g, bandwidth, [height, width], True, height * width * (len(bandwidth) + 1))
        for g, bandwidth in zip(guides, xy)
    ]


def measure(case: Case, repeat: int, threads: list[int], bandwidths: dict[int, float]) -> dict[str, Any]:
    image, unary = case.image(), case.unary()
    print(f"\n{case.title}")
    result: dict[str, Any] = case._asdict()
    variants = {r: common.variant(image, r) for r in range(-1, repeat)}
    works: dict[str, Callable[[int], object]] = {}
    counts: dict[str, int] = {}
    if pydensecrf:
        result["equality"] = check_equal(unary, image)
        print(f"  largest difference of Q {result['equality']['largest_difference']:.1e}")
        works["pydensecrf"] = lambda r: infer_pydensecrf(unary, variants[r])
        counts["pydensecrf"] = 1
    for count in threads:
        works[f"ours, {common.threads_text(count)}"] = lambda r: infer_ours(unary, variants[r])
        counts[f"ours, {common.threads_text(count)}"] = count
    times = common.time_paired(works, repeat, counts)
    result["seconds"] = times

    lattices = build_lattices(image)
    result["vertices"] = [int(lattice.num_vertices) for lattice in lattices]
    result["bytes_moved"] = common.mean_field_bytes(lattices, case.classes)
    for name, timing in times.items():
        line = f"  {name:16} {common.in_ms(timing)}"
        if name != "pydensecrf":
            rate = result["bytes_moved"] / timing["median"]
            share = rate / bandwidths[counts[name]]
            line += f"   {rate / 1e9:5.1f} GB/s, {share:.0%} of a copy's"
            if pydensecrf:
                result.setdefault("speedup", {})[name] = times["pydensecrf"]["median"] / timing["median"]
                line += f"   {result['speedup'][name]:5.2f} x pydensecrf"
        print(line)

    result["peak_rise_bytes"] = {}
    for side in SIDES if pydensecrf else ["ours"]:
        rise = common.in_fresh_process(__file__, "--memory", side, "--case", json.dumps(case))
        result["peak_rise_bytes"][side] = rise
        print(f"  peak memory of {side}: {rise / 2**20:.0f} MiB above its inputs")
    return result


def measure_memory(side: str, case: Case) -> None:
    """For `in_fresh_process`: a small inference loads what is loaded once, then the case is measured."""
    infer = SIDES[side]
    infer(common.noisy_unary(case.classes, 16, 16), np.zeros((16, 16, 3), np.uint8))
    image, unary = case.image(), case.unary()
    print(common.peak_rise(lambda: infer(unary, image)))


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    options = common.parse_arguments(__doc__, parser)
    if options.memory:
        measure_memory(options.memory, Case(*json.loads(options.case)))
        return
    if pydensecrf is None:
        print("pydensecrf is not installed: no comparison")
    bandwidths = {count: common.copy_bandwidth(count) for count in options.threads}
    for count, rate in bandwidths.items():
        print(f"copy on {common.threads_text(count)}: {rate / 1e9:.1f} GB/s, read and written")
    cases = QUICK if options.quick else CASES
    results = [measure(case, options.repeat, options.threads, bandwidths) for case in cases]
    common.write_results("mean_field", options, {"copy_bytes_per_second": bandwidths, "cases": results})


if __name__ == "__main__":
    main()
