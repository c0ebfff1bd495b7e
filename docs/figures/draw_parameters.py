"""Draw the pictures of docs/choosing_parameters.md: one parameter at a time, on a photo that scikit-image brings along.

    python docs/figures/draw_parameters.py              # writes parameter_*.jpg beside this file

The unary is made up as a network of stride 16 would give it: three ellipses drawn by hand, averaged over 16 × 16
pixels, disturbed by noise of a fixed seed, and enlarged again. Everything not named in a panel has the values of USUAL.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, unary_from_logits

STRIDE = 16
PANEL = 230  # width in pixels of the picture that is written
COLOURS = np.array([(70, 90, 130), (235, 90, 40), (250, 235, 170)], np.float32)
# Label, centre x, y, radii and angle in degrees: saucer and cup, then what is white or coffee inside.
ELLIPSES = ((1, 279, 232, 203, 152, 12), (1, 290, 150, 120, 125, 0), (2, 290, 117, 112, 88, 10))


class Parameters(NamedTuple):
    gaussian_sxy: float = 3
    gaussian_compat: float = 3
    bilateral_sxy: float = 80
    srgb: float = 13
    bilateral_compat: float = 10
    iterations: int = 10
    scale: float = 1  # of the logits, that is how sure the unary is

    def refine(self, logits: Tensor, image: Tensor) -> Tensor:
        kernels = [
            Gaussian(self.gaussian_sxy, self.gaussian_compat),
            Bilateral(self.bilateral_sxy, self.srgb, self.bilateral_compat),
        ]
        crf = DenseCRF(len(logits), kernels, iterations=self.iterations, output="labels")
        return crf(unary_from_logits(self.scale * logits), image)


USUAL = Parameters()
ROWS: dict[str, tuple[str, Sequence[float]]] = {
    "parameter_srgb.jpg": ("srgb", (2, 5, 13, 30, 80)),
    "parameter_bilateral_sxy.jpg": ("bilateral_sxy", (5, 20, 80, 200, 1000)),
    "parameter_bilateral_compat.jpg": ("bilateral_compat", (0, 3, 10, 30, 100)),
    "parameter_gaussian_sxy.jpg": ("gaussian_sxy", (0.5, 1, 3, 10, 30)),
    "parameter_gaussian_compat.jpg": ("gaussian_compat", (0, 1, 3, 10, 30)),
    "parameter_iterations.jpg": ("iterations", (0, 1, 2, 5, 10)),
    "parameter_unary_scale.jpg": ("scale", (0.2, 0.5, 1, 3, 10)),
}


def coarse_logits(height: int, width: int) -> Tensor:
    """[3, H, W], as from a network of stride 16."""
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int64)
    for label, centre_x, centre_y, radius_x, radius_y, degrees in ELLIPSES:
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        u, v = c * (x - centre_x) + s * (y - centre_y), -s * (x - centre_x) + c * (y - centre_y)
        labels[(u / radius_x) ** 2 + (v / radius_y) ** 2 < 1] = label
    shares = torch.nn.functional.one_hot(torch.from_numpy(labels)).permute(2, 0, 1)[None].float()
    small = interpolate(shares, scale_factor=1 / STRIDE, mode="area")
    noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(3))
    return interpolate(4 * small + 0.9 * noise, (height, width), mode="bilinear")[0]


def panel(photo: np.ndarray, labels: np.ndarray, caption: str) -> Image.Image:
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:-1] |= edge[1:]
    edge[:, :-1] |= edge[:, 1:]
    painted = 0.5 * COLOURS[labels] + 0.5 * photo
    return captioned(np.where(edge[..., None], 255, painted).astype(np.uint8), caption)


def captioned(picture: np.ndarray, caption: str) -> Image.Image:
    bar, height = 22, round(PANEL * picture.shape[0] / picture.shape[1])
    result = Image.new("RGB", (PANEL, height + bar), "white")
    result.paste(Image.fromarray(picture).resize((PANEL, height), Image.Resampling.BOX), (0, bar))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(result).text((PANEL / 2, bar / 2), caption, fill="black", font=font, anchor="mm")
    return result


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    gap = 4
    row = Image.new("RGB", (len(panels) * (PANEL + gap) - gap, panels[0].height), "white")
    for i, picture in enumerate(panels):
        row.paste(picture, (i * (PANEL + gap), 0))
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder, default: beside this file")
    folder = parser.parse_args(arguments).output
    photo = skimage.data.coffee()
    image, logits = torch.from_numpy(photo).permute(2, 0, 1), coarse_logits(*photo.shape[:2])

    def write(name: str, panels: Sequence[Image.Image]) -> None:
        side_by_side(panels).save(folder / name, quality=85)

    before, after = logits.argmax(0).numpy(), USUAL.refine(logits, image).numpy()
    start = [captioned(photo, "photo"), panel(photo, before, "unary alone"), panel(photo, after, "usual values")]
    write("parameter_start.jpg", start)
    for name, (field, values) in ROWS.items():
        settings = [(USUAL._replace(**{field: value}), f"{value:g}") for value in values]
        write(name, [panel(photo, chosen.refine(logits, image).numpy(), caption) for chosen, caption in settings])


if __name__ == "__main__":
    main()
