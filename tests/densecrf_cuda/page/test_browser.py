"""The whole way through a real browser: upload, mouse, sliders, downloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densecrf_cuda.page import Settings, segment_scribbles

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'densecrf_cuda[demo]'")
pytest.importorskip("playwright", reason="the page is tested in a browser that playwright drives")

from browser_page import BrowserPage, browser_binary, open_page

from densecrf_cuda.page.server import start

# Gradio's own use of pandas, in a thread of the server, where it sums up how long events take.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

DISC = np.hypot(*np.mgrid[-187:188, -250:250]) < 110


@pytest.fixture
def photo() -> np.ndarray:
    """A disc on a ground of another colour, 500 × 375, both noisy."""
    rng = np.random.default_rng(0)
    colours = np.where(DISC[..., None], (150, 90, 60), (90, 120, 150))
    return (colours + rng.normal(0, 12, colours.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[BrowserPage]:
    binary = browser_binary()
    if binary is None:
        pytest.skip("no browser: neither chromium nor what DENSECRF_BROWSER names is installed")
    server = start(device="cpu")
    try:
        with open_page(server.local_url, binary, tmp_path / "profile") as opened:
            yield opened
    finally:
        server.close(verbose=False)


def test_painted_labels_are_those_of_the_python_call(page: BrowserPage, photo: np.ndarray, tmp_path: Path) -> None:
    page.tab.locator("#mask").click()
    page.wait_for_message("There are no labels yet")
    Image.fromarray(photo).save(tmp_path / "disc.png")
    page.open_photo(tmp_path / "disc.png", photo)
    page.wait_for_message("Pick a colour")

    page.paint((220, 150), (280, 220))
    page.wait_for_message("Only orange is painted")
    page.pick_colour(5)
    page.paint((30, 40), (60, 330), (400, 350))
    page.wait_for_message("2 labels on 500 × 375 pixels in [0-9]+ ms")
    name, scribbles = page.download("scribbles")
    assert name == "disc_scribbles.png"
    assert scribbles.shape == photo.shape[:2]
    assert set(np.unique(scribbles)) == {0, 1, 5}
    # Where the mouse went, give or take what the scale of the canvas in whole per cent leaves open.
    assert set(scribbles[180:191, 245:256].flat) == {1}
    assert set(scribbles[325:336, 55:66].flat) == {5}

    name, mask = page.download("mask")
    assert name == "disc_mask.png"
    np.testing.assert_array_equal(mask, segment_scribbles(photo, scribbles, device="cpu"))
    assert ((mask == 1) == DISC).mean() > 0.98  # the colours tell the disc from the ground, the scribbles hardly any

    shown = page.refined_picture()
    page.set_slider("iterations", 0)
    page.wait_for_other_picture(shown)
    _, moved = page.download("mask")
    np.testing.assert_array_equal(moved, segment_scribbles(photo, scribbles, Settings(iterations=0), device="cpu"))
    assert not np.array_equal(moved, mask)

    page.clear()
    page.wait_for_message("Pick a colour")
    page.wait_for_photo(photo)
    page.paint((220, 150), (280, 220))
    page.wait_for_message("Only blue is painted")
    assert page.foreign_requests() == []
    assert page.errors == []
