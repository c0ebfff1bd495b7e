"""The page as somebody with a mouse uses it, in a headless browser."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 120_000  # a browser without a GPU draws WebGL on a processor that may have other work


def browser_binary() -> str | None:
    """The browser that `DENSECRF_BROWSER` names, else Chromium where it is installed."""
    names = [os.environ["DENSECRF_BROWSER"]] if "DENSECRF_BROWSER" in os.environ else ["chromium", "chromium-browser"]
    return next((path for path in map(shutil.which, names) if path), None)


class BrowserPage:
    """What can be done on the page. Places on the canvas are pixels (x, y) of the photo that is open."""

    def __init__(self, tab: Any, url: str) -> None:
        tab.set_default_timeout(PATIENCE_MS)
        self.tab = tab
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.size = (0, 0)
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("websocket", lambda socket: self.requests.append(socket.url))
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.goto(url)
        self.wait_for_message("Open a photo|Pick a colour")

    def foreign_requests(self) -> list[str]:
        """Requests to anything but the loopback interface; what the page made itself (blob:, data:) is none."""
        made_here = ("blob", "data")
        parts = ((url, urlsplit(url)) for url in self.requests)
        return [url for url, part in parts if part.scheme not in made_here and part.hostname != "127.0.0.1"]

    def wait_for_message(self, pattern: str) -> None:
        self.tab.locator("#message", has_text=re.compile(pattern)).wait_for()

    def open_photo(self, path: Path, photo: np.ndarray) -> None:
        """Upload a photo and wait until the canvas shows it."""
        self.tab.locator("input[type=file]").first.set_input_files(path)
        self.wait_for_photo(photo)

    def wait_for_photo(self, photo: np.ndarray) -> None:
        self.size = photo.shape[1], photo.shape[0]
        self.tab.locator("#editor [data-testid=status-tracker].hide").wait_for(state="attached")
        self._wait_until(lambda: np.abs(self._look_at_canvas() - _thumbnail(Image.fromarray(photo))).mean() < 20)

    def pick_colour(self, label: int) -> None:
        swatches = self.tab.locator("#editor menu.swatch button")
        self.tab.locator("#editor").get_by_role("button", name="Color", exact=True).click()
        swatches.nth(label - 1).click()
        # The swatches lie over the canvas until it is clicked; in its corner there is no photo to be painted on.
        box = self._canvas_box()
        self.tab.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] - 3)
        swatches.first.wait_for(state="detached")

    def paint(self, *points: tuple[int, int]) -> None:
        """One stroke of the brush from point to point."""
        mouse = self.tab.mouse
        mouse.move(*self._on_screen(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self._on_screen(*point), steps=4)
        mouse.up()

    def clear(self) -> None:
        self.tab.locator("#editor").get_by_role("button", name="Clear canvas").click()

    def set_slider(self, name: str, value: float) -> None:
        self.tab.locator(f"#{name} input[type=range]").fill(str(value))

    def refined_picture(self) -> str:
        """The address of the picture of labels; another picture has another one."""
        return str(self.tab.locator("#refined img").get_attribute("src"))

    def wait_for_other_picture(self, shown: str) -> None:
        self._wait_until(lambda: self.refined_picture() != shown)

    def download(self, button: str) -> tuple[str, np.ndarray]:
        """Name and values of the picture that a button downloads."""
        with self.tab.expect_download() as download:
            self.tab.locator(f"#{button}").click()
        return download.value.suggested_filename, np.array(Image.open(download.value.path()))

    def _canvas_box(self) -> dict[str, float]:
        return dict(self.tab.locator("#editor canvas").first.bounding_box())

    def _on_screen(self, x: float, y: float) -> tuple[float, float]:
        """The editor shows the photo in the middle of its canvas, at the scale that it states."""
        box = self._canvas_box()
        scale = int(self.tab.locator("#editor .zoom-number").inner_text().strip().rstrip("%")) / 100
        width, height = self.size
        return (
            box["x"] + box["width"] / 2 + scale * (x - width / 2),
            box["y"] + box["height"] / 2 + scale * (y - height / 2),
        )

    def _look_at_canvas(self) -> np.ndarray:
        """What the screen shows where the photo belongs, as a thumbnail."""
        (left, top), (right, bottom) = self._on_screen(0, 0), self._on_screen(*self.size)
        shot = self.tab.screenshot(clip={"x": left, "y": top, "width": right - left, "height": bottom - top})
        return _thumbnail(Image.open(io.BytesIO(shot)))

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Each look asks the browser something, which takes its time: no need to sleep in between."""
        for _ in range(1000):
            if condition():
                return
        raise AssertionError("the page did not come to that state")


def _thumbnail(picture: Image.Image) -> np.ndarray:
    return np.array(picture.convert("RGB").resize((8, 8), Image.Resampling.BOX), np.float32)


@contextmanager
def open_page(url: str, binary: str, folder: Path, size: tuple[int, int] = (1280, 900)) -> Iterator[BrowserPage]:
    """A browser with a profile of its own in a folder, on the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            folder,
            executable_path=binary,
            args=FLAGS,
            viewport={"width": size[0], "height": size[1]},
            accept_downloads=True,
        )
        try:
            yield BrowserPage(browser.pages[0], url)
        finally:
            browser.close()
