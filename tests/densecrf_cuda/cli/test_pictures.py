"""Photos of every kind, overlays, the palette of VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import SIZE
from oracles import photo
from PIL import Image

from densecrf_cuda.cli.pictures import overlay, read_photo, voc_palette


def test_colours_are_as_stored(tmp_path: Path) -> None:
    array = photo("astronaut", *SIZE)
    for suffix in ("png", "bmp", "tif", "webp"):
        path = tmp_path / f"photo.{suffix}"
        Image.fromarray(array).save(path, **({"lossless": True} if suffix == "webp" else {}))
        np.testing.assert_array_equal(read_photo(path), array)


def test_greys_become_three_channels(tmp_path: Path) -> None:
    grey = photo("astronaut", *SIZE)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.png"), np.stack([grey] * 3, -1))
    deep = grey.astype(np.uint16) * 257 + 3
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        got = read_photo(tmp_path / f"deep.{suffix}")
        assert got.dtype == np.float32
        # 65535 / 257 = 255; what is beyond 8 bits stays: float32 holds 24
        np.testing.assert_allclose(got, np.stack([deep / 257] * 3, -1), rtol=1e-6)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    array = photo("coffee", *SIZE)
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    alpha[:10] = 0
    Image.fromarray(np.concatenate([array, alpha], -1)).save(tmp_path / "photo.png")
    expected = array.copy()
    expected[:10] = 255
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.png"), expected)


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_are_looked_up(transparent: bool, tmp_path: Path) -> None:
    palette = photo("coffee", 16, 16).reshape(256, 3)
    index = photo("astronaut", *SIZE)[..., 0]
    picture = Image.fromarray(index)
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "photo.png", **({"transparency": bytes([0] + [255] * 255)} if transparent else {}))
    if transparent:
        palette[0] = 255
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.png"), palette[index])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    array = photo("chelsea", *SIZE)
    # what a camera stores so that turning it as the EXIF standard says shows the array
    stored = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.swapaxes(0, 1),
        6: np.rot90(array), 7: np.rot90(array, 2).swapaxes(0, 1), 8: np.rot90(array, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.png"), array)
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.png", exif=False), stored)


def test_floating_photos_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones(SIZE, np.float32)).save(tmp_path / "photo.tif")
    with pytest.raises(ValueError, match="no known range"):
        read_photo(tmp_path / "photo.tif")
    Image.fromarray(np.full(SIZE, 70000, np.int32)).save(tmp_path / "photo.tif")
    with pytest.raises(ValueError, match=r"grey levels must be in 0\.\.65535, got 70000\.\.70000"):
        read_photo(tmp_path / "photo.tif")


def test_voc_palette() -> None:
    # the colours that the VOC 2012 development kit lists: background, aeroplane, ..., tv monitor, void
    listed = {0: (0, 0, 0), 1: (128, 0, 0), 3: (128, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for label, colour in (listed | {255: (224, 224, 192)}).items():
        assert tuple(voc_palette()[label]) == colour
    assert len(np.unique(voc_palette(), axis=0)) == 256


def test_overlay() -> None:
    image = photo("coffee", *SIZE)
    classes = np.zeros(SIZE, int)
    classes[10:, 20:] = 1
    classes[:5] = -1
    before = image.copy()
    painted = overlay(image, classes, np.array([[0, 0, 0], [10, 200, 30]], np.uint8), opacity=0.3)
    np.testing.assert_array_equal(image, before)
    line = np.zeros(SIZE, bool)
    line[4] = True  # between no class and class 0
    line[9, 20:] = True
    line[10:, 19] = True
    assert (painted[line] == 255).all()
    untouched = (classes < 1) & ~line  # no class, and a class whose colour is black
    np.testing.assert_array_equal(painted[untouched], image[untouched])
    expected = 0.7 * image[10:, 20:] + 0.3 * np.array([10, 200, 30])
    np.testing.assert_allclose(painted[10:, 20:], expected, atol=0.501)  # rounded to whole numbers


def test_overlay_refuses() -> None:
    image, classes, colours = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), int), np.zeros((1, 3), np.uint8)
    with pytest.raises(ValueError, match=r"opacity must be in \[0, 1\], got 2"):
        overlay(image, classes, colours, opacity=2)
    with pytest.raises(ValueError, match=r"photo must be \[H, W, 3\] and classes \[H, W\], got .* and \(5, 4\)"):
        overlay(image, classes.T, colours)
