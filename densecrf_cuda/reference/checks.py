"""What `mean_field` refuses."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .build import LatticeTensors, check_device
from .filter import FLOATING, NORMALIZATIONS, check_lattice

OUTPUTS = ("probabilities", "log_probabilities", "labels")
PRECISIONS = ("fp32", "fp16")
TENSORS = len(LatticeTensors._fields)


def check_terms(
    lattices: Sequence[Tensor], norms: Sequence[Tensor], normalizations: Sequence[str], compats: Sequence[Tensor]
) -> list[LatticeTensors]:
    """The lattice of every term, where the lists are as long as each other."""
    kernels = len(compats)
    if len(lattices) != TENSORS * kernels:
        raise ValueError(f"lattices must hold {TENSORS} tensors for each of {kernels} kernels, got {len(lattices)}")
    if len(norms) != kernels or len(normalizations) != kernels:
        raise ValueError(
            f"norms and normalizations must hold one entry for each of {kernels} kernels, got {len(norms)} and "
            f"{len(normalizations)}"
        )
    return [LatticeTensors(*lattices[i : i + TENSORS]) for i in range(0, len(lattices), TENSORS)]


def check_mean_field(
    unary: Tensor,
    kernels: Sequence[LatticeTensors],
    norms: Sequence[Tensor],
    normalizations: Sequence[str],
    compats: Sequence[Tensor],
    grid: Sequence[int],
    iterations: int,
    damping: float,
    output: str,
    precision: str,
) -> None:
    """Everything that `mean_field` refuses."""
    _check_settings(iterations, damping, output, precision)
    lattices = [tensor for lattice in kernels for tensor in lattice]
    check_device("unary", unary.device, lattices=lattices, norms=norms, compats=compats)
    for lattice in kernels:
        check_lattice(lattice, grid)
    _check_unary(unary, kernels, grid)
    for norm, normalization, compat in zip(norms, normalizations, compats, strict=True):
        _check_kernel(unary, norm, normalization, compat)


def _check_settings(iterations: int, damping: float, output: str, precision: str) -> None:
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be in [0, 1), got {damping}")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def _check_unary(unary: Tensor, kernels: Sequence[LatticeTensors], grid: Sequence[int]) -> None:
    if unary.dtype not in FLOATING:
        raise TypeError(f"unary must be half, bfloat16, float32 or float64, got {unary.dtype}")
    if unary.dim() != 3 or unary.shape[2] != math.prod(grid):
        raise ValueError(f"unary must be [B, C, {math.prod(grid)}] for grid {tuple(grid)}, got {tuple(unary.shape)}")
    for lattice in kernels:
        expected = torch.promote_types(unary.dtype, torch.float32)
        if lattice.weights.dtype != expected:
            raise TypeError(
                f"a unary of {unary.dtype} needs lattices of {expected}, got one of {lattice.weights.dtype}"
            )
        if lattice.weights.shape[0] not in (1, unary.shape[0]):
            shared = lattice.weights.shape[0]
            raise ValueError(f"the batch of every lattice must be 1 or that of unary, {unary.shape[0]}, got {shared}")
    for name, bad in (("NaN", unary.isnan()), ("-inf", unary.isneginf())):
        if bad.any():
            b, c, n = bad.nonzero()[0].tolist()
            raise ValueError(f"unary must not be {name}, got {name} for label {c} of point {n} of image {b}")
    forbidden = unary.isposinf().all(1) if unary.shape[1] else unary.new_zeros((1, 1), dtype=torch.bool)
    if forbidden.any():
        b, n = forbidden.nonzero()[0].tolist()
        raise ValueError(f"unary must leave a label allowed, got +inf for every label of point {n} of image {b}")


def _check_kernel(unary: Tensor, norm: Tensor, normalization: str, compat: Tensor) -> None:
    batch, labels, points = unary.shape
    if normalization not in NORMALIZATIONS[:4]:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS[:4])}, got {normalization!r}")
    if normalization != "none" and (norm.dim() != 2 or norm.shape[0] not in (1, batch) or norm.shape[1] != points):
        raise ValueError(f"norm must be [1 or {batch}, {points}], got shape {tuple(norm.shape)}")
    if tuple(compat.shape) not in ((), (labels,), (labels, labels)):
        raise ValueError(f"compat must be [], [{labels}] or [{labels}, {labels}], got shape {tuple(compat.shape)}")
