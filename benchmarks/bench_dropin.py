"""The drop-in for pydensecrf against `DenseCRF` and, where it is installed, against pydensecrf: whole jobs, one thread.

    python benchmarks/bench_dropin.py
    python benchmarks/bench_dropin.py --quick

A job is what programs do with one picture: make the CRF, give it the unary and the kernels (Gaussian, sxy 3, weight 3;
bilateral, sxy 80, srgb 13, weight 10), ten iterations, labels. It is written with DenseCRF2D, with the generic DenseCRF
and features of utils, and at a width where N is no multiple of four. Sides take turns on another picture each time.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common
from common import ITERATIONS, SRGB, SXY, SXY_GAUSSIAN, WEIGHT, WEIGHT_GAUSSIAN

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian
from densecrf_cuda.pydensecrf import densecrf as dropin
from densecrf_cuda.pydensecrf import utils

try:
    import pydensecrf.densecrf as original
except ImportError:  # no release for this Python
    original = None


class Case(NamedTuple):
    width: int
    height: int
    classes: int
    program: str  # "DenseCRF2D" or "DenseCRF"

    @property
    def title(self) -> str:
        return f"{self.width} x {self.height}, {self.classes} classes, {self.program}"


CASES = [
    Case(500, 375, 2, "DenseCRF2D"),
    Case(500, 375, 21, "DenseCRF2D"),
    Case(501, 375, 21, "DenseCRF2D"),
    Case(500, 375, 2, "DenseCRF"),
    Case(500, 375, 21, "DenseCRF"),
]
QUICK = [Case(160, 120, 2, "DenseCRF2D"), Case(161, 121, 5, "DenseCRF")]


def features(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the two kernels, [2, N] and [5, N]."""
    gaussian = utils.create_pairwise_gaussian((SXY_GAUSSIAN,) * 2, image.shape[:2])
    return gaussian, utils.create_pairwise_bilateral((SXY,) * 2, (SRGB,) * 3, image, chdim=2)


def run_program(module: Any, program: str, unary: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Labels [H, W] by a module with pydensecrf's interface."""
    classes, (height, width) = len(unary), image.shape[:2]
    if program == "DenseCRF2D":
        crf = module.DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(unary.reshape(classes, -1))
        crf.addPairwiseGaussian(sxy=SXY_GAUSSIAN, compat=WEIGHT_GAUSSIAN)
        crf.addPairwiseBilateral(sxy=SXY, srgb=SRGB, rgbim=image, compat=WEIGHT)
    else:
        crf = module.DenseCRF(height * width, classes)
        crf.setUnaryEnergy(unary.reshape(classes, -1))
        for of_kernel, weight in zip(features(image), (WEIGHT_GAUSSIAN, WEIGHT)):
            crf.addPairwiseEnergy(of_kernel, compat=weight)
    return np.argmax(crf.inference(ITERATIONS), axis=0).reshape(height, width)


def run_native(program: str, unary: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Labels [H, W] by the module, which is asked for the probabilities too."""
    guide = None
    if program == "DenseCRF2D":
        kernels = [Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN), Bilateral(SXY, SRGB, WEIGHT)]
        guide = common.to_tensor(image)
    else:
        tensors = [torch.from_numpy(of_kernel).unflatten(1, image.shape[:2]) for of_kernel in features(image)]
        kernels = [Features(tensor, weight) for tensor, weight in zip(tensors, (WEIGHT_GAUSSIAN, WEIGHT))]
    crf = DenseCRF(len(unary), kernels, iterations=ITERATIONS)
    with torch.inference_mode():
        return np.argmax(crf(torch.from_numpy(unary), guide).numpy(), axis=0)


def measure(case: Case, repeat: int) -> dict[str, Any]:
    unary = common.noisy_unary(case.classes, case.height, case.width)
    image = common.photo("astronaut", case.height, case.width)
    variants = {r: common.variant(image, r) for r in range(-1, repeat)}
    works: dict[str, Callable[[int], np.ndarray]] = {
        "drop-in": lambda r: run_program(dropin, case.program, unary, variants[r]),
        "DenseCRF": lambda r: run_native(case.program, unary, variants[r]),
    }
    if original:
        works["pydensecrf"] = lambda r: run_program(original, case.program, unary, variants[r])
    print(f"\n{case.title}")
    labels = {name: work(0) for name, work in works.items()}
    result: dict[str, Any] = case._asdict()
    result["labels_that_differ"] = {name: int((labels[name] != labels["drop-in"]).sum()) for name in works}
    result["seconds"] = times = common.time_paired(works, repeat)
    for name, timing in times.items():
        ratio = timing["median"] / times["drop-in"]["median"]
        other = result["labels_that_differ"][name]
        print(f"  {name:12} {common.in_ms(timing)}   {ratio:5.2f} x the drop-in   {other} labels differ")
    return result


def main() -> None:
    options = common.parse_arguments(__doc__)
    common.use_threads(1)
    if original is None:
        print("pydensecrf is not installed: no comparison")
    results = [measure(case, options.repeat) for case in (QUICK if options.quick else CASES)]
    common.write_results("dropin", options, {"cases": results})


if __name__ == "__main__":
    main()
