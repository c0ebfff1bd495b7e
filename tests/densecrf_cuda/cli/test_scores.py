"""Files of probabilities and logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import random_scores

from densecrf_cuda.cli.scores import arrange, read_scores

SIZE = (4, 6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_layouts(dtype: type) -> None:
    scores = random_scores(3, SIZE).astype(dtype)
    for array in (scores, scores[None], np.moveaxis(scores, 0, 2), np.moveaxis(scores, 0, 2)[None, None]):
        got = arrange(array, SIZE)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, scores.astype(np.float32))


def test_layouts_that_cannot_be_told() -> None:
    cube = random_scores(4, (4, 4))
    with pytest.raises(ValueError, match=r"may be \[C, H, W\] or \[H, W, C\]: say which with --layout"):
        arrange(cube, (4, 4))
    np.testing.assert_array_equal(arrange(cube, (4, 4), "chw"), cube)
    np.testing.assert_array_equal(arrange(cube, (4, 4), "hwc"), np.moveaxis(cube, 2, 0))


@pytest.mark.parametrize("shape", [(3, 6, 4), (6, 4, 3), (6, 4)])
def test_swapped_axes_are_suspected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"H, W = \(4, 6\) of the photo, got .*: width and height look swapped"):
        arrange(np.zeros(shape), SIZE)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 7)), r"got \(3, 4, 7\)$"),
        (np.zeros((2, 3, 4, 6)), r"the shape must be \[C, H, W\] or \[H, W, C\], got \(2, 3, 4, 6\)"),
        (np.zeros((0, 4, 6)), "at least one class"),
        (np.zeros((3, 4, 6), np.uint8), "numbers must be floating, got uint8"),
    ],
)
def test_wrong_shapes_and_types(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arrange(array, SIZE)
    with pytest.raises(ValueError, match=r"got \(3, 4, 6\)"):
        arrange(np.zeros((3, 4, 6)), SIZE, "hwc")


def test_wrong_numbers(tmp_path: Path) -> None:
    scores = random_scores(3, SIZE)
    path = tmp_path / "scores.npy"
    np.save(path, scores)
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\], got .*; are they --logits"):
        read_scores(path, SIZE)
    np.testing.assert_array_equal(read_scores(path, SIZE, kind="logits"), scores)
    for bad in (np.nan, np.inf):
        scores[1, 2, 3] = bad
        np.save(path, scores)
        with pytest.raises(ValueError, match="logits must be neither NaN nor"):
            read_scores(path, SIZE, kind="logits")
    np.save(path, np.full((2, *SIZE), np.nan))
    with pytest.raises(ValueError, match="got nan"):
        read_scores(path, SIZE)


def test_arrays_of_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    logits, other = random_scores(3, SIZE), random_scores(2, SIZE)
    np.savez(path, logits=logits, other=other)
    np.testing.assert_array_equal(read_scores(path, SIZE, kind="logits"), logits)
    np.testing.assert_array_equal(read_scores(path, SIZE, kind="logits", key="other"), other)
    with pytest.raises(ValueError, match="several arrays: say which with --key: logits, other"):
        read_scores(path, SIZE)
    with pytest.raises(ValueError, match="no array 'x', but logits, other"):
        read_scores(path, SIZE, key="x")


@pytest.mark.parametrize("content", [b"", b"no numbers", b"PK\x03\x04 broken"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_broken_files(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"scores{suffix}"
    path.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        read_scores(path, SIZE)


def test_objects_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_scores(tmp_path / "scores.npy", SIZE)
    with pytest.raises(ValueError, match=r"scores must be \.npy or \.npz, got \.txt"):
        read_scores(tmp_path / "scores.txt", SIZE)
