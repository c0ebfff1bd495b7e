"""The CRF over any points: the class that DenseCRF2D extends."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._faults import Report, watch
from .._status import DeviceStatus
from ..mean_field import mean_field_with_status
from ._enums import KernelType, NormalizationType
from ._inputs import (
    check_type,
    read_compat,
    read_device,
    read_enum,
    read_integer,
    read_marginals,
    read_matrix,
)
from ._kernels import PairwiseKernel
from ._raster import Raster, guess_width
from ._unary import LogisticUnary, Unary, read_energy
from .eigen import MatrixXf

__all__ = ["DenseCRF"]


class DenseCRF:
    """A fully connected CRF over any points, by mean field: the class of pydensecrf.

    Args:
        nvar: N, number of points, ≥ 1.
        nlabels: C, number of labels, ≥ 1.
        device: "cpu", "cuda" or "cuda:<number>"; None takes the environment variable DENSECRF_DEVICE, else the CPU.
            Arguments and results are arrays of the host either way.

    Raises:
        ValueError, TypeError: a number out of its range, not a number, another device.
        RuntimeError: a device that is not available.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011.

    Example:
        >>> crf = DenseCRF(4, 2)
        >>> crf.setUnaryEnergy(-np.log([[0.9, 0.8, 0.4, 0.1], [0.1, 0.2, 0.6, 0.9]]))
        >>> crf.addPairwiseEnergy(np.array([[0.0, 0.1, 0.2, 3.0]]), compat=3)
        >>> np.argmax(crf.inference(5), axis=0)
        array([0, 0, 0, 1])
    """

    def __init__(self, nvar: int, nlabels: int, *, device: str | torch.device | None = None) -> None:
        self._raster = Raster((read_integer("nvar", nvar, 1),))
        self._labels = read_integer("nlabels", nlabels, 1)
        self._device = read_device(device)
        self._unary: Tensor | None = None  # [C, N]
        self._kernels: list[PairwiseKernel] = []

    def setUnaryEnergy(self, u: Any, f: Any = None) -> None:
        """Set the energies of every point's labels, in place of any that were set.

        Args:
            u: [C, N], -log p; +infinity forbids a label. With f: the weights [C, m] of a `LogisticUnary`.
            f: [m, N] or None.

        Raises:
            ValueError: another shape; NaN, -infinity, a point where all labels are forbidden.
            TypeError: what are not numbers.
        """
        if f is None:
            # The shape first: its message says what was expected.
            self._unary = read_energy(u, (self._labels, self._raster.points)).to(self._device)
        else:
            self.setUnary(LogisticUnary(u, f))

    def setUnary(self, u: Unary) -> None:
        """Set the energies from an object, which can be used again.

        Raises:
            ValueError: energies of another shape.
            TypeError: not a `Unary`.
        """
        check_type("u", u, Unary)
        wanted = (self._labels, self._raster.points)
        if tuple(u.energy.shape) != wanted:
            raise ValueError(f"Bad shape for unary energy (Need {wanted}, got {tuple(u.energy.shape)})")
        self._unary = u.energy.to(self._device)

    def addPairwiseEnergy(
        self,
        features: Any,
        compat: Any,
        kernel: KernelType = KernelType.DIAG_KERNEL,
        normalization: NormalizationType = NormalizationType.NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a kernel k = exp(-|f_n - f_m|² / 2) over any features.

        Args:
            features: [d, N], divided by their bandwidths, finite.
            compat: a number w (energy -w y, y the filtered Q: positive smooths), [C] (v y) or a matrix [C, C] (A y).
            kernel: checked, but inference is the same with all three.
            normalization: of the kernel.

        Raises:
            ValueError: another shape; features that are not finite or too large; a compat of another shape.
            TypeError: what are not numbers.
        """
        channels = read_matrix("pairwise features", features, (None, self._raster.points))
        if not len(channels):
            raise ValueError(f"features must have at least one dimension, got shape {tuple(channels.shape)}")
        if len(self._raster.shape) == 1 and not self._kernels:
            width = guess_width(channels)
            if width is not None:
                self._raster = Raster((self._raster.points // width, width))
        self._add(channels, (1.0,) * len(channels), False, compat, kernel, normalization)

    def _add(
        self,
        guide: Tensor,
        widths: tuple[float, ...],
        coordinates: bool,
        compat: Any,
        kernel: KernelType,
        normalization: NormalizationType,
    ) -> None:
        read_enum("kernel", KernelType, kernel)
        rule = read_enum("normalization", NormalizationType, normalization)
        self._kernels.append(
            PairwiseKernel(
                guide,
                widths,
                self._raster,
                coordinates=coordinates,
                compat=read_compat(compat, self._labels),
                normalization=rule.short_name,
                device=self._device,
            )
        )

    def inference(self, niter: int) -> MatrixXf:
        """Mean field: Q = softmax(-U), then niter times Q ← softmax(-U - Σ_k compat_k(K_k Q)).

        Args:
            niter: number of updates; 0 or less returns softmax(-U).

        Returns:
            Q, [C, N] in Fortran order. Without a unary all labels have the same energy.

        Raises:
            ValueError: energies that overflow.
            TypeError: not a number.
        """
        terms = [kernel.term for kernel in self._kernels]
        result, words = mean_field_with_status(
            self._raster.padded(self._energy())[None],
            [term.lattice for term in terms],
            [term.norm for term in terms],
            [term.normalization for term in terms],
            [term.compat for term in terms],
            self._raster.computed,
            max(read_integer("niter", niter), 0),
        )
        status = DeviceStatus()
        watch(status, [Report(words, result.shape[2])])
        status.check()
        q = result[0, :, : self._raster.points].cpu().numpy()
        return np.asfortranarray(q).view(MatrixXf)

    def startInference(self) -> tuple[MatrixXf, MatrixXf, MatrixXf]:
        """Q = softmax(-U) [C, N] and two empty matrices, for `stepInference`.

        Raises:
            ValueError: no unary has been set.
        """
        if self._unary is None:
            raise ValueError("startInference needs a unary, got none: call setUnaryEnergy or setUnary before")
        return self.inference(0), MatrixXf(), MatrixXf()

    def stepInference(self, Q: MatrixXf, tmp1: MatrixXf, tmp2: MatrixXf) -> None:
        """Update Q once, in place.

        Args:
            Q: [C, N], from `startInference`, `inference` or `eigen.matrixXf`.
            tmp1, tmp2: the other two matrices of `startInference`, which are left alone.

        Raises:
            ValueError: a Q of another shape, NaN or infinity in it.
            TypeError: what is not a MatrixXf.
        """
        check_type("tmp1", tmp1, MatrixXf)
        check_type("tmp2", tmp2, MatrixXf)
        q = self._read(Q)
        updated = self._logits(q)[0, : self._raster.points].softmax(1)
        np.asarray(Q)[...] = updated.cpu().numpy().T

    def klDivergence(self, Q: MatrixXf) -> float:
        """Σ Q log Q + Σ U Q + Σ_k <Q, compat_k(K_k Q)>, pydensecrf's value.

        It lacks the 1/2 of the pairwise term of the free energy, and log Z, so that it is negative as a rule.

        Args:
            Q: [C, N], from `startInference`, `stepInference`, `inference` or `eigen.matrixXf`.

        Raises:
            ValueError: a Q of another shape, NaN or infinity in it.
            TypeError: not a MatrixXf.
        """
        q = self._read(Q)
        # A forbidden label has probability 0 and energy infinity, and adds nothing.
        products = torch.where(q > 0, q * (q.clamp(min=1e-20).log() - self._logits(q)), 0)
        return float(products[:, : self._raster.points].sum(dtype=torch.float64))

    def _energy(self) -> Tensor:
        if self._unary is not None:
            return self._unary
        return torch.zeros((self._labels, self._raster.points), device=self._device)

    def _read(self, Q: MatrixXf) -> Tensor:
        """[1, points of the computed grid, C] of a matrix [C, N]."""
        q = read_marginals(Q, (self._labels, self._raster.points)).to(self._device)
        return self._raster.padded(q).T.contiguous()[None]

    def _logits(self, q: Tensor) -> Tensor:
        """-U less the energies of all kernels, [1, points of the computed grid, C] as q."""
        logits = -self._raster.padded(self._energy()).T.contiguous()[None]
        # Energies keep their precision: autocast would run a compatibility matrix in half.
        with torch.autocast(self._device.type, enabled=False):
            for kernel in self._kernels:
                logits = kernel.term.subtract(logits, q)
        return logits
