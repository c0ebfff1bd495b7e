"""`mean_field`: inference in the dense CRF."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .build import check_device
from .checks import TENSORS, check_mean_field, check_terms
from .filter import Plan, _lattice_feature_grad, apply, make_plan


def mean_field(
    unary: Tensor,
    lattices: Sequence[Tensor],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
    iterations: int,
    damping: float,
    tol: float,
    output: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Mean-field inference: Q_0 = softmax(-U), Q <- damping Q + (1 - damping) softmax(-U - sum_k compat_k(y_k)).

    y_k = n_k · K_k (n_k · Q) is the filtered Q; "before" leaves out the outer n, "after" the inner, "none" both.

    Args:
        unary: [B, C, N] energies -log p, floating point; +inf forbids a label, which then has probability 0.
        lattices: the eleven tensors of `lattice_build` for the first kernel, then those for the second, ...
        norms: one [B', N] a kernel, in raster order, as `normalization_scale` gives; not read where "none".
        normalizations: "none", "before", "after" or "symmetric" for each kernel.
        compats: one a kernel: [] Potts weight w, energy -w y; [C] diagonal v, energy +v y; [C, C] A, energy +A y.
        grid: spatial shape, N = its product.
        iterations: >= 0.
        damping: share of the old Q that stays, in [0, 1).
        tol: an image stops after the iteration in which max |Q_new - Q_old| <= tol; negative for never.
        output: "probabilities", "log_probabilities" or "labels" (the first label of largest probability).
        precision: "fp32" or "fp16", of what a GPU stores by vertex; nothing here.

    Returns:
        [B, C, N] in the dtype of unary, or labels [B, N] int64; and the status [B] int64, zeros: what a GPU would
        report there raises an error here.

    Raises:
        ValueError: wrong shapes or ranges; a unary that is NaN or -inf; a pixel whose labels are all forbidden.
        TypeError: an integer unary; a lattice not of its dtype (float32 for half and bfloat16).

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011,
    algorithm 1.

    Example:
        >>> from densecrf_cuda.reference import lattice_build, normalization_scale
        >>> lattice = lattice_build(torch.zeros(1, 0, 3), torch.tensor([1.0]), (3,), True, 12)
        >>> norm = normalization_scale(lattice, (3,), "symmetric")
        >>> unary = torch.tensor([[[0.0, 0.3, 0.0], [2.0, 0.0, 2.0]]])
        >>> mean_field(unary, lattice, [norm], ["symmetric"], [torch.tensor(3.0)], (3,), 5, 0.0, -1.0, "labels", "fp32")
        (tensor([[0, 0, 0]]), tensor([0]))
    """
    settings = (lattices, norms, normalizations, compats, grid)
    return _run(unary, *settings, iterations, damping, tol, output, precision)[0], _no_fault(unary)


def _run(
    unary: Tensor,
    lattices: Sequence[Tensor],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
    iterations: int,
    damping: float,
    tol: float,
    output: str,
    precision: str = "fp32",
) -> tuple[Tensor, list[Tensor]]:
    """The result of `mean_field`, and Q before each iteration, [B, N, C]."""
    kernels = check_terms(lattices, norms, normalizations, compats)
    check_mean_field(unary, kernels, norms, normalizations, compats, grid, iterations, damping, output, precision)
    if unary.numel() == 0:
        return _empty(unary, output), []

    dtype = torch.promote_types(unary.dtype, torch.float32)
    plans = [make_plan(lattice, grid) for lattice in kernels]
    energy = unary.to(dtype).transpose(1, 2)
    logits = -energy
    q = logits.softmax(2)
    active = torch.ones(len(q), 1, 1, dtype=torch.bool, device=q.device)
    history = []
    for _ in range(iterations):
        history.append(q)
        new_logits = -energy
        for plan, norm, normalization, compat in zip(plans, norms, normalizations, compats, strict=True):
            new_logits = new_logits - _message(plan, norm.to(dtype), normalization, compat.to(dtype), q)
        new_q = damping * q + (1 - damping) * new_logits.softmax(2) if damping else new_logits.softmax(2)
        new_q = torch.where(active, new_q, q)
        logits = torch.where(active, new_logits, logits)
        if tol >= 0:
            active = active & ((new_q - q).abs().amax((1, 2), keepdim=True) > tol)
        q = new_q
        if not active.any():
            break
    if output == "labels":
        return q.argmax(2), history
    if output == "log_probabilities":
        # With damping Q is no softmax of any logits at hand; a probability that underflows is then -inf.
        q = q.log() if damping and iterations else logits.log_softmax(2)
    return q.transpose(1, 2).to(unary.dtype).contiguous(), history


def _mean_field_unrolled(
    unary: Tensor,
    features: Sequence[Tensor],
    lattices: Sequence[Tensor],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
    iterations: int,
    logarithm: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Q or log Q after the iterations, [B, C, N]; Q before each of them, [B, iterations, N, C]; and the status."""
    check_device("unary", unary.device, features=features)
    output = "log_probabilities" if logarithm else "probabilities"
    settings = (lattices, norms, normalizations, compats, grid)
    result, history = _run(unary, *settings, iterations, 0.0, -1.0, output)
    if history:
        return result, torch.stack(history, 1), _no_fault(unary)
    batch, channels, points = unary.shape
    dtype = torch.promote_types(unary.dtype, torch.float32)
    return result, unary.new_empty((batch, iterations, points, channels), dtype=dtype), _no_fault(unary)


def _mean_field_unrolled_backward(
    grad: Tensor,
    result: Tensor,
    history: Tensor,
    features: Sequence[Tensor],
    lattices: Sequence[Tensor],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
    logarithm: bool,
    wants_products: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The adjoint of `_mean_field_unrolled`.

    Gradient of the unary; per term, where wanted, the sums over points and iterations of (K^T grad_logits) · Q; and
    where features are given, their gradients and those of the norms.
    """
    lists = {"features": features, "lattices": lattices, "norms": norms, "compats": compats}
    check_device("grad", grad.device, result=result, history=history, **lists)
    dtype = history.dtype
    g, q = grad.to(dtype).transpose(1, 2), result.to(dtype).transpose(1, 2)
    grad_logits = g - q.exp() * g.sum(2, keepdim=True) if logarithm else _softmax_gradient(q, g)
    total = grad_logits
    products = history.new_zeros(len(compats), history.shape[3])
    swapped = {"before": "after", "after": "before"}
    terms = _terms(lattices, norms, normalizations, compats, grid)
    grad_features = [torch.zeros_like(f) for f in features]
    grad_norms = [torch.zeros_like(norm if norm.dim() == 2 else norm.new_empty(0, grad.shape[2])) for norm in norms]
    for t in reversed(range(history.shape[1])):
        q, g = history[:, t], torch.zeros_like(total)
        for k, (plan, norm, normalization, compat) in enumerate(terms):
            filtered = _filtered(plan, norm.to(dtype), swapped.get(normalization, normalization), grad_logits, True)
            if wants_products:
                products[k] += (filtered * q).sum((0, 1))
            transposed = (compat.mT if compat.dim() == 2 else compat).to(dtype)
            g = g - _energy(transposed, filtered)
            if features:
                lattice = lattices[k * TENSORS : (k + 1) * TENSORS]
                grad_y = -_energy(transposed, grad_logits)
                into = (grad_features[k], grad_norms[k])
                _add_filter_gradients(into, plan, norm.to(dtype), normalization, q, grad_y, features[k], lattice, grid)
        grad_logits = _softmax_gradient(q, g)
        total = total + grad_logits
    grad_unary = -total.transpose(1, 2).to(grad.dtype).contiguous()
    return grad_unary, products, grad_features, grad_norms if features else []


def _add_filter_gradients(
    into: tuple[Tensor, Tensor],
    plan: Plan,
    norm: Tensor,
    normalization: str,
    q: Tensor,
    grad_y: Tensor,
    features: Tensor,
    lattice: Sequence[Tensor],
    grid: Sequence[int],
) -> None:
    """Add the gradients of features and norm of y = n_out K (n_in q) to the two tensors."""
    grad_features, grad_norm = into
    splatted = norm[..., None] * q if normalization in ("before", "symmetric") else q
    sliced = norm[..., None] * grad_y if normalization in ("after", "symmetric") else grad_y
    grad_features += _lattice_feature_grad(splatted, sliced, features, lattice, grid, False)
    parts = []
    if normalization in ("after", "symmetric"):
        parts.append((grad_y * apply(plan, splatted, False)).sum(2))
    if normalization in ("before", "symmetric"):
        parts.append((q * apply(plan, sliced, True)).sum(2))
    for part in parts:
        grad_norm += part.sum(0, keepdim=True) if norm.shape[0] == 1 else part


def _softmax_gradient(q: Tensor, grad: Tensor) -> Tensor:
    return q * (grad - (q * grad).sum(2, keepdim=True))


def _terms(
    lattices: Sequence[Tensor],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
) -> list[tuple[Plan, Tensor, str, Tensor]]:
    plans = [make_plan(kernel, grid) for kernel in check_terms(lattices, norms, normalizations, compats)]
    return list(zip(plans, norms, normalizations, compats, strict=True))


def _message(plan: Plan, norm: Tensor, normalization: str, compat: Tensor, q: Tensor) -> Tensor:
    """compat(filter(Q)), an energy, [B, N, C]."""
    return _energy(compat, _filtered(plan, norm, normalization, q, False))


def _filtered(plan: Plan, norm: Tensor, normalization: str, q: Tensor, reverse: bool) -> Tensor:
    y = norm[..., None] * q if normalization in ("before", "symmetric") else q
    y = apply(plan, y.to(plan.weights.dtype), reverse).to(q.dtype)
    return norm[..., None] * y if normalization in ("after", "symmetric") else y


def _energy(compat: Tensor, filtered: Tensor) -> Tensor:
    if compat.dim() == 0:
        return -compat * filtered
    return compat * filtered if compat.dim() == 1 else filtered @ compat.T


def _no_fault(unary: Tensor) -> Tensor:
    return unary.new_zeros(unary.shape[0], dtype=torch.int64)


def _empty(unary: Tensor, output: str) -> Tensor:
    if output != "labels":
        return torch.zeros_like(unary, memory_format=torch.contiguous_format)
    if unary.shape[1] == 0 and unary.shape[0] * unary.shape[2] > 0:
        raise ValueError(f"labels need at least one label to choose from, got unary of shape {tuple(unary.shape)}")
    return unary.new_zeros((unary.shape[0], unary.shape[2]), dtype=torch.int64)
