"""Pictures of labels and of strokes: which classes they mean, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from commands import pixels
from oracles import photo
from PIL import Image

from densecrf_cuda.cli.errors import UsageError
from densecrf_cuda.cli.labels import LabelStyle, parse_code, read_labels, read_scribbles, score_style

ROWS = np.array([[0, 0, 3], [3, 7, 255]], np.uint8)


def save(path: Path, array: np.ndarray, palette: bytes = b"", **options: object) -> Path:
    picture = Image.fromarray(array)
    if palette:
        picture.putpalette(palette)
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("unsure", "codes", "classes"),
    [
        ("auto", [0, 3, 7], [[0, 0, 1], [1, 2, -1]]),
        ("none", [0, 3, 7, 255], [[0, 0, 1], [1, 2, 3]]),
        ("3", [0, 7, 255], [[0, 0, -1], [-1, 1, 2]]),
        ("9", [0, 3, 7, 255], [[0, 0, 1], [1, 2, 3]]),
    ],
)
def test_unsure_label(unsure: str, codes: list[int], classes: list[list[int]], tmp_path: Path) -> None:
    for palette in (b"", bytes(768)):
        got, style = read_labels(save(tmp_path / "labels.png", ROWS, palette), unsure)
        assert got.tolist() == classes
        assert style.codes.tolist() == codes


def test_auto_takes_a_grey_mask_for_two_labels(tmp_path: Path) -> None:
    mask = np.array([[0, 255]], np.uint8)
    assert read_labels(save(tmp_path / "mask.png", mask))[0].tolist() == [[0, 1]]
    assert read_labels(save(tmp_path / "mask.png", mask), "255")[0].tolist() == [[0, -1]]
    assert read_labels(save(tmp_path / "mask.png", mask, bytes(768)))[0].tolist() == [[0, -1]]


def test_transparent_pixels_of_colours_are_unsure(tmp_path: Path) -> None:
    array = np.array([[[9, 8, 7, 255], [9, 8, 7, 0], [0, 0, 0, 128]]], np.uint8)
    classes, style = read_labels(save(tmp_path / "labels.png", array))
    assert classes.tolist() == [[1, -1, 0]]
    assert style.colours().tolist() == style.labels().tolist() == [[0, 0, 0], [9, 8, 7]]


@pytest.mark.parametrize("entries", [1, 2, 4, 16, 17, 256])
def test_palettes_of_every_length_hold_every_label(entries: int, tmp_path: Path) -> None:
    style = LabelStyle("P", np.array([0, 5, 200]), bytes(range(256)) * 3)
    style = LabelStyle("P", style.codes, style.palette[: 3 * entries])
    stream = io.BytesIO()
    style.save(np.array([[0, 1, 2]]), stream)
    (tmp_path / "labels.png").write_bytes(stream.getvalue())
    assert pixels(tmp_path / "labels.png").tolist() == [[0, 5, 200]]
    with Image.open(tmp_path / "labels.png") as picture:
        assert bytes(picture.getpalette())[: 3 * entries] == style.palette


def test_a_number_of_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "labels.png", ROWS)
    assert read_labels(path, num_classes=8)[0].tolist() == [[0, 0, 3], [3, 7, -1]]
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.6, got 7"):
        read_labels(path, num_classes=7)
    with pytest.raises(ValueError, match="colours"):
        read_labels(save(tmp_path / "rgb.png", np.zeros((2, 2, 3), np.uint8)), num_classes=2)


def test_labels_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most 256 labels can be told apart, got .* is it a photo"):
        read_labels(save(tmp_path / "photo.png", photo("astronaut", 40, 40)))
    with pytest.raises(ValueError, match="JPEG changes them"):
        read_labels(save(tmp_path / "labels.jpg", ROWS))
    with pytest.raises(ValueError, match="no pixel has a label"):
        read_labels(save(tmp_path / "unsure.png", np.full((2, 2), 255, np.uint8)))
    with pytest.raises(ValueError, match="got one of mode CMYK"):
        Image.new("CMYK", (2, 2)).save(tmp_path / "cmyk.tif")
        read_labels(tmp_path / "cmyk.tif")
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.65535, got -1\.\.0"):
        read_labels(save(tmp_path / "negative.tif", np.array([[0, -1]], np.int32)))


def test_styles_of_scores() -> None:
    assert (score_style(21).mode, score_style(256).mode, score_style(257).mode) == ("P", "P", "I;16")
    stream = io.BytesIO()
    score_style(300).save(np.array([[0, 299]]), stream)
    assert np.array(Image.open(stream)).tolist() == [[0, 299]]


def test_codes_of_the_command_line() -> None:
    assert (parse_code("--unsure-label", "12"), parse_code("--unsure-label", "#0100ff")) == (12, 0x0100FF)
    for text in ("-1", "#12", "#gggggg", "red"):
        with pytest.raises(UsageError, match=f"--unsure-label must be .*, got '{text}'"):
            parse_code("--unsure-label", text)


def test_scribbles_of_indices(tmp_path: Path) -> None:
    for palette in (b"", bytes(768)):
        classes, style = read_scribbles(save(tmp_path / "strokes.png", ROWS, palette))
        assert classes.tolist() == [[-1, -1, 0], [0, 1, 2]]
        assert style.codes.tolist() == [3, 7, 255]
    for transparency in (3, bytes([255, 255, 255, 0])):
        path = save(tmp_path / "strokes.png", ROWS, bytes(768), transparency=transparency)
        assert read_scribbles(path)[0].tolist() == [[0, 0, -1], [-1, 1, 2]]


def test_scribbles_of_colours(tmp_path: Path) -> None:
    red, blue = [255, 0, 0], [0, 0, 255]
    for background in ([255, 255, 255], [0, 0, 0], [12, 200, 7]):
        array = np.array([[background] * 3, [red, blue, background]], np.uint8)
        classes, style = read_scribbles(save(tmp_path / "strokes.png", array))
        assert classes.tolist() == [[-1, -1, -1], [1, 0, -1]]
        assert style.colours().tolist() == [blue, red]
    array = np.array([[red] * 3, [blue, [9, 9, 9], [9, 9, 9]]], np.uint8)
    path = save(tmp_path / "strokes.png", array)
    assert read_scribbles(path, "#090909")[0].tolist() == [[1, 1, 1], [0, -1, -1]]
    soft = np.array([[[*red, 255], [*blue, 255], [*blue, 120], [1, 2, 3, 0]]], np.uint8)  # the edge of a soft brush
    assert read_scribbles(save(tmp_path / "strokes.png", soft))[0].tolist() == [[1, 0, -1, -1]]


def test_scribbles_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two labels, got 1"):
        read_scribbles(save(tmp_path / "one.png", np.array([[0, 1]], np.uint8)))
    with pytest.raises(ValueError, match=r"at most 64 labels, got .* hard brush"):
        read_scribbles(save(tmp_path / "photo.png", photo("astronaut", 40, 40)))
