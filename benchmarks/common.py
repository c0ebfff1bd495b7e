"""What the benchmarks share: paired timing, memory, facts of the machine, pictures, and results as JSON.

Sides that are compared take turns in one process, on the same inputs, which change from repetition to repetition, so
that no cache can hide the construction of a lattice. Times are medians with the interquartile range (IQR) beside them.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from densecrf_cuda import _C
from densecrf_cuda.ops import LatticeTensors

FOLDER = Path(__file__).resolve().parent
SXY_GAUSSIAN, SXY, SRGB = 3.0, 80.0, 13.0
WEIGHT_GAUSSIAN, WEIGHT = 3.0, 10.0
ITERATIONS = 10
SOURCES = (":/csrc", ":/densecrf_cuda", ":/setup.py")  # for git, from the root of the checkout
PACKAGES = ("densecrf_cuda", "torch", "numpy", "pydensecrf2", "scikit-image")


def parse_arguments(doc: str | None, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """--quick and --repeat, which every benchmark has."""
    parser = parser or argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = doc
    parser.add_argument("--quick", action="store_true", help="small inputs, nothing written: shows that it runs")
    parser.add_argument("--repeat", type=int, default=7, help="repetitions, at least 5 (default: %(default)s)")
    options = parser.parse_args()
    if options.repeat < 5:
        parser.error("--repeat must be at least 5")
    return options


# --- time and memory --------------------------------------------------------------------------------------------------


def use_threads(count: int) -> None:
    """Set the number of threads and let them start, so that no measurement pays for it."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
        torch.ones(1 << 20).mul_(2)


def time_paired(
    works: Mapping[str, Callable[[int], object]], repeat: int, threads: Mapping[str, int] | None = None
) -> dict[str, dict[str, Any]]:
    """Seconds of each work, called with the number of the repetition; sides take turns, and so does who is first.

    Args:
        works: by name; a first round, with repetition -1, warms up and is not counted.
        repeat: counted rounds.
        threads: of each work, where they differ.

    Returns:
        by name: median and IQR in seconds, and every run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(-1, repeat):
        names = list(works) if repetition % 2 else list(works)[::-1]
        for name in names:
            use_threads(threads[name] if threads else torch.get_num_threads())
            begin = time.perf_counter()
            works[name](repetition)
            elapsed = time.perf_counter() - begin
            if repetition >= 0:
                seconds[name].append(elapsed)
    return {name: summarize(runs) for name, runs in seconds.items()}


def summarize(runs: list[float]) -> dict[str, Any]:
    low, _, high = statistics.quantiles(runs, n=4)
    return {"median": statistics.median(runs), "iqr": high - low, "runs": [round(run, 6) for run in runs]}


def threads_text(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def in_ms(result: Mapping[str, Any]) -> str:
    return f"{1e3 * result['median']:9.1f} ms ± {1e3 * result['iqr'] / 2:.1f}"


def peak_rise(work: Callable[[], object]) -> int:
    """By how many bytes a call raises the peak of resident memory above what was resident before it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _status_bytes("VmRSS")
        work()
        return _status_bytes("VmHWM") - before
    except OSError:  # no procfs, or not writable: the peak since the start of the process
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1])  # type: ignore[index]


def in_fresh_process(*arguments: str) -> Any:
    """What a benchmark script prints as JSON in a process of its own."""
    output = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def copy_bandwidth(threads: int, size: int = 1 << 28) -> float:
    """Bytes per second, read and written, of a copy much larger than the caches: best of ten."""
    use_threads(threads)
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - begin)
    return 2 * size / best


# --- bytes that a lattice filter has to move --------------------------------------------------------------------------


def row_bytes(channels: int) -> int:
    """Bytes of one padded float32 row: 1, 2, 4 or a multiple of 8 channels."""
    return 4 * next((small for small in (1, 2, 4) if channels <= small), -(-channels // 8) * 8)


def filter_bytes(lattice: LatticeTensors, channels: int) -> int:
    """Least traffic of splat, gather, blur and slice beyond the caches of a core; input and output rows not counted.

    Partials are written and read, every vertex row is written once and in each of the d + 1 blurs read and written, the
    slice reads the rows that a tile touches; the tables of points are read by splat and slice.
    """
    points, corners = lattice.weights.shape[0] * lattice.weights.shape[1], lattice.weights.shape[2]
    vertices, partials = int(lattice.num_vertices), int(lattice.tile_offsets[-1])
    rows = 3 * partials + vertices * (1 + 2 * corners)
    return rows * row_bytes(channels) + 2 * points * (6 * corners + 2) + 8 * vertices * corners + 16 * partials


def mean_field_bytes(lattices: list[LatticeTensors], channels: int, iterations: int = ITERATIONS) -> int:
    """Least traffic of the inference: unary read, logits written once and read each time, filters, result written."""
    points = lattices[0].weights.shape[0] * lattices[0].weights.shape[1]
    logits, norms = points * row_bytes(channels), 8 * points * len(lattices)
    each = logits + norms + sum(filter_bytes(lattice, channels) for lattice in lattices)
    return 8 * points * channels + logits + iterations * each


# --- pictures ---------------------------------------------------------------------------------------------------------


def photo(name: str, height: int, width: int) -> np.ndarray:
    """[H, W, 3] uint8: a photo bundled with scikit-image, resized."""
    picture = Image.fromarray(getattr(skimage.data, name)())
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC))


def mosaic(height: int, width: int) -> np.ndarray:
    """[H, W, 3] uint8: photos side by side at twice their size, with the noise that enlarging took away."""
    halves = [photo("astronaut", height, width // 2), photo("coffee", height, width - width // 2)]
    return add_noise(np.concatenate(halves, 1), 4.0, 0)


def add_noise(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def variant(image: np.ndarray, repetition: int) -> np.ndarray:
    """The image of a repetition: another shift and another mirroring each time, C-contiguous."""
    shifted = np.roll(image, (17 * repetition, 29 * repetition), (0, 1))
    return np.ascontiguousarray(shifted[:, :: -1 if repetition % 2 else 1])


def noisy_unary(classes: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """[C, H, W] float32 energies: a patchwork of labels under noise, as from a coarse network."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, classes, (height // 40 + 1, width // 40 + 1))
    labels = patches.repeat(40, 0).repeat(40, 1)[:height, :width]
    p = rng.random((classes, height, width), dtype=np.float32)
    np.put_along_axis(p, labels[None], np.take_along_axis(p, labels[None], 0) + 1, 0)
    return -np.log(np.maximum(p / p.sum(0), 1e-5))


def to_tensor(image: np.ndarray) -> Tensor:
    """[3, H, W] uint8 from [H, W, 3]."""
    return torch.from_numpy(image).permute(2, 0, 1)


# --- results ----------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Everything that a time depends on besides the program."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def git(*arguments: str) -> str:
        try:
            command = ["git", "-C", str(FOLDER), *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    return {
        "processor": name[1] if name else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": _C.instruction_sets,
        "capability_asked_for": os.environ.get("DENSECRF_CPU_CAPABILITY"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": _C.compiler,
        "cuda_of_the_build": _C.cuda_version,
        "versions": {package: version(package) for package in PACKAGES},
        "commit": git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", *SOURCES) else ""),
        "date": datetime.date.today().isoformat(),
    }


def results_folder() -> Path:
    """benchmarks/results/<processor>-<cores>."""
    facts = machine()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{facts['processor']}-{facts['cores']}-cores".lower()).strip("-")
    folder = FOLDER / "results" / slug
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_results(name: str, options: argparse.Namespace, results: Any) -> None:
    """Write results/<machine>/<name>.json, unless the run was only a quick one."""
    if options.quick:
        print("quick run: nothing written")
        return
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    report = {"command": command, "machine": machine(), "repeat": options.repeat, "results": results}
    path = results_folder() / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {path}")
