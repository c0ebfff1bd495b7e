"""The operators of mean field: public function, fake kernel and autograd of each. Schemas are in schemas.def."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library  # noqa: F401  (registers the operators)
from .reference.build import LatticeTensors, check_device

__all__ = ["mean_field", "mean_field_unrolled", "mean_field_unrolled_with_status", "mean_field_with_status"]

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
    precision: str = "fp32",
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
        precision: "fp32" or "fp16", of the rows of vertices that a GPU stores; sums are formed in float32 either way.
            The CPU computes in full precision.

    Returns:
        [B, C, N] in the dtype of unary, or labels [B, N] int64.

    Raises:
        ValueError: shapes that do not fit, tensors on several devices; on the CPU also a unary of NaN or -infinity, and
            a pixel where every label is forbidden: a GPU, which nothing waits for, returns NaN instead.
        TypeError: a unary that is not floating, or lattices of another dtype.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, algorithm 1.

    Example:
        >>> mean_field(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), [], [], [], [], [2], 5, output="labels")
        tensor([[0, 1]])
    """
    terms = (lattices, norms, normalizations, compats)
    return mean_field_with_status(
        unary, *terms, grid, iterations, damping=damping, tol=tol, output=output, precision=precision
    )[0]


def mean_field_with_status(
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
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """`mean_field`, and what a GPU found wrong with each image: [B] int64, for `_status.DeviceStatus`."""
    flat = [tensor for lattice in lattices for tensor in lattice]
    terms = (flat, list(norms), list(normalizations), list(compats))
    return _ops.mean_field(unary, *terms, grid, iterations, damping, tol, output, precision)


@torch.library.register_fake("densecrf_cuda::mean_field")
def _(
    unary: Tensor, lattices: Sequence[Tensor], norms: Sequence[Tensor], _: Any, compats: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor]:
    check_device("unary", unary.device, lattices=lattices, norms=norms, compats=compats)
    *_, output, _ = rest
    if output == "labels":
        result = unary.new_empty(unary.shape[0], unary.shape[2], dtype=torch.int64)
    else:
        result = torch.empty_like(unary, memory_format=torch.contiguous_format)
    return result, _fake_status(unary)


def _fake_status(unary: Tensor) -> Tensor:
    return unary.new_empty(unary.shape[0], dtype=torch.int64)


@torch.library.register_fake("densecrf_cuda::_mean_field_unrolled")
def _(
    unary: Tensor,
    features: Sequence[Tensor],
    lattices: Sequence[Tensor],
    norms: Sequence[Tensor],
    _: Any,
    compats: Sequence[Tensor],
    grid: Any,
    iterations: int,
    *__: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    check_device("unary", unary.device, features=features, lattices=lattices, norms=norms, compats=compats)
    batch, channels, points = unary.shape
    dtype = torch.promote_types(unary.dtype, torch.float32)
    history = unary.new_empty((batch, iterations, points, channels), dtype=dtype)
    return torch.empty_like(unary, memory_format=torch.contiguous_format), history, _fake_status(unary)


@torch.library.register_fake("densecrf_cuda::_mean_field_unrolled_backward")
def _(
    grad: Tensor, result: Tensor, history: Tensor, features: Sequence[Tensor], *settings: Any
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    lattices, norms, normalizations, compats = settings[:4]
    lists = {"features": features, "lattices": lattices, "norms": norms, "compats": compats}
    check_device("grad", grad.device, result=result, history=history, **lists)
    products = history.new_empty(len(compats), history.shape[3])
    norms = [norm if name != "none" else norm.new_empty(0, grad.shape[2]) for norm, name in zip(norms, normalizations)]
    return (
        torch.empty_like(grad, memory_format=torch.contiguous_format),
        products,
        [torch.empty_like(f, memory_format=torch.contiguous_format) for f in features],
        [torch.empty_like(norm, memory_format=torch.contiguous_format) for norm in norms] if features else [],
    )


def _composed_backward(
    ctx: Any, grad: Tensor, unary: Tensor, parts: tuple[Sequence[Tensor], ...], **settings: Any
) -> tuple[Tensor | None, ...]:
    """Gradients of unary, features, norms and compats through `lattice_filter`; differentiable again where wanted."""
    from .inference import LatticeTerm, unrolled_mean_field  # which builds on the operators here

    again, terms, fields = torch.is_grad_enabled(), len(ctx.normalizations), len(LatticeTensors._fields)
    features, lattices, norms, compats = parts
    with torch.enable_grad():
        leaves = [unary, *features, *norms, *compats]
        if not again:
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        own = iter(leaves)
        unary = next(own)
        features, norms, compats = ([next(own) for _ in part] for part in (features, norms, compats))
        composed = [
            LatticeTerm(
                lattices[k * fields : (k + 1) * fields],
                ctx.grid,
                norms[k],
                ctx.normalizations[k],
                compats[k],
                features[k] if features else None,
            )
            for k in range(terms)
        ]
        result = unrolled_mean_field(unary, composed, fused=False, **settings)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(result, wanted, grad, create_graph=again, allow_unused=True))
    return tuple(next(found) if leaf.requires_grad else None for leaf in leaves)


def _split(tensors: Sequence[Any], *sizes: int) -> tuple[list[Any], ...]:
    rest = iter(tensors)
    return tuple([next(rest) for _ in range(size)] for size in sizes)


def _mean_field_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    unary, lattices, norms, ctx.normalizations, compats, ctx.grid, *ctx.settings = inputs
    ctx.sizes = (len(lattices), len(norms), len(compats))
    ctx.save_for_backward(unary, *lattices, *norms, *compats)
    ctx.mark_non_differentiable(*(tensor for tensor in output if not tensor.is_floating_point()))


def _mean_field_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    unary, *saved = ctx.saved_tensors
    lattices, norms, compats = _split(saved, *ctx.sizes)
    iterations, damping, tol, output, _ = ctx.settings
    settings = {"iterations": iterations, "damping": damping, "tol": tol, "output": output}
    grad_unary, *grads = _composed_backward(ctx, grad, unary, ([], lattices, norms, compats), **settings)
    terms = len(norms)
    return grad_unary, [None] * len(lattices), grads[:terms], None, grads[terms:], *[None] * 6


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
    features: Sequence[Tensor] = (),
    logarithm: bool = False,
) -> Tensor:
    """Mean field without damping or tolerance, made for training: `mean_field` that keeps Q of every iteration.

    Args:
        unary, lattices, norms, normalizations, compats, grid, iterations: as for `mean_field`.
        features: one [B', d, N] per term, divided by the bandwidths, named only to receive gradients; or none at all.
        logarithm: log Q instead of Q.

    Returns:
        [B, C, N] in the dtype of unary. Differentiable with respect to unary, features, norms and compats, in one
        operator; a matrix that needs a gradient, or one beside features, is composed of `lattice_filter` instead, and
        so are second derivatives.

    Example:
        >>> mean_field_unrolled(torch.tensor([[[0.0, 0.0], [0.0, 0.0]]]), [], [], [], [], [2], 5)[0, 0]
        tensor([0.5000, 0.5000])
    """
    terms = (lattices, norms, normalizations, compats)
    return mean_field_unrolled_with_status(unary, *terms, grid, iterations, features=features, logarithm=logarithm)[0]


def mean_field_unrolled_with_status(
    unary: Tensor,
    lattices: Sequence[Sequence[Tensor]],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
    iterations: int,
    *,
    features: Sequence[Tensor] = (),
    logarithm: bool = False,
) -> tuple[Tensor, Tensor]:
    """`mean_field_unrolled`, and what a GPU found wrong with each image: [B] int64, for `_status.DeviceStatus`."""
    flat = [tensor for lattice in lattices for tensor in lattice]
    terms = (flat, list(norms), list(normalizations), list(compats))
    result, _, status = _ops._mean_field_unrolled(unary, list(features), *terms, grid, iterations, logarithm)
    return result, status


def _unrolled_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    unary, features, lattices, norms, ctx.normalizations, compats, ctx.grid, ctx.iterations, ctx.logarithm = inputs
    result, history, status = output
    ctx.mark_non_differentiable(history, status)
    ctx.sizes = (len(features), len(lattices), len(norms), len(compats))
    ctx.save_for_backward(result, history, unary, *features, *lattices, *norms, *compats)


def _unrolled_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    result, history, unary, *saved = ctx.saved_tensors
    features, lattices, norms, compats = parts = _split(saved, *ctx.sizes)
    _, needs_features, _, needs_norms, _, needs_compats = ctx.needs_input_grad[:6]
    needs_filters = any(needs_features) or any(needs_norms)
    matrices = [compat.dim() == 2 and (needs or needs_filters) for compat, needs in zip(compats, needs_compats)]
    terms = len(compats)
    grad_features: Sequence[Tensor | None]
    grad_norms: Sequence[Tensor | None]
    grad_compats: Sequence[Tensor | None]
    if torch.is_grad_enabled() or any(matrices) or (needs_filters and not features):
        output = "log_probabilities" if ctx.logarithm else "probabilities"
        grad_unary, *grads = _composed_backward(ctx, grad, unary, parts, iterations=ctx.iterations, output=output)
        grad_features, grad_norms, grad_compats = _split(grads, len(features), terms, terms)
    else:
        grad_unary, products, own_features, own_norms = _ops._mean_field_unrolled_backward(
            grad,
            result,
            history,
            features if needs_filters else [],
            lattices,
            norms,
            ctx.normalizations,
            compats,
            ctx.grid,
            ctx.logarithm,
            any(needs_compats),
        )
        grad_features = [g.to(f.dtype) for g, f in zip(own_features, features)] or [None] * len(features)
        grad_norms = [g if needs else None for g, needs in zip(own_norms, needs_norms)] or [None] * terms
        # The energy of a Potts term is -w y, that of a diagonal v y.
        grad_compats = [
            (product.sum() if compat.dim() == 0 else -product).to(compat.dtype) if needs else None
            for product, compat, needs in zip(products, compats, needs_compats)
        ]
    nothing = [None] * len(lattices)
    return grad_unary, grad_features, nothing, grad_norms, None, grad_compats, None, None, None


torch.library.register_autograd(
    "densecrf_cuda::_mean_field_unrolled", _unrolled_backward, setup_context=_unrolled_setup
)
