"""DenseCRF: mean field inference in the fully connected CRF, as a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._faults import Report, watch
from ._status import DeviceStatus
from .energies import label_energy, read_labels
from .inference import LatticeTerm, composed_inference, fused_mean_field, unrolled_mean_field, wants_gradients
from .inputs import Problem, read_problem
from .iteration import Method, Term
from .large import infer_within
from .memory import parse_max_memory
from .methods import make_method
from .potentials import Potential, parse_normalization
from .settings import FrankWolfeSettings, check_choice, parse_inference, parse_output, parse_trainable, whole_number
from .steps import InferenceStep, iterate
from .terms import PairwiseTerm, pairwise_terms, terms_of

if TYPE_CHECKING:
    from .graph import GraphedCRF

__all__ = ["DenseCRF"]


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
        inference: "mean_field"; "convergent", whose free energy never rises; or "frank_wolfe" (docs/inference.md), of
            which: regularization: "entropy", "l2" or "none"; regularization_weight: what the entropy, or half the
            squared norm, counts, > 0; step_size: in (0, 1], "decreasing" for 2 / (t + 2), or "line_search".
        precision: "fp32", or "fp16": a GPU then stores the rows of lattice vertices in half, which is less to move,
            and adds them in float32. In measurements of the method a probability changed by 2e-6 on average, by 1e-3 to
            2e-2 at most. The CPU ignores it, and so does what gradients are wanted of.
        max_memory: bytes, or text like "2GiB", that an inference may take beside its inputs and its result; what does
            not fit at once is computed by groups of labels or by strips of the picture, see `memory_plans`: the same
            result to rounding. None: no bound. Not for training, nor where a GPU may not be waited for.

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
        inference: str = "mean_field",
        regularization: str = "entropy",
        regularization_weight: float = 1.0,
        step_size: float | str = "line_search",
        max_memory: int | str | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = whole_number("num_classes", num_classes, 1)
        self.iterations = whole_number("iterations", iterations, 0)
        self.spatial_dims = None if spatial_dims is None else whole_number("spatial_dims", spatial_dims, 1)
        if tol is not None and not tol >= 0:
            raise ValueError(f"tol must not be negative, got {tol}")
        self.frank_wolfe = FrankWolfeSettings(regularization, regularization_weight, step_size)
        self.inference = parse_inference(inference, damping, self.frank_wolfe)
        self.damping = float(damping)
        self.tol = tol
        self.filter = check_choice("filter", filter, ("lattice", "dense"))
        self.output = parse_output(output)
        self.checkpoint = checkpoint
        self.precision = check_choice("precision", precision, ("fp32", "fp16"))
        self.max_memory = parse_max_memory(max_memory)
        if self.max_memory is not None and (filter, inference) != ("lattice", "mean_field"):
            raise ValueError(
                "max_memory needs filter='lattice', the exact one works in blocks of its own, and "
                f"inference='mean_field', got {filter!r} and {inference!r}"
            )
        self._status = DeviceStatus()
        default = parse_normalization(normalization)
        names = parse_trainable(trainable)
        self.kernels = pairwise_terms(kernels, self.num_classes, default, names)

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

    def steps(
        self, unary: Tensor, image: Tensor | None = None, *, iterations: int | None = None
    ) -> Iterator[InferenceStep]:
        """Infer one iteration at a time, to watch or to stop by a rule of one's own.

        Q is what `forward` returns after as many iterations: to rounding where that is one operator, which sums in
        another order (mean field on the lattice), to the bit elsewhere.

        Args:
            unary, image, iterations: as for `forward`.

        Returns:
            an iterator from iteration 0, softmax(-U), to the last; each step is computed when it is asked for, `tol` or
            not. Differentiable as `forward` is, for which every Q is kept: call it under `torch.no_grad()` to watch.

        Raises:
            ValueError, TypeError: as `forward`, at once.

        Example:
            >>> from densecrf_cuda import Gaussian
            >>> crf = DenseCRF(2, [Gaussian(sxy=2, compat=1)])
            >>> [step.free_energy.shape for step in crf.steps(torch.rand(4, 2, 8, 8), iterations=2)]
            [torch.Size([4]), torch.Size([4]), torch.Size([4])]
        """
        iterations = self.iterations if iterations is None else whole_number("iterations", iterations, 0)
        problem, terms = self._read(unary, image)
        return iterate(self._method, problem, terms, iterations, tol=self._tol, checkpoint=self.checkpoint)

    def energy(self, labels: Tensor, unary: Tensor, image: Tensor | None = None) -> Tensor:
        """The energy of a labelling, Σ_n U_n(x_n) + ½ Σ_k <X, compat_k(filter_k X)> with X the one-hot labels.

        The sum over pairs counts n = m by half, as filters do, and a Potts weight rewards labels that are equal: the
        E(x) above is this less Σ_n ½ Σ_k F_k(n, n) compat_k(x_n, x_n).

        Args:
            labels: of the shape of unary without the axis of C, integer, 0 to C - 1.
            unary, image: as for `forward`.

        Returns:
            [B], or [] where the unary has no batch, in double precision; infinity where a label is forbidden.
            Differentiable with respect to all but labels.

        Raises:
            ValueError, TypeError: as `forward`; labels that do not fit or, on the CPU, out of range: NaN on a GPU.

        Example:
            >>> from densecrf_cuda import Features
            >>> crf = DenseCRF(2, [Features(torch.zeros(1, 2), 3.0, normalization="none")], filter="dense")
            >>> crf.energy(torch.tensor([0, 0]), torch.zeros(2, 2))  # each of two pixels beside itself and the other
            tensor(-6., dtype=torch.float64)
        """
        problem, terms = self._read(unary, image)
        with problem.full_precision():
            return label_energy(problem, terms, read_labels(labels, problem)).reshape(problem.batch_shape)

    def map(self, unary: Tensor, image: Tensor | None = None, *, iterations: int | None = None) -> Tensor:
        """The most probable label of every pixel, argmax Q; the first of those that are equal.

        Args, raises:
            as `forward`.

        Returns:
            the shape of unary without the axis of C, int64.

        Example:
            >>> DenseCRF(2).map(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
            tensor([0, 1])
        """
        return self(unary, image, output="labels", iterations=iterations)

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
        output = self.output if output is None else parse_output(output)
        iterations = self.iterations if iterations is None else whole_number("iterations", iterations, 0)
        problem = read_problem(unary, image, self.num_classes, self.kernels, self.spatial_dims)
        with problem.full_precision():
            run = self._infer if self.max_memory is None else partial(infer_within, self)
            result, reports = run(problem, output, iterations)
        shape = (*problem.batch_shape, *(() if output == "labels" else (self.num_classes,)), *problem.grid)
        return result.reshape(shape), reports

    def _infer(self, problem: Problem, output: str, iterations: int) -> tuple[Tensor, list[Report]]:
        terms = self._terms(problem)
        reports = [report for term in terms for report in term.reports]
        options: dict[str, Any] = {"tol": self._tol, "output": output, "report": reports.append}
        unary, mean_field = problem.unary, self.inference == "mean_field"
        lattices = [term for term in terms if isinstance(term, LatticeTerm)]
        if mean_field and len(lattices) == len(terms) and not wants_gradients(unary, lattices):
            options |= {"damping": self.damping, "precision": self.precision}
            return fused_mean_field(unary, lattices, problem.grid, iterations, **options), reports
        problem.check_unary()
        options["checkpoint"] = self.checkpoint and torch.is_grad_enabled()
        if mean_field:
            return unrolled_mean_field(unary, terms, iterations, damping=self.damping, **options), reports
        return composed_inference(lambda start: self._method(start, terms), unary, iterations, **options), reports

    @property
    def _tol(self) -> float:
        return -1.0 if self.tol is None else float(self.tol)

    def _method(self, start: Tensor, terms: Sequence[Term]) -> Method:
        return make_method(self.inference, start, terms, self.damping, self.frank_wolfe)

    @property
    def pairwise_terms(self) -> list[PairwiseTerm]:
        """The modules of `kernels`, as what they are."""
        return terms_of(self.kernels)

    def _terms(self, problem: Problem) -> list[Term]:
        if self.filter == "dense":
            return [kernel.dense_term(problem) for kernel in self.pairwise_terms]
        return [kernel.lattice_term(problem) for kernel in self.pairwise_terms]

    def _read(self, unary: Tensor, image: Tensor | None) -> tuple[Problem, list[Term]]:
        """A problem with its terms, for what is composed of them; what a GPU has to say about them is watched."""
        self._status.raise_if_known()
        problem = read_problem(unary, image, self.num_classes, self.kernels, self.spatial_dims)
        problem.check_unary()
        with problem.full_precision():
            terms = self._terms(problem)
        watch(self._status, [*(report for term in terms for report in term.reports), *problem.report_unary()])
        return problem, terms

    def extra_repr(self) -> str:
        kind = "" if self.inference == "mean_field" else f", inference={self.inference!r}"
        return f"num_classes={self.num_classes}, iterations={self.iterations}, filter={self.filter!r}{kind}"
