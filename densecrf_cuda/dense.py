"""The exact Gaussian filter, O(N²) in time and bounded in memory: what the permutohedral lattice approximates."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from .reference.filter import FLOATING, NORMALIZATIONS, norm_of_row_sums

# Entries of the kernel matrix that exist at a time, for all images of a batch together: 32 MiB in double.
BLOCK_ENTRIES = 1 << 22


def dense_filter(
    values: Tensor, features: Tensor, *, normalization: str = "symmetric", spatial_dims: int = 2
) -> Tensor:
    """Filter values with the exact Gaussian kernel k(n, m) = exp(-|f_n - f_m|² / 2), the term n = m included.

    With K the kernel matrix and k = K 1 its row sums: "none" y = K v; "before" y = K (n v), "after" y = n K v with
    n = 1 / (k + 1e-20); "symmetric" y = n K (n v) with n = 1 / sqrt(k + 1e-20); "homogeneous" y = K v / k.

    Args:
        values: [C, *spatial] or [B, C, *spatial], floating point.
        features: [d, *spatial] or [B, d, *spatial], in standard deviations (already divided by the bandwidths);
            without B, or with B = 1, shared by the batch.
        normalization: "none", "before", "after", "symmetric" or "homogeneous".
        spatial_dims: how many axes are spatial: 2 for images, 3 for volumes, 1 for point sets.

    Returns:
        the shape and dtype of values; half and bfloat16 are computed in float32. Differentiable, also twice, with
        respect to values and features: the backward pass recomputes the kernel instead of keeping it.

    Raises:
        ValueError: shapes that do not fit, NaN or infinite features, an unknown normalization.
        TypeError: values or features that are not floating point.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, eq. 3.

    Example:
        >>> features = torch.tensor([[[0.0, 1.0]]])
        >>> dense_filter(torch.tensor([[[1.0, 0.0]]]), features, normalization="none")
        tensor([[[1.0000, 0.6065]]])
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    x, f = _flatten(values, features, spatial_dims)
    if normalization == "none":
        return _restore(dense_product(x, f), values)
    norm = norm_of_row_sums(dense_row_sums(f), normalization)[..., None]
    if normalization in ("before", "symmetric"):
        x = norm * x
    y = dense_product(x, f)
    return _restore(y if normalization == "before" else norm * y, values)


def dense_attention_filter(values: Tensor, features: Tensor, *, spatial_dims: int = 2) -> Tensor:
    """The exact Gaussian filter divided by its row sums, as attention: y_n = sum_m softmax_m(-|f_n - f_m|² / 2) v_m.

    |f_n|² is constant in the softmax, so the logits are f_n·f_m - |f_m|²/2 = (f_n, 1)·(f_m, -|f_m|²/2): queries and
    keys of d + 1 entries, unscaled. Equal to `dense_filter` with normalization "homogeneous" up to the rounding of
    these logits, which grows with |f|²; the features are centred to keep it small.

    Args:
        values: as for `dense_filter`.
        features: as for `dense_filter`.
        spatial_dims: as for `dense_filter`.

    Returns:
        the shape and dtype of values.

    Raises:
        ValueError, TypeError: as `dense_filter`.

    Vaswani et al., "Attention is all you need", 2017, eq. 1, with this query and key.

    Example:
        >>> features = torch.tensor([[[0.0, 1.0]]])
        >>> dense_attention_filter(torch.tensor([[[1.0, 0.0]]]), features)
        tensor([[[0.6225, 0.3775]]])
    """
    x, f = _flatten(values, features, spatial_dims)
    if x.numel() == 0:
        return torch.zeros_like(values)
    centred = f - f.mean(2, keepdim=True)
    query = torch.cat([centred, torch.ones_like(centred[:, :1])], dim=1).transpose(1, 2)
    key = torch.cat([centred, -centred.square().sum(1, keepdim=True) / 2], dim=1).transpose(1, 2)

    def attend(rows: Tensor, key: Tensor, x: Tensor) -> Tensor:
        return scaled_dot_product_attention(rows[:, None], key[:, None], x[:, None], scale=1.0)[:, 0]

    return _restore(_unfold(_by_rows(attend, query, key, _fold(x, f)), x), values)


def dense_product(values: Tensor, features: Tensor) -> Tensor:
    """K values with the exact kernel, in the layout of the operators.

    Args:
        values: [B, N, C] in the dtype of features.
        features: [B', d, N] float32 or float64; B' is 1 (shared) or B.

    Returns:
        [B, N, C]

    Example:
        >>> dense_product(torch.ones(1, 2, 1), torch.zeros(1, 3, 2)).flatten()
        tensor([2., 2.])
    """
    if values.numel() == 0:
        return torch.zeros_like(values)

    def filter_rows(rows: Tensor, features: Tensor, x: Tensor) -> Tensor:
        # Differences, one dimension at a time: |f|² + |g|² - 2 f·g would cancel, [rows, N, d] would not fit.
        squared = rows.new_zeros(())
        for i in range(features.shape[2]):
            squared = squared + (rows[:, :, i, None] - features[:, None, :, i]).square()
        return torch.exp(-squared / 2) @ x

    points = features.transpose(1, 2)
    return _unfold(_by_rows(filter_rows, points, points, _fold(values, features)), values)


def dense_row_sums(features: Tensor) -> Tensor:
    """K 1 with the exact kernel, [B', N], for features [B', d, N]."""
    return dense_product(features.new_ones(features.shape[0], features.shape[2], 1), features)[..., 0]


def _by_rows(
    rows_of: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor, columns: Tensor, values: Tensor
) -> Tensor:
    """Compute a block of rows [b, rows, ·] at a time; where gradients are wanted, each is recomputed in backward."""
    size = max(1, BLOCK_ENTRIES // (columns.shape[0] * columns.shape[1]))
    blocks = rows.split(size, dim=1)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (rows, columns, values))
    if wanted and len(blocks) > 1:
        results = [
            checkpoint(rows_of, block, columns, values, use_reentrant=False, preserve_rng_state=False)
            for block in blocks
        ]
    else:
        results = [rows_of(block, columns, values) for block in blocks]
    return torch.cat(results, dim=1)


def _fold(values: Tensor, features: Tensor) -> Tensor:
    """[B, N, C] as [1, N, B*C] where the images of a batch share their features, so that K is computed once."""
    if values.shape[0] == features.shape[0]:
        return values
    return values.transpose(0, 1).reshape(1, values.shape[1], -1)


def _unfold(folded: Tensor, values: Tensor) -> Tensor:
    batch, points, channels = values.shape
    return folded.reshape(points, batch, channels).transpose(0, 1) if folded.shape[0] != batch else folded


def _flatten(values: Tensor, features: Tensor, spatial_dims: int) -> tuple[Tensor, Tensor]:
    """Values [B, N, C] and features [B', d, N] in the dtype of the computation, checked."""
    if spatial_dims < 1:
        raise ValueError(f"spatial_dims must be at least 1, got {spatial_dims}")
    for name, tensor, letter in (("values", values, "C"), ("features", features, "d")):
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{name} must be half, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.dim() not in (spatial_dims + 1, spatial_dims + 2):
            raise ValueError(
                f"{name} must be [{letter}, *spatial] or [B, {letter}, *spatial] with {spatial_dims} spatial axes, "
                f"got shape {tuple(tensor.shape)}"
            )
    grid = values.shape[-spatial_dims:]
    if features.shape[-spatial_dims:] != grid:
        raise ValueError(
            f"features must have the spatial shape of values, {tuple(grid)}, got "
            f"{tuple(features.shape[-spatial_dims:])}"
        )
    if features.device != values.device:
        raise ValueError(f"features must be on the device of values, {values.device}, got {features.device}")
    # A GPU is not asked: there NaN and infinity show as NaN in the result.
    if features.device.type == "cpu" and not torch.isfinite(features).all():
        value = features[~torch.isfinite(features)][0].item()
        raise ValueError(f"features must be finite, got {value}")
    dtype = torch.promote_types(torch.promote_types(values.dtype, features.dtype), torch.float32)
    x, f = (_to_points(tensor, spatial_dims).to(dtype) for tensor in (values, features))
    if f.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"the batch of features must be 1 or that of values, {x.shape[0]}, got {f.shape[0]}")
    return x.transpose(1, 2), f


def _to_points(tensor: Tensor, spatial_dims: int) -> Tensor:
    """[B, C, N], with B = 1 where there is no batch."""
    batched = tensor if tensor.dim() == spatial_dims + 2 else tensor[None]
    return batched.reshape(*batched.shape[:2], batched.shape[2:].numel())


def _restore(flat: Tensor, values: Tensor) -> Tensor:
    return flat.transpose(1, 2).reshape(values.shape).to(values.dtype)
