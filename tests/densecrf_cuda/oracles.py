"""Problems whose answers others know: patterns, photos, and pydensecrf itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor


def pattern_image(height: int, width: int) -> np.ndarray:
    """Coarse patches with a little texture, from integer arithmetic: the same everywhere."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return np.ascontiguousarray((40 * (x // 4) + 30 * (y // 3) * (c + 1) + 7 * x * c + 3 * (x * y % 5)) % 256, np.uint8)


def pattern_unary(labels: int, height: int, width: int) -> np.ndarray:
    """Energies 0, 0.5, ..., 3 in a pattern of their own for every label."""
    c, y, x = np.meshgrid(np.arange(labels), np.arange(height), np.arange(width), indexing="ij")
    return ((x * (c + 2) + 3 * y * (c + 1)) % 7 / 2).reshape(labels, -1).astype(np.float32)


def photo(name: str, height: int, width: int) -> np.ndarray:
    """A picture that scikit-image brings along, thinned out to [height, width, 3] uint8."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    full = getattr(data, name)()
    rows, cols = (np.arange(size) * full.shape[i] // size for i, size in enumerate((height, width)))
    return np.ascontiguousarray(full[rows][:, cols, :3])


def refine_with_pydensecrf(
    unary: np.ndarray,
    image: np.ndarray,
    bandwidths: Sequence[Sequence[float]],
    compats: Sequence[Any],
    normalization: str,
    iterations: int,
) -> np.ndarray:
    """Q [C, N] of pydensecrf."""
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    height, width = image.shape[:2]
    name = "NO_NORMALIZATION" if normalization == "none" else f"NORMALIZE_{normalization.upper()}"
    crf = densecrf.DenseCRF2D(width, height, len(unary))
    crf.setUnaryEnergy(unary)
    for bandwidth, compat in zip(bandwidths, compats):
        options = {"compat": compat if np.isscalar(compat) else np.array(compat, np.float32)}
        options["normalization"] = getattr(densecrf, name)
        sxy, srgb = bandwidth[:2], bandwidth[2:]
        if srgb:
            crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, **options)
        else:
            crf.addPairwiseGaussian(sxy=sxy, **options)
    return np.array(crf.inference(iterations)).reshape(len(unary), -1)


def assert_same(q: Tensor, expected: np.ndarray, atol: float = 1e-4) -> None:
    """1e-4: both sum in float32, in different orders, and ten iterations amplify it (measured: up to 4e-5)."""
    np.testing.assert_allclose(q.numpy(), expected, rtol=0, atol=atol)
    best = np.sort(expected, axis=0)
    sure = best[-1] - best[-2] > 1e-3
    np.testing.assert_array_equal(q.numpy().argmax(0)[sure], expected.argmax(0)[sure])
