"""What each kind of inference reaches in ten iterations, and how long it takes.

A photo that scikit-image brings along, averaged down; three classes by brightness, in coarse patches of which a fifth
are wrong, as a unary. Prints a table in Markdown: the free energy of Q and the energy of its labels after the last
iteration, the iterations in which the free energy rose, and the time of a whole inference, lattices included.

    python benchmarks/inference_quality.py                      # 180 × 240 pixels, some seconds
    python benchmarks/inference_quality.py --compat -4 -12      # labels that repel
    python benchmarks/inference_quality.py --eigenvalues        # of the lattice's matrix, which should not be negative
"""

import argparse
import statistics
import time
from itertools import pairwise
from typing import Any

import skimage.data
import torch
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, Lattice, unary_from_labels

METHODS: dict[str, dict[str, Any]] = {
    "mean field": {},
    "mean field, damping 0.5": {"damping": 0.5},
    "convergent": {"inference": "convergent"},
    "Frank-Wolfe, entropy, line search": {"inference": "frank_wolfe"},
    "Frank-Wolfe, entropy, 2 / (t + 2)": {"inference": "frank_wolfe", "step_size": "decreasing"},
    "Frank-Wolfe, l2, line search": {"inference": "frank_wolfe", "regularization": "l2"},
    "Frank-Wolfe, l2, steps of 0.5": {"inference": "frank_wolfe", "regularization": "l2", "step_size": 0.5},
    "Frank-Wolfe, none, line search": {"inference": "frank_wolfe", "regularization": "none"},
}
ITERATIONS = 10
REPEATS = 5


def make_problem(name: str, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Unary [3, H, W] and photo [3, H, W] uint8."""
    photo = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(photo, grid, mode="area")[0].round().to(torch.uint8)
    coarse = torch.nn.functional.interpolate(photo.mean(1, keepdim=True), (grid[0] // 8, grid[1] // 8), mode="area")
    labels = torch.bucketize(coarse[0, 0], torch.tensor([70.0, 150.0]))
    wrong = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    labels = torch.where(wrong, (labels + 1) % 3, labels)
    full = torch.nn.functional.interpolate(labels[None, None].float(), grid, mode="nearest")[0, 0].long()
    return unary_from_labels(full, 3, 0.6), image


def seconds(crf: DenseCRF, unary: Tensor, image: Tensor) -> float:
    """The median of some runs, after one to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        crf(unary, image)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def print_eigenvalues(normalization: str) -> None:
    """Extreme eigenvalues of (F + Fᵀ) / 2 for the lattice's filter F, plus diag(δ) with "after", on small photos."""
    height, width = 30, 40
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    print("| photo | bandwidths | least | largest |\n|---|---|---:|---:|")
    for name in ("astronaut", "coffee", "chelsea"):
        image = make_problem(name, (height, width))[1].double()
        for bandwidths in ([3.0] * 2, [80.0, 80.0, 13.0, 13.0, 13.0], [10.0, 10.0, 6.0, 6.0, 6.0]):
            lattice = Lattice(torch.cat([x[None], y[None], image])[: len(bandwidths)], bandwidths)
            identity = torch.eye(height * width, dtype=torch.float64).reshape(-1, height, width)
            filtered = lattice.filter(identity, normalization).flatten(1).T
            matrix = (filtered + filtered.T) / 2
            if normalization == "after":
                root = lattice.norm("after")[0].sqrt()
                matrix += torch.diag((matrix.sum(1) - filtered @ root / root).clamp_min(0))
            values = torch.linalg.eigvalsh(matrix)
            print(f"| {name} | {', '.join(f'{b:g}' for b in bandwidths)} | {values[0]:.1e} | {values[-1]:.3f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", default="astronaut", help="of skimage.data")
    parser.add_argument("--height", type=int, default=180)
    parser.add_argument("--width", type=int, default=240)
    parser.add_argument("--normalization", default="symmetric")
    parser.add_argument("--compat", type=float, nargs=2, default=(3, 10), help="Potts weights of the two kernels")
    parser.add_argument("--eigenvalues", action="store_true", help="print these instead")
    arguments = parser.parse_args()
    if arguments.eigenvalues:
        print_eigenvalues(arguments.normalization)
        return
    unary, image = make_problem(arguments.photo, (arguments.height, arguments.width))
    kernels = [Gaussian(3, arguments.compat[0]), Bilateral(40, 13, arguments.compat[1])]
    print("| inference | free energy | energy of the labels | rises | time |\n|---|---:|---:|---:|---:|")
    for name, settings in METHODS.items():
        crf = DenseCRF(3, kernels, iterations=ITERATIONS, normalization=arguments.normalization, **settings)
        steps = list(crf.steps(unary.double(), image))
        free = [step.free_energy.item() for step in steps]
        rises = sum(after > before + 1e-6 for before, after in pairwise(free))
        energy = crf.energy(steps[-1].q.argmax(0), unary, image).item()
        print(f"| {name} | {free[-1]:.0f} | {energy:.0f} | {rises} | {1e3 * seconds(crf, unary, image):.0f} ms |")


if __name__ == "__main__":
    main()
