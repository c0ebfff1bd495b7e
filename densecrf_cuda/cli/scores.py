"""Files of probabilities and logits: .npy and .npz, in either order of the axes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

__all__ = ["LAYOUTS", "arrange", "read_scores"]

LAYOUTS = ("auto", "chw", "hwc")
_NAMES = {"probs": ("probabilities", "probs"), "logits": ("logits", "scores")}


def read_scores(
    path: Path, size: tuple[int, int], *, kind: str = "probs", layout: str = "auto", key: str | None = None
) -> np.ndarray:
    """Probabilities or logits of a photo.

    Args:
        path: .npy, or .npz with one array, or with one that is named as the kind or by key.
        size: (H, W) of the photo.
        kind: "probs" or "logits".
        layout: "chw", "hwc", or "auto": told from the size of the photo.
        key: the name of the array in an .npz.

    Returns:
        [C, H, W] float32. A single channel is taken as label 1 against label 0: probabilities 1 - p and p, logits 0
        and x.

    Raises:
        ValueError: other axes than the photo's, an order that cannot be told, no floating numbers, probabilities
            outside [0, 1], NaN.
        OSError: a file that is missing or broken.
    """
    array = arrange(_load(path, kind, key), size, layout)
    if kind == "probs":
        bad = ~((array >= -1e-3) & (array <= 1 + 1e-3))  # half precision rounds a softmax to a little more than 1
        if bad.any():
            raise ValueError(f"probabilities must be in [0, 1], got {array[bad][0]}; are they --logits?")
        array = array.clip(0, 1)
    elif not (array < np.inf).all():
        raise ValueError("logits must be neither NaN nor +infinity")
    if len(array) == 1:
        array = np.concatenate([1 - array if kind == "probs" else np.zeros_like(array), array])
    return array


def arrange(array: np.ndarray, size: tuple[int, int], layout: str = "auto") -> np.ndarray:
    """Floating [C, H, W] or [H, W, C] (leading axes of 1, and a missing C, are allowed) as [C, H, W] float32.

    Example:
        >>> arrange(np.zeros((4, 6, 3)), (4, 6)).shape
        (3, 4, 6)
    """
    if array.dtype.kind != "f":
        raise ValueError(f"numbers must be floating, got {array.dtype}")
    shape = array.shape
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array, layout = array[None], "chw"
    if array.ndim != 3:
        raise ValueError(f"the shape must be [C, H, W] or [H, W, C], got {shape}")
    fits = [name for name, own in (("chw", array.shape[1:]), ("hwc", array.shape[:2])) if own == size]
    if layout == "auto" and len(fits) == 2:
        raise ValueError(f"the shape {shape} may be [C, H, W] or [H, W, C]: say which with --layout chw or hwc")
    if layout == "auto":
        layout = fits[0] if fits else ""
    if layout not in fits:
        swapped = size[::-1] in (array.shape[1:], array.shape[:2])
        hint = ": width and height look swapped" if swapped else ""
        raise ValueError(f"the shape must be [C, H, W] or [H, W, C] with H, W = {size} of the photo, got {shape}{hint}")
    arranged = array if layout == "chw" else np.moveaxis(array, 2, 0)
    if arranged.size == 0:
        raise ValueError(f"the shape must have at least one class and pixel, got {shape}")
    return np.ascontiguousarray(arranged, np.float32)


def _load(path: Path, kind: str, key: str | None) -> np.ndarray:
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"scores must be .npy or .npz, got {path.suffix or 'no suffix'}")
    with path.open("rb") as file:  # np.load would leave a broken file open
        try:
            loaded = np.load(file, allow_pickle=False)
        except (EOFError, zipfile.BadZipFile) as error:
            raise OSError(f"the file is broken: {error}") from error
        return loaded if isinstance(loaded, np.ndarray) else _pick(loaded, _NAMES[kind], key)


def _pick(arrays: np.lib.npyio.NpzFile, usual: tuple[str, ...], key: str | None) -> np.ndarray:
    """The array of a name, or the only one, or the first that has a usual name."""
    names = arrays.files
    found = ", ".join(names) or "nothing"
    if key is not None:
        if key not in names:
            raise ValueError(f"no array {key!r}, but {found}")
        return arrays[key]
    wanted = names if len(names) == 1 else [name for name in usual if name in names]
    if not wanted:
        raise ValueError(f"several arrays: say which with --key: {found}")
    return arrays[wanted[0]]
