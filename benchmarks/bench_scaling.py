"""Time of an inference against the number of pixels, doubling up to four megapixels: it should grow linearly.

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --quick

Four labels, ten iterations, a Gaussian and a bilateral kernel, lattices built within the measured time. Pictures are
cut from one large mosaic of photos at their own size, so that a pixel's surroundings are the same in all of them.
Writes scaling.json and scaling.png to benchmarks/results/<machine>.
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

CLASSES = 4
LARGEST = 4 << 20


def canvas(side: int) -> np.ndarray:
    """[side, side, 3] uint8: photos in rows, each mirrored in turn, with some noise so that no two places are equal."""
    photos = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea")]
    rows, i = [], 0
    while sum(row.shape[0] for row in rows) < side:
        tiles: list[np.ndarray] = []
        while sum(tile.shape[1] for tile in tiles) < side:
            tiles.append(photos[i % 3][:300, :: (-1) ** i])
            i += 1
        rows.append(np.concatenate(tiles, 1)[:, :side])
    return common.add_noise(np.concatenate(rows)[:side], 2.0, 0)


def shapes(largest: int, smallest: int = 1 << 14) -> list[tuple[int, int]]:
    """Height and width, the number of pixels doubling from smallest to largest."""
    sizes = [largest >> i for i in range(int(math.log2(largest // smallest)) + 1)][::-1]
    heights = [1 << int(math.log2(size) / 2) for size in sizes]
    return [(height, size // height) for height, size in zip(heights, sizes)]


def measure(picture: np.ndarray, repeat: int) -> dict[str, Any]:
    height, width = picture.shape[:2]
    crf = DenseCRF(CLASSES, [Gaussian(SXY_GAUSSIAN, WEIGHT_GAUSSIAN), Bilateral(SXY, SRGB, WEIGHT)])
    unary = torch.from_numpy(common.noisy_unary(CLASSES, height, width))

    def infer(r: int) -> None:
        with torch.inference_mode():
            crf(unary, common.to_tensor(common.variant(picture, r)), iterations=ITERATIONS)

    timing = common.time_paired({"ours": infer}, repeat)["ours"]
    pixels = height * width
    each = 1e9 * timing["median"] / pixels
    print(f"{height:5} x {width:5} {pixels:8} pixels {common.in_ms(timing)} {each:7.0f} ns each")
    return {"height": height, "width": width, "pixels": pixels, "seconds": timing}


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
        logs = [(math.log(row["pixels"]), math.log(row["seconds"]["median"])) for row in results[str(threads)]]
        print(f"time grows as pixels ** {np.polyfit(*zip(*logs), 1)[0]:.3f}")
    common.write_results("scaling", options, results)
    if not options.quick:
        plot(results, common.results_folder() / "scaling.png")


if __name__ == "__main__":
    main()
