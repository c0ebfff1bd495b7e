"""Every kernel once on small problems, for compute-sanitizer.

    python tests/gpu/sanitize_suite.py                # just runs them
    python tests/gpu/sanitize_suite.py --sanitizers   # under memcheck, racecheck, initcheck and synccheck, one by one

PyTorch's allocator is switched off, so that every tensor is an allocation of its own and what lies beyond its end is
nobody's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # read when torch is imported

import torch
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, Lattice

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
GRIDS = ((20, 35), (1, 300), (16, 16), (3, 5, 17))
DIMENSIONS = (1, 2, 3, 5, 8, 16)
CHANNELS = (1, 3, 4, 21, 40)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def guide(channels: int, *grid: int, seed: int = 0) -> Tensor:
    """[B, G, *spatial] of a few grey levels, which many points share."""
    return 40.0 * torch.randint(6, (2, channels, *grid), generator=generator(seed))


def filters() -> None:
    for dtype in (torch.float32, torch.float64):
        for d in DIMENSIONS:
            lattice = Lattice(guide(d, 20, 35).to("cuda", dtype), 60)
            for channels in CHANNELS:
                values = torch.rand(2, channels, 20, 35, generator=generator(1)).to("cuda", dtype)
                for reverse in (False, True):
                    assert lattice.filter(values, reverse=reverse).isfinite().all()
            lattice.check()
    shared = Lattice(guide(3, 20, 35)[0].cuda(), 60)
    assert shared.filter(torch.rand(4, 5, 20, 35, device="cuda").half()).isfinite().all()


def feature_gradients() -> None:
    for d in DIMENSIONS:
        features = guide(d, 20, 35).cuda().add_(torch.rand(2, d, 20, 35, generator=generator(2)).cuda())
        features.requires_grad_()
        Lattice(features, 60).filter(torch.rand(2, 5, 20, 35, device="cuda")).square().sum().backward()
        assert features.grad.isfinite().all()


def inference() -> None:
    for classes in CHANNELS:
        for grid in GRIDS:
            kernels = [Gaussian(3, 3), Bilateral(8, 20, 5), Features(guide(3, *grid)[0].cuda(), 2, bandwidth=50)]
            unary = torch.rand(2, classes, *grid, generator=generator(3)).cuda()
            image = guide(3, *grid).to("cuda", torch.uint8)
            for settings in ({}, {"precision": "fp16"}, {"tol": 1e-2, "damping": 0.3}, {"output": "labels"}):
                crf = DenseCRF(classes, kernels, iterations=3, spatial_dims=len(grid), **settings).cuda()
                crf(unary, image)
                crf.check()


def training() -> None:
    compats = (3.0, [-3.0, -2.0, -1.0], (-2 * torch.eye(3)).tolist())
    for compat in compats:
        for trainable in ((), ("weights", "compatibility"), True):
            kernels = [Gaussian(3, compat), Bilateral(8, 20, compat)]
            crf = DenseCRF(3, kernels, iterations=3, trainable=trainable).cuda()
            unary = torch.rand(2, 3, 20, 35, generator=generator(4)).cuda().requires_grad_()
            crf(unary, guide(3, 20, 35).cuda()).square().sum().backward()
            crf.check()
            assert unary.grad.isfinite().all()


def faults() -> None:
    """What is poisoned must not be read as if it were sound."""
    crf = DenseCRF(3, [Bilateral(8, 20, 5)], iterations=2).cuda()
    image = guide(3, 20, 35).cuda()
    image[1, 1, 3, 4] = torch.nan
    assert crf(torch.rand(2, 3, 20, 35, device="cuda"), image).isnan().any()
    try:
        crf.check()
    except ValueError:
        return
    raise AssertionError("a fault went unseen")


def under_sanitizers() -> int:
    """Run this file under each tool; 1 where one of them has found something."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    inside = Path(home) / "bin/compute-sanitizer"
    sanitizer = str(inside) if inside.is_file() else shutil.which("compute-sanitizer")
    if not sanitizer:
        print(f"SKIPPED: no compute-sanitizer, neither in {home}/bin nor on the PATH")
        return 0
    failed = 0
    for tool in TOOLS:
        begin = time.perf_counter()
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, __file__]
        status = subprocess.run(command).returncode
        failed |= status != 0
        print(f"{tool}: {'FAILED' if status else 'ok'}, {time.perf_counter() - begin:.0f} s", flush=True)
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--sanitizers", action="store_true", help="run under compute-sanitizer, with each of its tools")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("SKIPPED: no GPU")
        return 0
    if options.sanitizers:
        return under_sanitizers()
    for part in (filters, feature_gradients, inference, training, faults):
        begin = time.perf_counter()
        part()
        torch.cuda.synchronize()
        print(f"{part.__name__}: {time.perf_counter() - begin:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
