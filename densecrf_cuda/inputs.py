"""What a user hands to the CRF, checked and brought to one layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._faults import Report, feature_fault, unary_fault

__all__ = ["Problem", "read_problem"]


@dataclass
class Problem:
    """One call of the CRF.

    Attributes:
        unary: [B, C, N], contiguous or not.
        image: [B, G, N], or None.
        image_argument: the image as it was given.
        grid: spatial shape, N its product.
        batch_shape: () or (B,), as the unary came.
    """

    unary: Tensor
    image: Tensor | None
    image_argument: Tensor | None
    grid: tuple[int, ...]
    batch_shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return torch.float64 if self.unary.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.unary.device

    def full_precision(self) -> AbstractContextManager[Any]:
        """What keeps autocast out: it would run a compatibility matrix, of energies, in half."""
        if self.device.type == "meta":  # which has no autocast
            return nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    def require_image(self, kernel: Callable[[], str]) -> Tensor:
        """The image [B, G, N], for a kernel that filters over it; what that is called only an error needs to know."""
        if self.image is None:
            raise ValueError(f"{kernel()} needs an image, got none")
        return self.image

    def read_features(self, features: Any) -> Tensor:
        """Features [d, *spatial] or [B, d, *spatial] as [B', d, N]."""
        if not isinstance(features, Tensor):
            raise TypeError(f"features must be a torch.Tensor, got {type(features).__name__}")
        if not (features.is_floating_point() or features.dtype == torch.uint8):
            raise TypeError(f"features must be floating or uint8, got {features.dtype}")
        if features.device != self.unary.device:
            raise ValueError(f"features must be on the device of unary, {self.unary.device}, got {features.device}")
        dims = len(self.grid)
        if features.dim() - dims not in (1, 2) or tuple(features.shape[-dims:]) != self.grid:
            raise ValueError(
                f"features must be [d, *spatial] or [B, d, *spatial] with the spatial shape of unary, {self.grid}, got "
                f"{tuple(features.shape)}"
            )
        batched = features if features.dim() == dims + 2 else features[None]
        if batched.shape[0] not in (1, self.unary.shape[0]):
            raise ValueError(
                f"the batch of features must be 1 or that of unary, {self.unary.shape[0]}, got {batched.shape[0]}"
            )
        return batched.flatten(2)

    def check_unary(self) -> None:
        """Refuse a unary that no distribution follows from; a GPU is not asked, it reports."""
        if torch.compiler.is_compiling() or self.device.type != "cpu":
            return
        for name, bad in (("NaN", self.unary.isnan()), ("-infinity", self.unary.isneginf())):
            if bad.any():
                b, c, n = bad.nonzero()[0].tolist()
                raise ValueError(f"unary must not be NaN or -infinity, got {name} for label {c}, point {n}, image {b}")
        forbidden = self.unary.isposinf().all(1)
        if forbidden.any():
            b, n = forbidden.nonzero()[0].tolist()
            raise ValueError(
                f"unary must allow at least one label, got +infinity for all of them at point {n} of image {b}"
            )

    def report_unary(self) -> list[Report]:
        """What a GPU has to say about the unary."""
        return [Report(unary_fault(self.unary), self.unary.shape[2])] if self.device.type == "cuda" else []

    def check_features(self, features: Tensor) -> list[Report]:
        """Refuse features [B', d, N] that are NaN or infinite, at once on the CPU; a GPU reports it."""
        if self.device.type == "cuda":
            return [Report(feature_fault(features), features.shape[2])]
        if not torch.compiler.is_compiling() and self.device.type == "cpu" and not features.isfinite().all():
            raise ValueError(f"features must be finite, got {features[~features.isfinite()][0].item()}")
        return []


def read_problem(
    unary: Any, image: Any, num_classes: int, kernels: Iterable[Any], spatial_dims: int | None, *, name: str = "unary"
) -> Problem:
    """Check unary and image against each other and against what the kernels need; `name` is what a user calls it."""
    if not isinstance(unary, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(unary).__name__}")
    if not unary.is_floating_point():
        energies = ", energies -log p" if name == "unary" else ""
        raise TypeError(f"{name} must have a floating dtype{energies}, got {unary.dtype}")
    kernels = list(kernels)
    dims = spatial_dims or _infer_spatial_dims(unary, num_classes, kernels)
    guessed_for = num_classes if spatial_dims is None else None
    batched = _add_batch(name, "C", unary, dims, guessed_for)
    grid = tuple(batched.shape[2:])
    if batched.shape[1] != num_classes:
        hint = _hint_at_one_grid(unary, guessed_for)
        if unary.shape[-1] == num_classes and not hint:
            hint = ": the labels look like the last axis, permute them"
        raise ValueError(
            f"{name} must be [B, {num_classes}, *spatial] or [{num_classes}, *spatial] for {num_classes} classes, got "
            f"{tuple(unary.shape)}{hint}"
        )
    if math.prod(grid) == 0:
        raise ValueError(f"{name} must have at least one point, got shape {tuple(unary.shape)}")
    flat_image = None if image is None else _read_image(image, batched, dims, name)
    batch_shape = (batched.shape[0],) if unary.dim() == dims + 2 else ()
    return Problem(batched.flatten(2), flat_image, image, grid, batch_shape)


def _infer_spatial_dims(unary: Tensor, num_classes: int, kernels: list[Any]) -> int:
    """Images where coordinates are features; else whatever puts the labels where they fit."""
    usual = {2: 1, 3: 2, 4: 2, 5: 3}.get(unary.dim())
    if usual is None or any(kernel.coordinates for kernel in kernels):
        return usual if usual is not None and unary.dim() != 2 else 2
    fixed = next((kernel.features for kernel in kernels if isinstance(kernel.features, Tensor)), None)
    candidates = [usual, *(dims for dims in (1, 2, 3) if unary.dim() - dims in (1, 2))]
    for dims in candidates:
        fits = unary.shape[unary.dim() - dims - 1] == num_classes
        if fits and (fixed is None or fixed.shape[-dims:] == unary.shape[-dims:]):
            return dims
    return usual


def _add_batch(name: str, letter: str, tensor: Tensor, dims: int, guessed_for: int | None = None) -> Tensor:
    if tensor.dim() not in (dims + 1, dims + 2):
        hint = _hint_at_one_grid(tensor, guessed_for)
        spatial = {1: "N", 2: "H, W", 3: "D, H, W"}.get(dims, "*spatial")
        raise ValueError(
            f"{name} must be [B, {letter}, {spatial}] or [{letter}, {spatial}], got shape {tuple(tensor.shape)}{hint}"
        )
    return tensor if tensor.dim() == dims + 2 else tensor[None]


def _hint_at_one_grid(tensor: Tensor, guessed_for: int | None) -> str:
    """What would help where the axes had to be guessed, for so many labels, and the first could be that of labels."""
    if tensor.dim() < 2 or tensor.shape[0] != guessed_for:
        return ""
    return f": spatial_dims={tensor.dim() - 1} would take {tuple(tensor.shape[1:])} as one grid"


def _read_image(image: Any, unary: Tensor, dims: int, name: str) -> Tensor:
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a torch.Tensor, got {type(image).__name__}")
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise TypeError(f"image must be uint8 or floating, got {image.dtype}")
    batched = _add_batch("image", "G", image, dims)
    grid, own = tuple(unary.shape[2:]), tuple(batched.shape[2:])
    if own != grid:
        hint = ""
        if own == grid[::-1]:
            hint = ": width and height look swapped"
        elif tuple(image.shape[-3:-1]) == grid:
            hint = ": the channels look like the last axis, permute them"
        raise ValueError(f"image must have the spatial shape of {name}, {grid}, got shape {tuple(image.shape)}{hint}")
    if batched.shape[0] != unary.shape[0]:
        raise ValueError(f"image must have the batch of {name}, {unary.shape[0]}, got {batched.shape[0]}")
    if batched.shape[1] == 0:
        raise ValueError(f"image must have at least one channel, got shape {tuple(image.shape)}")
    if image.device != unary.device:
        raise ValueError(f"image must be on the device of {name}, {unary.device}, got {image.device}")
    return batched.flatten(2)
