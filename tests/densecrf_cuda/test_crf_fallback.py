"""`DenseCRF` where the package has no compiled library: the reference computes, gradients included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

CODE = """
import sys, torch
from densecrf_cuda import HAS_EXTENSION, Bilateral, DenseCRF, Features, Gaussian, permutohedral_filter
generator = torch.Generator().manual_seed(0)
unary = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64)
image = 255 * torch.rand(2, 3, 9, 11, generator=generator, dtype=torch.float64)
own = Features(None, 1.0, bandwidth=50, normalization="after")
crf = DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 60, [-5.0, -4.0, -3.0]), own], iterations=3, trainable=True).double()
with torch.no_grad():
    results = [crf(unary, image), crf(unary, image, output="labels"), permutohedral_filter(unary, image, 40.0)]
leaves = [unary.requires_grad_(), image.requires_grad_(), *crf.parameters()]
results += torch.autograd.grad(crf(unary, image).square().sum(), leaves)
torch.save((HAS_EXTENSION, results), sys.argv[1])
"""


def run(folder: Path, name: str, **env: str) -> tuple[bool, list[torch.Tensor]]:
    merged = {key: value for key, value in {**os.environ, **env}.items() if value}
    subprocess.run([sys.executable, "-c", CODE, str(folder / name)], cwd=folder, env=merged, check=True)
    return torch.load(folder / name)


def test_reference_gives_the_same(without_library: str, tmp_path: Path) -> None:
    settings = {"DENSECRF_REQUIRE_EXTENSION": "", "PYTHONWARNINGS": "ignore::RuntimeWarning"}
    bare = run(tmp_path, "bare", PYTHONPATH=without_library, **settings)
    full = run(tmp_path, "full")
    assert (bare[0], full[0]) == (False, True)
    for ours, theirs in zip(full[1], bare[1]):
        assert ours.dtype == theirs.dtype
        # The same sums in double in another order; gradients by bandwidths add up the whole image.
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
