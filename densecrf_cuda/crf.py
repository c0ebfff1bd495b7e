"""DenseCRF: mean field inference in the fully connected CRF, as a module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ._faults import Report, watch
from ._status import DeviceStatus
from .inference import LatticeTerm, Term, unrolled_mean_field
from .inputs import Problem, read_problem
from .mean_field import mean_field_with_status
from .potentials import Potential, parse_normalization
from .terms import PairwiseTerm

if TYPE_CHECKING:
    from .graph import GraphedCRF

__all__ = ["DenseCRF"]

OUTPUTS = {
    "probabilities": "probabilities",
    "log_probabilities": "log_probabilities",
    "labels": "labels",
    "log-probabilities": "log_probabilities",
    "map": "labels",
}
TRAINABLE = ("weights", "compatibility", "bandwidths")
PRECISIONS = ("fp32", "fp16")


class DenseCRF(nn.Module):
    """The fully connected CRF with Gaussian edge potentials, by mean field.

    E(x) = Σ_n U_n(x_n) + Σ_{n<m} Σ_k weight_k compat_k(x_n, x_m) k_k(f_n, f_m); inference iterates
    Q ← softmax(-U - Σ_k weight_k compat_k(K_k Q)) from Q = softmax(-U), all pixels at once.

    Args:
        num_classes: C, number of labels, ≥ 1.
        kernels: `Gaussian`, `Bilateral` and `Features`, any number in any order.
        iterations: updates of Q, ≥ 0.
        normalization: of the kernels that name none: "symmetric", "none", "before", "after" or "homogeneous".
        damping: share of the old Q kept in each update, in [0, 1).
        tol: an image stops by itself after an update that changes none of its probabilities by more; None: never.
        trainable: True, or names of what becomes a parameter: "weights" (of the kernels), "compatibility",
            "bandwidths" (as log-bandwidths).
        filter: "lattice" (linear in N) or "dense" (exact, quadratic in N).
        output: "probabilities", "log_probabilities" or "labels".
        checkpoint: recompute each iteration in the backward pass instead of keeping it.
        spatial_dims: number of spatial axes, where it cannot be told from the shape of the unary: see `forward`.
        precision: "fp32", or "fp16": a GPU then stores the rows of lattice vertices in half, which is less to move,
            and adds them in float32. In measurements of the method a probability changed by 2e-6 on average, by 1e-3 to
            2e-2 at most. The CPU ignores it, and so does what gradients are wanted of.

    It runs on the device of the unary, on whichever its parameters are (moved there they are not copied at every call),
    and does not make the host wait for a GPU but as `no_sync` says.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011; trained end
    to end as in Zheng et al., "Conditional random fields as recurrent neural networks", 2015.

    Example:
        >>> from densecrf_cuda import Bilateral, Gaussian
        >>> crf = DenseCRF(2, [Gaussian(sxy=3, compat=3), Bilateral(sxy=80, srgb=13, compat=10)], iterations=5)
        >>> unary = -torch.log(torch.rand(2, 24, 32))
        >>> crf(unary, torch.randint(256, (3, 24, 32), dtype=torch.uint8)).shape
        torch.Size([2, 24, 32])
    """

    def __init__(
        self,
        num_classes: int,
        kernels: Sequence[Potential] = (),
        *,
        iterations: int = 10,
        normalization: str = "symmetric",
        damping: float = 0.0,
        tol: float | None = None,
        trainable: bool | Iterable[str] = False,
        filter: str = "lattice",
        output: str = "probabilities",
        checkpoint: bool = False,
        spatial_dims: int | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.num_classes = _whole("num_classes", num_classes, 1)
        self.iterations = _whole("iterations", iterations, 0)
        self.spatial_dims = None if spatial_dims is None else _whole("spatial_dims", spatial_dims, 1)
        if not 0 <= damping < 1:
            raise ValueError(f"damping must be in [0, 1), got {damping}")
        if tol is not None and not tol >= 0:
            raise ValueError(f"tol must not be negative, got {tol}")
        if filter not in ("lattice", "dense"):
            raise ValueError(f"filter must be 'lattice' or 'dense', got {filter!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be 'fp32' or 'fp16', got {precision!r}")
        self.damping = float(damping)
        self.tol = tol
        self.filter = filter
        self.output = _output(output)
        self.checkpoint = checkpoint
        self.precision = precision
        self._status = DeviceStatus()
        default = parse_normalization(normalization)
        names = _trainable(trainable)
        for kernel in kernels:
            if not isinstance(kernel, Potential):
                raise TypeError(f"kernels must be Gaussian, Bilateral or Features, got {type(kernel).__name__}")
        self.kernels = nn.ModuleList(PairwiseTerm(kernel, self.num_classes, default, names) for kernel in kernels)

    def forward(
        self, unary: Tensor, image: Tensor | None = None, *, output: str | None = None, iterations: int | None = None
    ) -> Tensor:
        """Infer the distribution of every pixel's label.

        Args:
            unary: energies -log p, floating: [B, C, H, W] or [C, H, W]; with `Features` alone also [C, N], [B, C, N],
                [C, D, H, W] and [B, C, D, H, W]. +infinity forbids a label. Half and bfloat16 are computed in float32.
            image: guide of `Bilateral` (and of `Features` that depend on it) on 0 to 255, uint8 or floating, any
                number of channels: [B, G, H, W] or [G, H, W]; values outside 0 to 255 are allowed.
            output: overrides that of the module.
            iterations: overrides that of the module.

        Returns:
            the shape and dtype of unary; "labels" without the axis of C, int64. Differentiable with respect to unary,
            image, features and parameters, unless labels are asked for.

        Raises:
            ValueError: shapes, batches or devices that do not fit; NaN; a bandwidth too small for the features. What
                only the data shows a GPU finds out later: that result is NaN, and the error is raised by `check`, or
                by the next call once it is known.
            TypeError: an integer unary, an image that is neither uint8 nor floating.
        """
        self._status.raise_if_known()
        result, reports = self.infer(unary, image, output=output, iterations=iterations)
        watch(self._status, reports)
        return result

    def check(self) -> None:
        """Wait for the device and raise what it found wrong in earlier calls; on the CPU they have raised it.

        Calls that torch.compile runs, or that you capture in a graph of your own, show it by NaN alone.

        Raises:
            ValueError: as `forward`.

        Example:
            >>> crf = DenseCRF(2)
            >>> q = crf(torch.zeros(2, 4, 4))
            >>> crf.check()
        """
        self._status.check()

    def compile_graph(
        self, unary: Tensor, image: Tensor | None = None, *, output: str | None = None, iterations: int | None = None
    ) -> GraphedCRF:
        """Capture the whole inference, lattices included, in a CUDA graph: one launch, for inputs of these shapes.

        Args:
            unary, image: on a GPU, of the shapes and dtypes that will come; their values do not matter.
            output, iterations: as for `forward`.

        Returns:
            what is called like this module, see `GraphedCRF`. It computes no gradients.

        Raises:
            ValueError, TypeError: inputs that are not on a GPU, or that `forward` refuses.
        """
        from .graph import GraphedCRF  # which builds on this class

        return GraphedCRF(self, unary, image, output=output, iterations=iterations)

    def infer(
        self, unary: Tensor, image: Tensor | None = None, *, output: str | None = None, iterations: int | None = None
    ) -> tuple[Tensor, list[Report]]:
        """`forward`, with what a GPU reports left to the caller."""
        output = self.output if output is None else _output(output)
        iterations = self.iterations if iterations is None else _whole("iterations", iterations, 0)
        problem = read_problem(unary, image, self.num_classes, self.kernels, self.spatial_dims)
        # Energies keep their precision: autocast would run a compatibility matrix in half.
        with torch.autocast(problem.device.type, enabled=False):
            result, reports = self._infer(problem, output, iterations)
        shape = (*problem.batch_shape, *(() if output == "labels" else (self.num_classes,)), *problem.grid)
        return result.reshape(shape), reports

    def _infer(self, problem: Problem, output: str, iterations: int) -> tuple[Tensor, list[Report]]:
        tol = -1.0 if self.tol is None else float(self.tol)
        if self.filter == "dense":
            terms: Sequence[Term] = [kernel.dense_term(problem) for kernel in self._terms()]
        else:
            terms = lattices = [kernel.lattice_term(problem) for kernel in self._terms()]
            if not self._wants_gradients(problem, lattices):
                result, status = mean_field_with_status(
                    problem.unary,
                    [term.lattice for term in lattices],
                    [term.norm for term in lattices],
                    [term.normalization for term in lattices],
                    [term.compat for term in lattices],
                    problem.grid,
                    iterations,
                    damping=self.damping,
                    tol=tol,
                    output=output,
                    precision=self.precision,
                )
                status_report = Report(status, problem.unary.shape[2])
                return result, [*(report for term in terms for report in term.reports), status_report]
        reports = [report for term in terms for report in term.reports]
        problem.check_unary()
        result = unrolled_mean_field(
            problem.unary,
            terms,
            iterations,
            damping=self.damping,
            tol=tol,
            output=output,
            checkpoint=self.checkpoint and torch.is_grad_enabled(),
            report=reports.append,
        )
        return result, reports

    def _terms(self) -> list[PairwiseTerm]:
        return [kernel for kernel in self.kernels if isinstance(kernel, PairwiseTerm)]

    @staticmethod
    def _wants_gradients(problem: Problem, terms: Sequence[LatticeTerm]) -> bool:
        tensors = [problem.unary, *(t for term in terms for t in (term.norm, term.compat, term.features))]
        return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, iterations={self.iterations}, filter={self.filter!r}"


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def _output(name: str) -> str:
    if name not in OUTPUTS:
        raise ValueError(f"output must be 'probabilities', 'log_probabilities' or 'labels', got {name!r}")
    return OUTPUTS[name]


def _trainable(trainable: bool | Iterable[str]) -> tuple[str, ...]:
    if isinstance(trainable, bool):
        return TRAINABLE if trainable else ()
    names = (trainable,) if isinstance(trainable, str) else tuple(trainable)
    for name in names:
        if name not in TRAINABLE:
            raise ValueError(f"trainable must be True, False or names among {', '.join(TRAINABLE)}, got {name!r}")
    return names
