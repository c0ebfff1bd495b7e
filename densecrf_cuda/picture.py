"""One image inferred in parts: by groups of labels, or by strips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._faults import update_fault
from ._status import describe
from .footprint import ROWS_AT_A_TIME, KernelSizes, Sizes
from .inference import LatticeTerm
from .inputs import Problem
from .memory import MemoryPlan, bound_for, choose_plan, plans_of, strip_points
from .ops import lattice_filter
from .strips import Cuts, Source, StripTerm, subtract_part, survey
from .terms import PairwiseTerm
from .vertices import Vertices, join_vertices

__all__ = ["Inference", "Picture"]


@dataclass(frozen=True)
class Inference:
    """What an inference needs of a CRF beside its terms; see `DenseCRF`."""

    iterations: int
    damping: float
    tol: float  # negative: none
    output: str


@dataclass
class Picture:
    """One image and what is wanted of it."""

    problem: Problem
    index: int  # in its batch
    terms: Sequence[PairwiseTerm]
    sources: Sequence[Source]
    sizes: Sizes
    inference: Inference

    @property
    def dimensions(self) -> list[KernelSizes]:
        """Its kernels, as far as they are known before anything is counted."""
        pairs = zip(self.terms, self.sources)
        return [KernelSizes(source.dimension, 0, 0, term.normalization != "none") for term, source in pairs]

    def empty_result(self, batch: int) -> Tensor:
        """[batch, C, N], or labels [batch, N]."""
        unary = self.problem.unary
        if self.inference.output == "labels":
            return unary.new_empty((batch, self.sizes.points), dtype=torch.int64)
        return unary.new_empty((batch, *unary.shape[1:]))

    # --- plans ---

    def cuts(self, bound: int | None) -> Cuts:
        """Strips that leave most of the bound to what all strips have in common."""
        wanted = strip_points(self.sizes, self.dimensions, bound)
        return Cuts.of_about(self.problem.grid, wanted)

    def plan(self, bound: int) -> tuple[MemoryPlan, Cuts, list[Vertices]]:
        """The fastest plan that fits, and the vertices of each kernel.

        Raises:
            ValueError: none does.
        """
        least = []
        for cuts in dict.fromkeys([self.cuts(bound), self.cuts(0)]):
            plans, vertices = self.candidates(cuts, bound)
            plan = choose_plan(plans, bound)
            if plan is not None:
                return plan, cuts, vertices
            vertices.clear()
            least.append(min(plan.max_memory for plan in plans))
        raise ValueError(
            f"max_memory must be at least {min(least)} for image {self.index} of shape {self.problem.grid} with "
            f"{self.sizes.labels} labels and its kernels, got {bound}"
        )

    def candidates(self, cuts: Cuts, bound: int | None = None) -> tuple[list[MemoryPlan], list[Vertices]]:
        """All plans, once the vertices have been counted; plans that only say so where that alone exceeds the bound."""
        kernels: list[KernelSizes] = []
        vertices: list[Vertices] = []
        for known, source in zip(self.dimensions, self.sources):
            keys, partials = survey(source, cuts)
            joined = [strip.shape[0] for strip in keys]
            known = known._replace(
                vertices=sum(joined),
                partials=sum(partials),
                joined=sum(joined),
                strip_vertices=max(joined),
                strip_partials=max(partials),
            )
            counting = self.sizes.counting([*kernels, known], cuts.step)
            if bound is not None and bound_for(counting) > bound:
                return [MemoryPlan("strips", counting, 1, cuts.step, False)], vertices
            vertices.append(join_vertices(keys, partials, source.dimension))
            kernels.append(known._replace(vertices=vertices[-1].count))
        return list(plans_of(self.sizes, kernels, cuts.step)), vertices

    # --- inference ---

    def infer_by_labels(self, plan: MemoryPlan, result: Tensor) -> None:
        """Q and the logits exist for the whole picture, what the filter needs for some labels at a time."""
        terms = [term.lattice_term(self.problem) for term in self.terms]
        unary, dtype = self.problem.unary[0], self.problem.dtype
        logits = torch.empty_like(unary, dtype=dtype, memory_format=torch.contiguous_format)
        q = result if self.sizes.result_holds_q else torch.empty_like(logits)
        for iteration in range(self.inference.iterations + 1):
            torch.neg(logits.copy_(unary), out=logits)
            for term in terms if iteration else ():
                for first in range(0, len(q), plan.labels):
                    self._subtract_labels(logits, q, term, slice(first, first + plan.labels))
            moved = 0.0
            for begin in range(0, logits.shape[1], ROWS_AT_A_TIME):
                points = slice(begin, begin + ROWS_AT_A_TIME)
                own, change = self._update(logits[:, points], q[:, points] if iteration else None, 0, iteration, begin)
                q[:, points] = own
                moved = max(moved, change)
            if iteration == self.inference.iterations or (iteration and moved <= self.inference.tol):
                break
        for begin in range(0, logits.shape[1], ROWS_AT_A_TIME):
            points = slice(begin, begin + ROWS_AT_A_TIME)
            self._write(result[..., points], q[:, points], logits[:, points], iteration)

    @staticmethod
    def _subtract_labels(logits: Tensor, q: Tensor, term: LatticeTerm, part: slice) -> None:
        y = lattice_filter(
            q[None, part].mT, term.lattice, term.grid, splat_scale=term.splat_scale, slice_scale=term.slice_scale
        )
        subtract_part(logits.T, term.compat, y[0], part)

    def infer_by_strips(self, plan: MemoryPlan, cuts: Cuts, vertices: list[Vertices], result: Tensor) -> None:
        """Between iterations there are the rows of all vertices, from which the Q of a strip is made again."""
        unary, dtype, settings = self.problem.unary[0], self.problem.dtype, self.inference
        terms = [
            StripTerm(source, own, cuts, term.normalization, self._compat(term), plan.keeps_tables)
            for term, source, own in zip(self.terms, self.sources, vertices)
        ]
        for term in terms:
            term.prepare()
        kept: Tensor | None = None
        if self.sizes.keeps_q:
            in_result = self.sizes.result_holds_q and settings.output == "probabilities"
            kept = result if in_result else torch.empty_like(unary, dtype=dtype)
        rows: list[Tensor] = []
        for iteration in range(settings.iterations + 1):
            last, moved = iteration == settings.iterations, 0.0
            new = [] if last else [unary.new_zeros(own.count, len(unary), dtype=dtype) for own in vertices]
            for strip, (begin, end) in enumerate(cuts.strips()):
                change = self._visit(
                    strip, begin, end, terms, (rows, new), result, kept, iteration=iteration, group=plan.labels
                )
                moved = max(moved, change)
            if iteration and moved <= settings.tol:
                break
            rows.clear()
            for term, into in zip(terms, new):
                term.blur(into)
            rows = new

    def _visit(
        self,
        strip: int,
        begin: int,
        end: int,
        terms: list[StripTerm],
        rows: tuple[list[Tensor], list[Tensor]],
        result: Tensor,
        kept: Tensor | None,
        iteration: int,
        group: int,
    ) -> float:
        """Update one strip: slice the old rows, splat to the new; how far the most changed probability moved."""
        unary, old, new = self.problem.unary[0, :, begin:end], *rows
        visits = [term.visit(strip, begin, end) for term in terms]
        logits = unary.new_empty(end - begin, len(unary), dtype=self.problem.dtype)
        torch.neg(logits.copy_(unary.T), out=logits)
        for term, own, visit in zip(terms, old, visits):
            term.subtract_energy(logits, own, strip, visit, group)
        before = None if kept is None else kept[:, begin:end].T
        q, moved = self._update(logits, before if iteration else None, 1, iteration, begin)
        if iteration == self.inference.iterations or self.inference.tol >= 0:
            self._write(result[..., begin:end], q.T, logits.T, iteration)
        if before is not None:
            before.copy_(q)
        for term, own, visit in zip(terms, new, visits):
            term.add_splat(own, q, strip, visit, group)
        return moved

    def _compat(self, term: PairwiseTerm) -> Tensor:
        return term.energy_scale(self.problem.dtype, self.problem.device)

    def _update(
        self, logits: Tensor, before: Tensor | None, labels: int, iteration: int, first: int
    ) -> tuple[Tensor, float]:
        """Q from logits, both with the labels along an axis, and how far the most changed probability moved."""
        q = logits.softmax(labels)
        last = iteration == self.inference.iterations
        if iteration == 0 or last or self.inference.tol >= 0:
            self._check(q.select(labels, 0), iteration, first)
        if before is None or not self.sizes.keeps_q:
            return q, float("inf")
        if self.inference.damping > 0:
            q.mul_(1 - self.inference.damping).add_(before, alpha=self.inference.damping)
        return q, float((q - before).abs_().max()) if self.inference.tol >= 0 else float("inf")

    def _check(self, column: Tensor, iteration: int, first: int) -> None:
        bad = column.isnan()
        if bool(bad.any()):
            point = first + int(bad.to(torch.uint8).argmax())
            raise ValueError(describe(update_fault(iteration, point), points=self.sizes.points, image=self.index))

    def _write(self, result: Tensor, q: Tensor, logits: Tensor, iteration: int) -> None:
        if self.inference.output == "labels":
            torch.argmax(q, 0, out=result)
        elif self.inference.output == "probabilities":
            result.copy_(q)
        elif self.inference.damping > 0 and iteration > 0:
            result.copy_(q.log())
        else:
            result.copy_(logits.log_softmax(0))
