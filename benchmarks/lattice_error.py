"""How far the permutohedral lattice is from the Gaussian it approximates, ours beside pydensecrf's.

Prints two tables in Markdown: one of single filters (row sums K 1 and masks filtered with symmetric normalization),
one of Q after ten iterations of mean field. Both sides of a row see the same photo, bandwidths and masks; "exact" is
the dense formula in float64. Photos come with scikit-image and are averaged down, so that the N × N kernel fits.

    python benchmarks/lattice_error.py            # 60 × 80 pixels, a minute
    python benchmarks/lattice_error.py --height 90 --width 120
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import skimage.data
import torch
from torch import Tensor

import densecrf_cuda  # noqa: F401  registers the operators
from densecrf_cuda import reference
from densecrf_cuda.reference.geometry import lattice_features

try:
    import pydensecrf.densecrf as pydensecrf
except ImportError:  # no release for this Python: its columns stay empty
    pydensecrf = None

PHOTOS = ("astronaut", "coffee", "chelsea")
# Bandwidths of x, y (and red, green, blue).
KERNELS: tuple[tuple[float, ...], ...] = (
    (3.0, 3.0),
    (10.0, 10.0),
    (80.0, 80.0, 13.0, 13.0, 13.0),
    (160.0, 160.0, 3.0, 3.0, 3.0),
    (50.0, 50.0, 3.0, 3.0, 3.0),
    (30.0, 30.0, 13.0, 13.0, 13.0),
    (20.0, 20.0, 30.0, 30.0, 30.0),
    (10.0, 10.0, 6.0, 6.0, 6.0),
)
WEIGHTS = (3.0, 10.0)  # of the Gaussian and of the bilateral kernel
ITERATIONS = 10
CONFIDENCE = 0.8  # of the masks as a unary
OPS: Any = torch.ops.densecrf_cuda if hasattr(torch.ops.densecrf_cuda, "lattice_build") else reference


def load_photo(name: str, grid: tuple[int, int]) -> Tensor:
    """[3, H, W] uint8, averaged down from a bundled photo."""
    photo = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(photo, grid, mode="area")[0].round().to(torch.uint8)


def draw_masks(photo: Tensor) -> Tensor:
    """[3, N] of zeros and ones: what is bright, the left half, a disc."""
    height, width = photo.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grey = photo.double().mean(0)
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 3) ** 2
    return torch.stack([grey > grey.median(), x < width / 2, disc]).double().flatten(1)


def features_of(photo: Tensor, bandwidth: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Guide [1, G, N] of a kernel and its features [N, d] in float64."""
    guide = photo.flatten(1)[None, : len(bandwidth) - 2]
    scales = torch.tensor(bandwidth, dtype=torch.float64)
    return guide, lattice_features(guide, scales, photo.shape[1:], True)[0].T


class Kernel(ABC):
    """K, with what is made of it: symmetric filtering n K (n v), n = 1 / sqrt(K 1), and mean field."""

    def __init__(self, photo: Tensor, bandwidth: Sequence[float]) -> None:
        self.points = photo[0].numel()

    @abstractmethod
    def apply(self, values: Tensor) -> Tensor:
        """K values, [C, N] to [C, N]."""

    def row_sums(self) -> Tensor:
        return self.apply(torch.ones(1, self.points, dtype=torch.float64))[0]

    def filter(self, values: Tensor) -> Tensor:
        norm = self.row_sums().rsqrt()
        return norm * self.apply(norm * values)

    @classmethod
    def infer(cls, photo: Tensor, unary: Tensor, bandwidths: Sequence[Sequence[float]]) -> Tensor:
        """Q [C, N] after ITERATIONS."""
        kernels = [cls(photo, bandwidth) for bandwidth in bandwidths]
        q = (-unary).softmax(0)
        for _ in range(ITERATIONS):
            q = (-unary + sum(weight * kernel.filter(q) for weight, kernel in zip(WEIGHTS, kernels))).softmax(0)
        return q


class Exact(Kernel):
    """The kernel matrix itself, in float64."""

    def __init__(self, photo: Tensor, bandwidth: Sequence[float]) -> None:
        super().__init__(photo, bandwidth)
        _, features = features_of(photo, bandwidth)
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        self.kernel = torch.exp(-distances.square() / 2)

    def apply(self, values: Tensor) -> Tensor:
        return values @ self.kernel


class Ours(Kernel):
    """The lattice of this package, in float32."""

    def __init__(self, photo: Tensor, bandwidth: Sequence[float]) -> None:
        super().__init__(photo, bandwidth)
        self.grid = list(photo.shape[1:])
        guide, _ = features_of(photo, bandwidth)
        capacity = self.points * (len(bandwidth) + 1)
        self.lattice = list(OPS.lattice_build(guide, torch.tensor(bandwidth), self.grid, True, capacity))

    def apply(self, values: Tensor) -> Tensor:
        x = values.T[None].float().contiguous()
        return OPS.lattice_filter(x, None, None, None, self.lattice, self.grid, False)[0].T.double()


class Pydensecrf(Kernel):
    """pydensecrf, which shows no filter: with Q = (v, 0) and no unary one step leaves log Q_0 - log Q_1 = w K v."""

    def __init__(self, photo: Tensor, bandwidth: Sequence[float]) -> None:
        super().__init__(photo, bandwidth)
        self.photo, self.bandwidth = photo, bandwidth

    @staticmethod
    def add(crf: Any, photo: Tensor, bandwidth: Sequence[float], weight: float, normalization: Any) -> None:
        options = {"compat": weight, "normalization": normalization}
        if len(bandwidth) > 2:
            image = np.ascontiguousarray(photo.permute(1, 2, 0).numpy())
            crf.addPairwiseBilateral(sxy=bandwidth[:2], srgb=bandwidth[2:], rgbim=image, **options)
        else:
            crf.addPairwiseGaussian(sxy=bandwidth, **options)

    def step(self, values: Tensor, weight: float, normalization: Any) -> Tensor:
        height, width = self.photo.shape[1:]
        crf = pydensecrf.DenseCRF2D(width, height, 2)
        crf.setUnaryEnergy(np.zeros((2, self.points), np.float32))
        self.add(crf, self.photo, self.bandwidth, weight, normalization)
        state = crf.startInference()
        q = np.asarray(state[0])
        q[0], q[1] = values.numpy(), 0
        crf.stepInference(*state)
        log_q = torch.from_numpy(q.copy()).double().log()
        return (log_q[0] - log_q[1]) / weight

    def apply(self, values: Tensor) -> Tensor:
        # Rows sum to thousands, so a small weight keeps Q_1 from underflowing.
        return torch.stack([self.step(value, 0.01, pydensecrf.NO_NORMALIZATION) for value in values])

    def filter(self, values: Tensor) -> Tensor:
        return torch.stack([self.step(value, 1.0, pydensecrf.NORMALIZE_SYMMETRIC) for value in values])

    @classmethod
    def infer(cls, photo: Tensor, unary: Tensor, bandwidths: Sequence[Sequence[float]]) -> Tensor:
        crf = pydensecrf.DenseCRF2D(photo.shape[2], photo.shape[1], len(unary))
        crf.setUnaryEnergy(np.ascontiguousarray(unary.numpy(), np.float32))
        for bandwidth, weight in zip(bandwidths, WEIGHTS):
            cls.add(crf, photo, bandwidth, weight, pydensecrf.NORMALIZE_SYMMETRIC)
        return torch.from_numpy(np.array(crf.inference(ITERATIONS))).double()


def spread(errors: Sequence[Tensor]) -> str:
    """Mean and maximum over photos, pixels and masks."""
    joined = torch.stack(list(errors)).abs()
    return f"{joined.mean():.4f} | {joined.max():.3f}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def filter_rows(grid: tuple[int, int], sides: dict[str, type[Kernel]]) -> list[list[str]]:
    rows = []
    for bandwidth in KERNELS:
        ratios: dict[str, list[Tensor]] = {side: [] for side in sides}
        errors: dict[str, list[Tensor]] = {side: [] for side in sides}
        for name in PHOTOS:
            photo = load_photo(name, grid)
            masks, exact = draw_masks(photo), Exact(photo, bandwidth)
            for side, make in sides.items():
                kernel = make(photo, bandwidth)
                ratios[side].append(kernel.row_sums() / exact.row_sums())
                errors[side].append(kernel.filter(masks) - exact.filter(masks))
        for side in sides:
            ratio = torch.stack(ratios[side])
            span = f"{ratio.mean():.3f} | {ratio.min():.2f} to {ratio.max():.2f}"
            rows.append([str(len(bandwidth)), ", ".join(f"{s:g}" for s in bandwidth), side, span, spread(errors[side])])
    return rows


def inference_rows(grid: tuple[int, int], sides: dict[str, type[Kernel]]) -> list[list[str]]:
    rows = []
    for bilateral in (kernel for kernel in KERNELS if len(kernel) == 5):
        bandwidths = (KERNELS[0], bilateral)
        errors: dict[str, list[Tensor]] = {side: [] for side in sides}
        changed: dict[str, list[Tensor]] = {side: [] for side in sides}
        for name in PHOTOS:
            photo = load_photo(name, grid)
            masks = draw_masks(photo)
            unary = -(CONFIDENCE * masks / masks.sum(0).clamp(min=1) + (1 - CONFIDENCE) / len(masks)).log()
            exact = Exact.infer(photo, unary, bandwidths)
            for side, make in sides.items():
                q = make.infer(photo, unary, bandwidths)
                errors[side].append(q - exact)
                changed[side].append((q.argmax(0) != exact.argmax(0)).double())
        for side in sides:
            other = f"{100 * torch.stack(changed[side]).mean():.2f} %"
            rows.append([", ".join(f"{s:g}" for s in bilateral), side, spread(errors[side]), other])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=60)
    parser.add_argument("--width", type=int, default=80)
    options = parser.parse_args()
    grid = (options.height, options.width)
    sides: dict[str, type[Kernel]] = {"densecrf_cuda": Ours}
    if pydensecrf is not None:
        sides["pydensecrf"] = Pydensecrf
    print(
        f"{', '.join(PHOTOS)} at {grid[0]} × {grid[1]}; operators: {'reference' if OPS is reference else 'registered'}"
    )
    print_table(
        "One filter: row sums as a share of the exact ones, and the error of filtered masks (0 or 1), symmetric",
        ["d", "bandwidth", "", "row sums, mean", "from, to", "mask error, mean", "maximum"],
        filter_rows(grid, sides),
    )
    print_table(
        "Q after ten iterations: Gaussian 3 (weight 3) and a bilateral kernel (weight 10), symmetric, three labels",
        ["bilateral bandwidth", "", "error of Q, mean", "maximum", "other label"],
        inference_rows(grid, sides),
    )


if __name__ == "__main__":
    main()
