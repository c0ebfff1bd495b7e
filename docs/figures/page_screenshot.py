"""Makes docs/images/page.png: the page of `densecrf demo` after somebody has painted on a photo.

    python docs/figures/page_screenshot.py

It needs Chromium, or the browser that DENSECRF_BROWSER names, gradio, playwright and scikit-image, whose `coffee` it
paints on (by Rachel Michetti, CC0).
"""

import io
import sys
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image

from densecrf_cuda.page.pictures import COLOURS
from densecrf_cuda.page.server import start

ROOT = Path(__file__).resolve().parent.parent.parent
OUTPUT = ROOT / "docs" / "images" / "page.png"

sys.path.insert(0, str(ROOT / "tests" / "densecrf_cuda" / "page"))
from browser_page import browser_binary, open_page  # noqa: E402

STROKES = {
    "orange": [[(240, 130), (265, 112), (320, 125), (340, 160)], [(230, 160), (290, 180)]],
    "sky blue": [
        [(190, 120), (205, 80), (250, 40), (330, 45), (385, 95), (385, 140), (340, 185), (270, 198), (215, 175)],
        [(215, 95), (260, 75), (340, 90), (368, 130)],
    ],
    "green": [
        [(70, 140), (60, 230), (50, 330), (90, 385)],
        [(110, 40), (170, 20)],
        [(420, 20), (570, 40), (560, 120), (580, 300), (450, 380)],
        [(95, 322), (150, 375), (260, 393), (380, 393)],
    ],
    "yellow": [[(412, 75), (408, 100)], [(378, 240), (350, 270), (345, 300), (375, 305), (390, 270)]],
    "blue": [
        [(100, 190), (110, 270), (170, 340), (270, 365), (390, 345), (450, 270), (455, 200), (430, 150)],
        [(140, 130), (160, 250), (240, 320), (310, 300)],
        [(190, 180), (210, 215)],
        [(260, 225), (320, 225), (385, 180)],
        [(215, 280), (225, 255)],
    ],
    "pink": [[(10, 60), (15, 20), (60, 20), (100, 8)]],
}


def main() -> None:
    binary = browser_binary()
    if binary is None:
        raise SystemExit("no browser: install chromium, or name one in DENSECRF_BROWSER")
    photo = skimage.data.coffee()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coffee.png"
        Image.fromarray(photo).save(path)
        server = start(path)
        try:
            with open_page(server.local_url, binary, Path(folder) / "profile", size=(1200, 740)) as page:
                page.wait_for_photo(photo)
                for colour, strokes in STROKES.items():
                    page.pick_colour(1 + list(COLOURS).index(colour))
                    for stroke in strokes:
                        page.paint(*stroke)
                page.wait_for_message(f"{len(STROKES)} labels")
                shown = page.refined_picture()
                page.set_slider("bilateral_sxy", 40)
                page.wait_for_other_picture(shown)
                page.tab.mouse.move(0, 0)
                shot = page.tab.screenshot()
        finally:
            server.close(verbose=False)
    # 256 colours are enough for the eye, and a third of the bytes.
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(OUTPUT, optimize=True)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
