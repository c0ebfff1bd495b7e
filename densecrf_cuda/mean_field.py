"""The operators of mean field: public function, fake kernel and autograd of each. Schemas are in schemas.def."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library  # noqa: F401  (registers the operators)
from .reference.build import LatticeTensors

__all__ = ["mean_field", "mean_field_unrolled"]

_ops = torch.ops.densecrf_cuda


def mean_field(
    unary: Tensor,
    lattices: Sequence[Sequence[Tensor]],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
    iterations: int,
    *,
    damping: float = 0.0,
    tol: float = -1.0,
    output: str = "probabilities",
) -> Tensor:
    """Mean field inference in one operator, for inference: gradients recompute it from `lattice_filter`.

    Q_0 = softmax(-U); Q ← damping Q + (1 - damping) softmax(-U - Σ_k compat_k(y_k)), y_k the filtered Q of term k.

    Args:
        unary: [B, C, N] energies, -log p; +infinity forbids a label. Any strides.
        lattices: one result of `lattice_build` per term, with batch 1 (shared) or B.
        norms: one [B', N] per term, which multiplies before the splat, after the slice, or both; [0] where there is
            no normalization.
        normalizations: "none", "before", "after" or "symmetric" per term.
        compats: per term a Potts weight w, [] (energy -w y), a diagonal v, [C] (energy v y), or a matrix A, [C, C]
            (energy A y).
        grid: spatial shape; N is its product.
        iterations: how many updates, ≥ 0.
        damping: share of the old Q that is kept, in [0, 1).
        tol: an image stops by itself after an update that changes no probability by more; negative: never.
        output: "probabilities", "log_probabilities" or "labels".

    Returns:
        [B, C, N] in the dtype of unary, or labels [B, N] int64.

    Raises:
        ValueError: shapes that do not fit; a unary of NaN or -infinity; a pixel where every label is forbidden.
        TypeError: a unary that is not floating, or lattices of another dtype.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, algorithm 1.

    Example:
        >>> mean_field(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), [], [], [], [], [2], 5, output="labels")
        tensor([[0, 1]])
    """
    flat = [tensor for lattice in lattices for tensor in lattice]
    return _ops.mean_field(
        unary, flat, list(norms), list(normalizations), list(compats), grid, iterations, damping, tol, output
    )


@torch.library.register_fake("densecrf_cuda::mean_field")
def _(unary: Tensor, *settings: Any) -> Tensor:
    if settings[-1] == "labels":
        return unary.new_empty(unary.shape[0], unary.shape[2], dtype=torch.int64)
    return torch.empty_like(unary, memory_format=torch.contiguous_format)


@torch.library.register_fake("densecrf_cuda::_mean_field_unrolled")
def _(unary: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    batch, channels, points = unary.shape
    dtype = torch.promote_types(unary.dtype, torch.float32)
    history = unary.new_empty((batch, settings[5], points, channels), dtype=dtype)
    return torch.empty_like(unary, memory_format=torch.contiguous_format), history


@torch.library.register_fake("densecrf_cuda::_mean_field_unrolled_backward")
def _(grad: Tensor, result: Tensor, history: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    products = history.new_empty(len(settings[3]), history.shape[3])
    return torch.empty_like(grad, memory_format=torch.contiguous_format), products


def _compose(
    unary: Tensor, tensors: Sequence[Tensor], normalizations: Sequence[str], grid: Sequence[int], **settings: Any
) -> Tensor:
    """Mean field from `lattice_filter`, with the tensors of all lattices, all norms and all compats in a row."""
    from .inference import LatticeTerm, unrolled_mean_field  # which builds on the operators here

    terms, fields = len(normalizations), len(LatticeTensors._fields)
    norms, compats = tensors[fields * terms : (fields + 1) * terms], tensors[(fields + 1) * terms :]
    composed = [
        LatticeTerm(tensors[k * fields : (k + 1) * fields], grid, norms[k], normalizations[k], compats[k])
        for k in range(terms)
    ]
    return unrolled_mean_field(unary, composed, fused=False, **settings)


def _composed_backward(ctx: Any, grad: Tensor, saved: Sequence[Tensor], **settings: Any) -> tuple[Any, ...]:
    """Gradients of unary, norms and compats through the composition; differentiable again where that is wanted."""
    again, terms = torch.is_grad_enabled(), len(ctx.normalizations)
    lattices = len(saved) - 1 - 2 * terms
    with torch.enable_grad():
        leaves = [saved[0], *saved[1 + lattices :]]
        if not again:
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        tensors = [*saved[1 : 1 + lattices], *leaves[1:]]
        result = _compose(leaves[0], tensors, ctx.normalizations, ctx.grid, **settings)
        found = iter(torch.autograd.grad(result, wanted, grad, create_graph=again, allow_unused=True))
    grads = [next(found) if leaf.requires_grad else None for leaf in leaves]
    return grads[0], [None] * lattices, grads[1 : 1 + terms], None, grads[1 + terms :], None


def _mean_field_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    unary, lattices, norms, ctx.normalizations, compats, ctx.grid, *ctx.settings = inputs
    ctx.save_for_backward(unary, *lattices, *norms, *compats)
    if not output.is_floating_point():
        ctx.mark_non_differentiable(output)


def _mean_field_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    iterations, damping, tol, output = ctx.settings
    settings = {"iterations": iterations, "damping": damping, "tol": tol, "output": output}
    return (*_composed_backward(ctx, grad, ctx.saved_tensors, **settings), *[None] * 4)


torch.library.register_autograd("densecrf_cuda::mean_field", _mean_field_backward, setup_context=_mean_field_setup)


def mean_field_unrolled(
    unary: Tensor,
    lattices: Sequence[Sequence[Tensor]],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
    iterations: int,
    *,
    logarithm: bool = False,
) -> Tensor:
    """Mean field without damping or tolerance, made for training: `mean_field` that keeps Q of every iteration.

    Args:
        unary, lattices, norms, normalizations, compats, grid, iterations: as for `mean_field`.
        logarithm: log Q instead of Q.

    Returns:
        [B, C, N] in the dtype of unary. Differentiable with respect to unary, norms and compats; those of unary, Potts
        weights and diagonals come from one operator, the rest from the composition of `lattice_filter`.

    Example:
        >>> mean_field_unrolled(torch.tensor([[[0.0, 0.0], [0.0, 0.0]]]), [], [], [], [], [2], 5)[0, 0]
        tensor([0.5000, 0.5000])
    """
    flat = [tensor for lattice in lattices for tensor in lattice]
    result, _ = _ops._mean_field_unrolled(
        unary, flat, list(norms), list(normalizations), list(compats), grid, iterations, logarithm
    )
    return result


def _unrolled_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    unary, lattices, norms, ctx.normalizations, compats, ctx.grid, ctx.iterations, ctx.logarithm = inputs
    result, history = output
    ctx.mark_non_differentiable(history)
    ctx.save_for_backward(result, history, unary, *lattices, *norms, *compats)


def _unrolled_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    result, history, *saved = ctx.saved_tensors
    terms = len(ctx.normalizations)
    first_norm = len(saved) - 2 * terms
    lattices, norms, compats = saved[1:first_norm], saved[first_norm : first_norm + terms], saved[first_norm + terms :]
    needs_compat = ctx.needs_input_grad[4]
    matrices = any(needs and compat.dim() == 2 for needs, compat in zip(needs_compat, compats))
    if torch.is_grad_enabled() or matrices or any(ctx.needs_input_grad[2]):
        output = "log_probabilities" if ctx.logarithm else "probabilities"
        grads = _composed_backward(ctx, grad, saved, iterations=ctx.iterations, output=output)
        return (*grads, None, None)
    grad_unary, products = _ops._mean_field_unrolled_backward(
        grad, result, history, lattices, norms, ctx.normalizations, compats, ctx.grid, ctx.logarithm, any(needs_compat)
    )
    # The energy of a Potts term is -w y, that of a diagonal v y.
    grad_compats = [
        (product.sum() if compat.dim() == 0 else -product).to(compat.dtype) if needs else None
        for product, compat, needs in zip(products, compats, needs_compat)
    ]
    return grad_unary, [None] * len(lattices), [None] * terms, None, grad_compats, None, None, None


torch.library.register_autograd(
    "densecrf_cuda::_mean_field_unrolled", _unrolled_backward, setup_context=_unrolled_setup
)
