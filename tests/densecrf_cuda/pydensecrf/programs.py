"""Programs for pydensecrf, run with any module of its interface, and what their results must agree to."""

from __future__ import annotations

from typing import Any, NamedTuple

import float64_model
import numpy as np
import pytest
from oracles import pattern_image, pattern_unary

from densecrf_cuda.pydensecrf import densecrf as dropin
from densecrf_cuda.pydensecrf import utils

FORMS: dict[str, Any] = {
    "potts": 3.0,
    "diagonal": [-2.0, -4.0, -3.0, -2.5, -2.0],
    "matrix": (np.diag([-3.0] * 5) + np.diag([1.0] * 4, 1) + np.diag([0.5] * 3, -2)).tolist(),
}


class Program(NamedTuple):
    """A picture with two kernels; `dimensions` 2 is written with DenseCRF2D, another number with DenseCRF."""

    shape: tuple[int, ...]
    labels: int = 3
    normalization: int = 3
    form: str = "potts"
    kernel: int = 1
    dimensions: int = 2

    @property
    def points(self) -> int:
        return int(np.prod(self.shape))

    @property
    def unary(self) -> np.ndarray:
        return pattern_unary(self.labels, *self._plane)

    @property
    def image(self) -> np.ndarray:
        """No pixel is black: then the points that pydensecrf fills up with would add no vertices."""
        return np.maximum(pattern_image(*self._plane), 45)

    @property
    def _plane(self) -> tuple[int, int]:
        return self.points // self.shape[-1], self.shape[-1]

    @property
    def compat(self) -> Any:
        """Of every kernel; rows of a kernel that is not normalized sum to dozens."""
        full = np.array(FORMS[self.form], np.float32)[tuple([slice(self.labels)] * np.ndim(FORMS[self.form]))]
        scaled = full / np.float32(1 if self.normalization else 40)
        return scaled if scaled.ndim else float(scaled)

    @property
    def features(self) -> list[np.ndarray]:
        """Those of the two kernels, [d, N]: (x, y, channels) with DenseCRF2D, else (first axis, ..., channels)."""
        channels = self.image.reshape(*self.shape, 3)
        axes = len(self.shape)
        smooth = utils.create_pairwise_gaussian((3,) * axes, self.shape)
        bilateral = utils.create_pairwise_bilateral((12,) * axes, (40, 30, 50), channels, axes)
        if self.dimensions == 2:
            smooth, bilateral = smooth[[1, 0]], bilateral[[1, 0, 2, 3, 4]]
        return [smooth, bilateral]

    def build(self, module: Any, **options: Any) -> Any:
        """The CRF of a module, ready for inference."""
        settings = {"compat": self.compat, "kernel": self.kernel, "normalization": self.normalization}
        if self.dimensions == 2:
            crf = module.DenseCRF2D(self.shape[1], self.shape[0], self.labels, **options)
            crf.setUnaryEnergy(self.unary)
            crf.addPairwiseGaussian(sxy=3, **settings)
            crf.addPairwiseBilateral(sxy=12, srgb=(40, 30, 50), rgbim=self.image, **settings)
        else:
            crf = module.DenseCRF(self.points, self.labels, **options)
            crf.setUnaryEnergy(self.unary)
            for features in self.features:
                crf.addPairwiseEnergy(features, **settings)
        return crf

    def exact(self, iterations: int) -> np.ndarray:
        """Q of the model in float64."""
        kernels = [(features, self.compat, self.normalization) for features in self.features]
        return float64_model.infer(self.unary, kernels, iterations)


def original() -> Any:
    return pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (Python <= 3.12 only)")


def assert_same_marginals(ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> None:
    """Equal to 1e-4, or twice pydensecrf's own error: both sum in float32, in orders that differ."""
    tolerance = max(1e-4, 2 * float(np.abs(theirs - exact).max()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
    best = np.sort(theirs, axis=0)
    clear = best[-1] - best[-2] > 1e-3 if len(best) > 1 else np.ones(theirs.shape[1], bool)
    np.testing.assert_array_equal(ours.argmax(0)[clear], theirs.argmax(0)[clear])


def run(program: Program, device: Any = "cpu", iterations: int = 10) -> np.ndarray:
    """Q of the drop-in."""
    return np.array(program.build(dropin, device=device).inference(iterations))
