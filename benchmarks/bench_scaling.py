"""Time of an inference against the number of pixels, doubling up to four megapixels: it should grow linearly.

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --quick

Four labels, ten iterations, a Gaussian and a bilateral kernel, lattices built within the measured time. Pictures are
patches from random places of photos, so that large ones have the same mixture of surroundings, and as many vertices to
a pixel, as small ones; a detail of one photo would differ from the whole. Writes scaling.json and scaling.png to
benchmarks/results/<machine>.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common
from common import ITERATIONS, SRGB, SXY, SXY_GAUSSIAN, WEIGHT, WEIGHT_GAUSSIAN

from densecrf_cuda import Bilateral, DenseCRF, Gaussian
from densecrf_cuda.ops import lattice_build

CLASSES = 4
LARGEST = 4 << 20
PATCH = 64


def canvas(side: int) -> np.ndarray:
    """[side, side, 3] uint8: patches from random places of photos, with some noise so that no two are equal."""
    rng = np.random.default_rng(0)
    photos = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea")]
    picture = np.empty((side, side, 3), np.uint8)
    for top in range(0, side, PATCH):
        for left in range(0, side, PATCH):
            photo = photos[rng.integers(len(photos))]
            y, x = (rng.integers(size - PATCH + 1) for size in photo.shape[:2])
            picture[top : top + PATCH, left : left + PATCH] = photo[y : y + PATCH, x : x + PATCH]
    return common.add_noise(picture, 2.0, 0)


def shapes(largest: int, smallest: int = 1 << 16) -> list[tuple[int, int]]:
    """Height and width, the number of pixels doubling from smallest to largest."""
    sizes = [largest >> i for i in range(int(math.log2(largest // smallest)) + 1)][::-1]
    heights = [1 << int(math.log2(size) / 2) for size in sizes]
    return [(height, size // height) for height, size in zip(heights, sizes)]


def measure(picture: np.ndarray, repeat: int) -> dict[str, Any]:
    height, width = picture.shape[:2]
    crf = DenseCRF(CLASSES, [Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN), Bilateral(SXY, SRGB, WEIGHT)])
    unary = torch.from_numpy(common.noisy_unary(CLASSES, height, width))

    images = [common.to_tensor(common.variant(picture, r)) for r in range(-1, repeat)]

    def infer(r: int, iterations: int) -> None:
        with torch.inference_mode():
            crf(unary, images[r + 1], iterations=iterations)

    works = {"all": lambda r: infer(r, ITERATIONS), "lattices": lambda r: infer(r, 0)}
    times = common.time_paired(works, repeat)
    pixels = height * width
    guide = common.to_tensor(picture).reshape(1, 3, pixels)
    bandwidth = torch.tensor([SXY] * 2 + [SRGB] * 3)
    vertices = int(lattice_build(guide, bandwidth, [height, width], True, 4 * pixels).num_vertices)
    each, building = (1e9 * times[name]["median"] / pixels for name in ("all", "lattices"))
    print(
        f"{height:5} x {width:5} {common.in_ms(times['all'])}; a pixel: {each:4.0f} ns, {building:4.0f} of them for "
        f"the lattices, {vertices / pixels:.3f} vertices"
    )
    sizes = {"height": height, "width": width, "pixels": pixels, "bilateral_vertices": vertices}
    return {**sizes, "seconds": times["all"], "seconds_of_lattices": times["lattices"]}


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), dpi=120)
    for threads, rows in results.items():
        pixels = [row["pixels"] for row in rows]
        axes.loglog(pixels, [row["seconds"]["median"] for row in rows], "o-", label=common.threads_text(int(threads)))
        # a line of slope 1 through the point in the middle
        middle = rows[len(rows) // 2]
        rate = middle["seconds"]["median"] / middle["pixels"]
        axes.loglog(pixels, [rate * n for n in pixels], ":", color="grey", label=None if threads != "1" else "linear")
    axes.set_xlabel("pixels")
    axes.set_ylabel("seconds")
    axes.set_title(f"{ITERATIONS} iterations, {CLASSES} labels, lattices included, CPU")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    options = common.parse_arguments(__doc__, parser)
    sizes = shapes(1 << 17 if options.quick else LARGEST)
    picture = canvas(max(max(size) for size in sizes))
    results: dict[str, list[dict[str, Any]]] = {}
    for threads in options.threads:
        common.use_threads(threads)
        print(common.threads_text(threads))
        results[str(threads)] = [measure(picture[:height, :width], options.repeat) for height, width in sizes]
        # least squares in logarithms: 1 is linear
        rows = results[str(threads)]
        pixels, times = ([np.log(x) for x in xs] for xs in zip(*((r["pixels"], r["seconds"]["median"]) for r in rows)))
        print(f"time grows as pixels ** {np.polyfit(pixels, times, 1)[0]:.3f}")
    common.write_results("scaling", options, results)
    if not options.quick:
        plot(results, common.results_folder() / "scaling.png")


if __name__ == "__main__":
    main()
