"""What the page answers to what is on it, without a browser."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the page needs pillow: pip install 'densecrf_cuda[demo]'")
from PIL import Image

from densecrf_cuda.page import session
from densecrf_cuda.page.segment import Settings, segment_scribbles
from densecrf_cuda.page.session import PREVIEW_SIDE, Photo, mask_file, open_photo, refine, scribbles_file


def decode(file: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(file)))


@pytest.fixture
def photo(tmp_path: Path) -> Photo:
    """Two noisy halves, in a size that the preview has to reduce to 640 × 400."""
    rng = np.random.default_rng(0)
    pixels = np.full((500, 800, 3), 90) + rng.normal(0, 9, (500, 800, 3))
    pixels[:, 400:] += 90
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "halves.png")
    return open_photo(tmp_path / "halves.png")


def scribbles(*labels: int) -> np.ndarray:
    drawn = np.zeros((400, 640), np.uint8)
    for label, column in zip(labels, (100, 500)):
        drawn[180:220, column : column + 20] = label
    return drawn


def test_a_photo_is_shown_in_a_bounded_size(photo: Photo) -> None:
    assert PREVIEW_SIDE == 640
    assert photo.name == "halves"
    assert photo.full.shape == (500, 800, 3)
    assert photo.small.shape == (400, 640, 3)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [(None, "Pick a colour"), (scribbles(), "Pick a colour"), (scribbles(2), "Only sky blue is painted")],
)
def test_what_is_missing_is_said(photo: Photo, drawn: np.ndarray | None, message: str) -> None:
    assert refine(None, drawn, Settings()).message == "Open a photo to begin."
    answer = refine(photo, drawn, Settings())
    assert answer.message.startswith(message)
    assert answer.picture is photo.small
    assert answer.refined is None


def test_a_setting_that_does_not_work_is_said(photo: Photo) -> None:
    answer = refine(photo, scribbles(1, 2), Settings(bilateral_sxy=1e-9))
    assert answer.message.startswith("These settings do not work: ")
    assert answer.picture is photo.small
    assert answer.refined is None


def test_labels_lie_over_the_photo(photo: Photo) -> None:
    answer = refine(photo, scribbles(1, 3), Settings(), "cpu")
    assert answer.message.startswith("2 labels on 640 × 400 pixels in ")
    assert answer.picture is not None
    shift = answer.picture.astype(int) - photo.small // 2
    # Label 1 is orange, with no blue; label 3 a green without red.
    assert (shift[:, :300, 2] <= 1).all()
    assert (shift[:, 340:, 0] <= 1).all()


def test_the_mask_has_the_size_of_the_photo(photo: Photo) -> None:
    answer = refine(photo, scribbles(1, 3), Settings(), "cpu")
    assert answer.refined is not None
    drawn = decode(scribbles_file(answer.refined))
    assert drawn.shape == (500, 800)
    np.testing.assert_array_equal(drawn[::5, ::5], scribbles(1, 3)[::4, ::4])
    # 800 pixels are 1.25 times 640: bandwidths in pixels grow along
    settings = Settings(gaussian_sxy=3 * 1.25, bilateral_sxy=80 * 1.25)
    expected = segment_scribbles(photo.full, drawn, settings, device="cpu")
    np.testing.assert_array_equal(decode(mask_file(answer.refined, "cpu")), expected)


def test_the_mask_of_a_small_photo_is_what_is_on_show(photo: Photo) -> None:
    small = Photo("small", photo.small, photo.small)
    answer = refine(small, scribbles(1, 3), Settings(iterations=3), "cpu")
    assert answer.refined is not None
    expected = segment_scribbles(small.small, scribbles(1, 3), Settings(iterations=3), device="cpu")
    np.testing.assert_array_equal(decode(mask_file(answer.refined, "cpu")), expected)
    np.testing.assert_array_equal(decode(scribbles_file(answer.refined)), scribbles(1, 3))


def test_the_mask_of_a_very_large_photo_is_enlarged(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MASK_SIDE", 720)
    answer = refine(photo, scribbles(1, 3), Settings(), "cpu")
    assert answer.refined is not None
    mask = decode(mask_file(answer.refined, "cpu"))
    assert mask.shape == (500, 800)
    assert (mask[:, :398] == 1).all()
    assert (mask[:, 402:] == 3).all()
