"""`densecrf segment`: strokes of every kind give what the package gives, in the colours of the strokes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import SIZE, infer, invoke, pixels, refuse, save_photo, succeed
from PIL import Image

from densecrf_cuda import unary_from_scribbles

COLOURS = np.array([[0, 0, 0], [0, 0, 255], [0, 255, 0], [255, 0, 0]], np.uint8)
"""Of nothing and of the labels 1 to 3, in ascending order."""


def strokes() -> np.ndarray:
    """[H, W], 0 where nothing is drawn."""
    scribbles = np.zeros(SIZE, np.uint8)
    scribbles[20:34, 15:30] = 1  # the suit
    scribbles[3:8, 18:26] = 2  # the hair
    scribbles[2:20, 34:36] = 3  # the shuttle
    return scribbles


@pytest.mark.parametrize("kind", ["grey", "palette", "plain", "transparent"])
def test_strokes_of_every_kind(kind: str, tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    scribbles = strokes()
    expected = infer(unary_from_scribbles(scribbles, 3, 0.95), image) + 1
    assert len(np.unique(expected)) == 3
    picture = Image.fromarray(scribbles)
    if kind == "palette":
        picture.putpalette(COLOURS.tobytes())
    elif kind == "plain":
        picture = Image.fromarray(np.where(scribbles[..., None] > 0, COLOURS[scribbles], np.uint8(240)))
    elif kind == "transparent":
        alpha = np.where(scribbles > 0, 255, 0).astype(np.uint8)[..., None]
        picture = Image.fromarray(np.concatenate([COLOURS[scribbles], alpha], -1))
    picture.save(tmp_path / "strokes.png")
    succeed("segment", tmp_path / "photo.png", "--scribbles", tmp_path / "strokes.png", "-o", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.mode == {"grey": "L", "palette": "P"}.get(kind, "RGB")
        if kind == "palette":
            assert bytes(out.getpalette())[:12] == COLOURS.tobytes()
    by_colour = kind in ("plain", "transparent")
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), COLOURS[expected] if by_colour else expected)


def test_probabilities_and_an_overlay(tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    Image.fromarray(strokes()).save(tmp_path / "strokes.png")
    paths = ["segment", tmp_path / "photo.png", "--scribbles", tmp_path / "strokes.png", "-o", tmp_path / "out.npz"]
    succeed(*paths, "--overlay", tmp_path / "seen.png", "--confidence", "0.8", "--iterations", 5)
    expected = infer(unary_from_scribbles(strokes(), 3, 0.8), image, "probabilities", iterations=5)
    with np.load(tmp_path / "out.npz") as saved:
        np.testing.assert_array_equal(saved["probabilities"], expected)
        assert saved["labels"].tolist() == [1, 2, 3]
    assert pixels(tmp_path / "seen.png").shape == image.shape
    assert refuse(*paths, "--no-overwrite").endswith("out.npz exists, and --no-overwrite forbids to replace it\n")
    assert "--background must be" in refuse(*paths, "--background", "white")


def test_strokes_that_do_not_fit(tmp_path: Path) -> None:
    save_photo(tmp_path / "photo.png")
    Image.fromarray(strokes().T.copy()).save(tmp_path / "strokes.png")
    paths = ["segment", tmp_path / "photo.png", "--scribbles", tmp_path / "strokes.png", "-o", tmp_path / "out.png"]
    result = invoke(*paths)
    assert result.exit_code == 1
    assert "must have the size of the photo, 48 x 36, got 36 x 48: width and height look swapped" in result.stderr
    assert not (tmp_path / "out.png").exists()
    assert "Traceback" in invoke(*paths, "--debug").stderr
