"""Photos of every kind come out as one looks at them; strokes come back as the labels they were painted with."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the page needs pillow: pip install 'densecrf_cuda[demo]'")
from PIL import Image

from densecrf_cuda.page.pictures import COLOURS, encode_labels, overlay, read_photo, read_strokes, resize_labels, shrink

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]
PALETTE = np.array(list(COLOURS.values()), np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_colour_and_grey(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_photo(save(tmp_path / "rgb.png", RGB)), RGB)
    np.testing.assert_array_equal(read_photo(save(tmp_path / "grey.png", GREY)), np.stack([GREY] * 3, 2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    wide = GREY.astype(np.uint16) * 257 + 100  # + 100: less than a step of 8 bits, but where it overflows
    wide[GREY == 255] = 65535
    np.testing.assert_array_equal(read_photo(save(tmp_path / f"wide.{suffix}", wide)), np.stack([GREY] * 3, 2))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((6, 9), np.uint8)
    alpha[:, 3:6], alpha[:, 6:] = 128, 255
    share = alpha[..., None] / 255
    for name, colours in (("rgba", RGB), ("la", GREY[..., None])):
        got = read_photo(save(tmp_path / f"{name}.png", np.concatenate([colours, alpha[..., None]], 2)))
        # Pillow composes in integers: a unit of rounding
        assert np.abs(got - (share * colours + (1 - share) * 255)).max() <= 1


def test_palettes_and_their_transparent_entry(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "palette.png", transparency=1)
    expected = [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    np.testing.assert_array_equal(read_photo(tmp_path / "palette.png"), expected)


@pytest.mark.parametrize(
    ("tag", "upright"),
    [(3, RGB[::-1, ::-1]), (6, np.rot90(RGB, -1)), (8, np.rot90(RGB)), (2, RGB[:, ::-1])],
    ids=["half turn", "turned right", "turned left", "mirrored"],
)
def test_exif_orientation_turns_the_photo(tmp_path: Path, tag: int, upright: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    np.testing.assert_array_equal(read_photo(save(tmp_path / "turned.png", RGB, exif=exif)), upright)


def test_what_is_no_photo_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        read_photo(tmp_path / "text.png")
    whole = save(tmp_path / "whole.png", np.random.default_rng(1).integers(0, 256, (90, 90, 3), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read: "):
        read_photo(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="floating numbers"):
        read_photo(save(tmp_path / "float.tif", np.zeros((4, 4), np.float32)))


def test_a_picture_too_large_to_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "large.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow refuses twice as many
    with pytest.raises(ValueError, match=r"large\.png cannot be read: .*54 pixels"):
        read_photo(tmp_path / "large.png")


def test_shrink_keeps_the_proportions_and_small_photos() -> None:
    assert shrink(np.zeros((900, 600, 3), np.uint8), 300).shape == (300, 200, 3)
    assert shrink(np.zeros((1, 900, 3), np.uint8), 300).shape == (1, 300, 3)
    assert shrink(RGB, 9) is RGB


def test_pure_strokes_are_read_back() -> None:
    labels = np.random.default_rng(2).integers(0, len(COLOURS) + 1, (20, 30)).astype(np.uint8)
    layer = np.zeros((20, 30, 4), np.uint8)
    layer[labels > 0] = [(*PALETTE[label - 1], 255) for label in labels[labels > 0]]
    np.testing.assert_array_equal(read_strokes([layer], (20, 30)), labels)


def test_edges_count_from_half_opacity_on() -> None:
    layer = np.zeros((1, 256, 4), np.uint8)
    layer[0, :, :3], layer[0, :, 3] = PALETTE[1], np.arange(256)
    np.testing.assert_array_equal(read_strokes([layer], (1, 256))[0], 2 * (np.arange(256) >= 128))


def test_mixed_colours_are_never_a_third_label() -> None:
    share = np.linspace(0, 1, 256)[:, None]
    for one, other in itertools.combinations(range(len(COLOURS)), 2):
        layer = np.full((1, 256, 4), 255, np.uint8)
        layer[0, :, :3] = (share * PALETTE[one] + (1 - share) * PALETTE[other]).round()
        labels = read_strokes([layer], (1, 256))[0]
        assert set(labels) == {0, one + 1, other + 1}
        assert (labels[0], labels[-1]) == (other + 1, one + 1)


def test_upper_layers_cover_lower_ones_and_other_sizes_fit() -> None:
    lower, upper = np.zeros((4, 4, 4), np.uint8), np.zeros((2, 2, 4), np.uint8)
    lower[:, :2], upper[0, 0] = (*PALETTE[0], 255), (*PALETTE[3], 255)
    expected = [[4, 4, 0, 0], [4, 4, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(read_strokes([lower, upper], (4, 4)), expected)
    np.testing.assert_array_equal(read_strokes([], (2, 3)), np.zeros((2, 3)))


def test_label_files_hold_the_labels_in_the_colours_of_the_brush() -> None:
    labels = np.arange(len(COLOURS) + 1, dtype=np.uint8).reshape(2, -1)
    picture = Image.open(io.BytesIO(encode_labels(labels)))
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.array(picture), labels)
    np.testing.assert_array_equal(np.array(picture.convert("RGB")).reshape(-1, 3)[1:], PALETTE)


def test_overlay_is_half_photo_half_colour() -> None:
    labels = np.zeros((6, 9), np.uint8)
    labels[2, 3], labels[4, 5] = 1, len(COLOURS)
    mixed = overlay(RGB, labels)
    np.testing.assert_array_equal(mixed[labels == 0], RGB[labels == 0])
    assert np.abs(mixed[2, 3] - (RGB[2, 3] / 2 + PALETTE[0] / 2)).max() < 1
    assert np.abs(mixed[4, 5] - (RGB[4, 5] / 2 + PALETTE[-1] / 2)).max() < 1


def test_labels_are_enlarged_without_mixing() -> None:
    labels = np.array([[1, 5], [7, 0]], np.uint8)
    np.testing.assert_array_equal(resize_labels(labels, (6, 4)), labels.repeat(3, 0).repeat(2, 1))
