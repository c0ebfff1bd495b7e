"""Forward and backward through ten iterations of mean field, against autograd through the reference in plain PyTorch.

    python benchmarks/bench_backward.py
    python benchmarks/bench_backward.py --quick

Both sides are the same module; on the reference side it is composed step by step and every operator is replaced by its
plain twin of the same name in `densecrf_cuda.reference`, through which autograd finds its own way back. Gradients are
compared before anything is timed. "parameters" asks for the gradients of the unary, the weights and the
compatibilities, "everything" for those of the bandwidths too. Lattices are built within the measured time.
"""

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common
from common import ITERATIONS, SRGB, SXY, SXY_GAUSSIAN, WEIGHT, WEIGHT_GAUSSIAN

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, reference
from densecrf_cuda.inference import unrolled_mean_field

COMPOSED = partial(unrolled_mean_field, fused=False)
TOLERANCE = 1e-3  # of a gradient, relative to its largest entry: float32 through ten iterations


class Case(NamedTuple):
    width: int
    height: int
    classes: int


CASES = [Case(160, 120, 21), Case(250, 188, 21)]
QUICK = [Case(60, 40, 5)]
TRAINABLE = {"parameters": ("weights", "compatibility"), "everything": ("weights", "compatibility", "bandwidths")}


class Side:
    """A CRF with what one step of training needs."""

    def __init__(self, case: Case, trainable: tuple[str, ...], plain: bool, weigh: Tensor) -> None:
        # Weights that leave labels undecided, so that gradients do not vanish.
        kernels = [Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN / 10), Bilateral(SXY, SRGB, WEIGHT / 10)]
        self.crf = DenseCRF(case.classes, kernels, iterations=ITERATIONS, trainable=trainable)
        self.plain, self.weigh = plain, weigh

    def step(self, unary: Tensor, image: Tensor) -> dict[str, Tensor]:
        """One forward and backward pass; the gradients by name."""
        unary = unary.detach().requires_grad_()
        self.crf.zero_grad()
        with ExitStack() as stack:
            if self.plain:
                stack.enter_context(patch("densecrf_cuda.ops._ops", reference))
                stack.enter_context(patch("densecrf_cuda.crf.unrolled_mean_field", COMPOSED))
            (self.crf(unary, image) * self.weigh).sum().backward()
        leaves = {"unary": unary, **dict(self.crf.named_parameters())}
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def check_equal(sides: dict[str, Side], unary: Tensor, image: Tensor) -> float:
    """The largest relative difference of a gradient; ends the run where that is more than rounding."""
    ours, plain = (side.step(unary, image) for side in sides.values())
    worst = max(((ours[k] - plain[k]).abs().max() / plain[k].abs().max()).item() for k in plain)
    if worst > TOLERANCE:
        sys.exit(f"the two sides do not agree: a gradient differs by {worst:.1e} of its largest entry")
    return worst


def measure(case: Case, asked: str, repeat: int) -> dict[str, Any]:
    image = common.photo("astronaut", case.height, case.width)
    images = [common.to_tensor(common.variant(image, r)) for r in range(-1, repeat)]
    unary = torch.from_numpy(common.noisy_unary(case.classes, case.height, case.width))
    weigh = torch.randn(unary.shape, generator=torch.Generator().manual_seed(0))
    sides = {name: Side(case, TRAINABLE[asked], name == "reference", weigh) for name in ("ours", "reference")}
    worst = check_equal(sides, unary, images[0])
    works = {name: (lambda r, side=side: side.step(unary, images[r + 1])) for name, side in sides.items()}
    times = common.time_paired(works, repeat)
    ratio = times["reference"]["median"] / times["ours"]["median"]
    print(
        f"{case.width} x {case.height}, {case.classes} classes, {asked:10}: ours {common.in_ms(times['ours'])}, "
        f"reference {common.in_ms(times['reference'])}, {ratio:.1f} x (gradients differ by {worst:.0e})"
    )
    result = {**case._asdict(), "gradients": asked, "threads": torch.get_num_threads()}
    return result | {"largest_difference": worst, "seconds": times, "speedup": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    options = common.parse_arguments(__doc__, parser)
    results = []
    for threads in options.threads:
        common.use_threads(threads)
        print(common.threads_text(threads))
        for case in QUICK if options.quick else CASES:
            results += [measure(case, asked, options.repeat) for asked in TRAINABLE]
    common.write_results("backward", options, results)


if __name__ == "__main__":
    main()
