"""Commands run in this process, the files they need, and the answers of the Python package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import photo
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian

# Modules that import this one are skipped where they would find nothing to test.
for package in ("typer", "tqdm", "PIL"):
    pytest.importorskip(package, reason='the command line is not installed: pip install "densecrf_cuda[cli]"')

from PIL import Image  # noqa: E402
from typer.testing import CliRunner, Result  # noqa: E402

from densecrf_cuda.cli.app import app  # noqa: E402

SIZE = (36, 48)


def invoke(*arguments: object) -> Result:
    """Run `densecrf` with these arguments, on the CPU unless they say otherwise."""
    words = [str(argument) for argument in arguments]
    if words[0] in ("refine", "segment", "compare") and "--device" not in words:
        words += ["--device", "cpu"]  # whose numbers are the same bits for any batch
    return CliRunner().invoke(app, words)


def succeed(*arguments: object) -> Result:
    """Run `densecrf` where nothing may go wrong."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refuse(*arguments: object) -> str:
    """Run `densecrf` where the command is wrong; its one line on stderr."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def save_photo(path: Path, name: str = "astronaut", size: tuple[int, int] = SIZE) -> np.ndarray:
    """Write a photo as PNG; [H, W, 3] uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = photo(name, *size)
    Image.fromarray(array).save(path)
    return array


def coarse_classes(num_classes: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Patches of classes 0..C-1, [H, W], every class among them."""
    y, x = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    return (y // 9 * 2 + x // 11) % num_classes


def random_scores(num_classes: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Logits [C, H, W] float32."""
    return np.random.default_rng(0).normal(size=(num_classes, *size)).astype(np.float32)


def infer(unary: Tensor, image: np.ndarray, output: str = "labels", **settings: Any) -> np.ndarray:
    """What the Python package says, with the kernels that are the command's defaults."""
    kernels = settings.pop("kernels", [Gaussian(3, 3), Bilateral(80, 13, 10)])
    crf = DenseCRF(unary.shape[0], kernels, **settings)
    guide = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return crf(unary, guide, output=output).numpy()


def pixels(path: Path) -> np.ndarray:
    """A picture's numbers as they are stored."""
    with Image.open(path) as picture:
        return np.array(picture)
