"""Inference within a bound of memory, image by image where the batch does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._faults import Report
from ._library import has_splat_plan
from ._waiting import may_wait
from .footprint import Sizes
from .inputs import Problem, read_problem
from .memory import MemoryPlan, fits_in_any_case, parse_max_memory
from .picture import Inference, Picture
from .strips import Source

if TYPE_CHECKING:
    from .crf import DenseCRF

__all__ = ["infer_within", "memory_plans"]


@torch.compiler.disable
def infer_within(crf: DenseCRF, problem: Problem, output: str, iterations: int) -> tuple[Tensor, list[Report]]:
    """The inference of a CRF, in no more than its `max_memory` beside inputs and result.

    Returns:
        [B, C, N] or labels [B, N], and what a GPU reports where nothing had to be cut.

    Raises:
        ValueError: no plan fits; gradients are wanted; a GPU may not be waited for; what `DenseCRF.forward` refuses,
            at once on any device.
    """
    assert crf.max_memory is not None
    pictures = _pictures(crf, problem, output, iterations)
    with torch.no_grad():
        batch = len(pictures)
        if not batch or fits_in_any_case(pictures[0].sizes, pictures[0].dimensions, batch, crf.max_memory):
            return crf._infer(problem, output, iterations)
        results: Tensor | None = None
        reports: list[Report] = []
        for b, picture in enumerate(pictures):
            plan, cuts, vertices = picture.plan(crf.max_memory)
            if plan.kind != "strips":
                vertices.clear()
            if plan.kind == "whole" and batch == 1:
                return crf._infer(picture.problem, output, iterations)
            results = picture.empty_result(batch) if results is None else results
            if plan.kind == "whole":
                whole, own = crf._infer(picture.problem, output, iterations)
                results[b] = whole[0]
                reports += own
            elif plan.kind == "labels":
                picture.infer_by_labels(plan, results[b])
            else:
                picture.infer_by_strips(plan, cuts, vertices, results[b])
        assert results is not None
        return results, reports


def memory_plans(
    crf: DenseCRF, unary: Tensor, image: Tensor | None = None, *, max_memory: int | str | None = None
) -> list[MemoryPlan]:
    """The ways to run an inference, the fastest first, with the memory that each takes; `max_memory=` chooses by them.

    It counts the vertices of the picture, which takes about as long as two or three iterations.

    Args:
        crf, unary, image: as for `DenseCRF.forward`. Of a batch the image that takes most counts: those that do not
            fit together are inferred one by one.
        max_memory: strips are made so small that they fit this bound; None: as large as is of use.

    Returns:
        plans with their bytes beside inputs and result, by the formula of docs/memory.md.

    Raises:
        ValueError, TypeError: as `DenseCRF.forward`.

    Example:
        >>> from densecrf_cuda import DenseCRF, Gaussian
        >>> plans = memory_plans(DenseCRF(4, [Gaussian(3)]), torch.zeros(4, 100, 100))
        >>> plans[0].kind, plans[-1].kind
        ('whole', 'strips')
    """
    bound = parse_max_memory(max_memory)
    problem = read_problem(unary, image, crf.num_classes, crf.kernels, crf.spatial_dims)
    with torch.no_grad():
        candidates = []
        for picture in _pictures(crf, problem, crf.output, crf.iterations):
            cuts = picture.cuts(bound)
            candidates.append(picture.candidates(cuts)[0])
    return [max(plans, key=lambda plan: plan.nbytes) for plans in zip(*candidates)]


def _pictures(crf: DenseCRF, problem: Problem, output: str, iterations: int) -> list[Picture]:
    """The images of a problem, one by one."""
    terms = crf.pairwise_terms
    guides = [term.guide(problem) for term in terms]
    wanted = [problem.unary, *crf.parameters(), *(tensor for pair in guides for tensor in pair)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted):
        raise ValueError(
            "max_memory is for inference, but gradients are wanted: call the CRF under torch.no_grad(), or train "
            "without max_memory"
        )
    if not may_wait(problem.device):
        raise ValueError("max_memory waits for the GPU to count vertices, which no_sync and a captured graph forbid")
    dtype = problem.dtype
    sizes = Sizes(
        points=problem.unary.shape[2],
        labels=problem.unary.shape[1],
        itemsize=dtype.itemsize,
        keeps_q=crf.damping > 0 or crf.tol is not None,
        result_holds_q=output != "labels" and problem.unary.dtype == dtype,
        converts=problem.unary.dtype != dtype,
        copies_result=problem.unary.shape[0] > 1,
        cuda=has_splat_plan(problem.device),
    )
    pictures = []
    for b in range(problem.unary.shape[0]):
        image = None if problem.image is None else problem.image[b : b + 1]
        sources = [
            Source(guide[b if guide.shape[0] > 1 else 0], bandwidth, term.coordinates)
            for term, (guide, bandwidth) in zip(terms, guides)
        ]
        one = replace(problem, unary=problem.unary[b : b + 1], image=image)
        pictures.append(Picture(one, b, terms, sources, sizes, Inference(iterations, crf.damping, crf._tol, output)))
    return pictures
