"""Refine coarse labels of a photo and write one picture: photo | coarse labels | refined labels | boundaries.

    python examples/refine_photo.py
    python examples/refine_photo.py --photo mine.jpg --labels mine_scribbles.png --output mine_refined.png

Labels are a picture of the photo's size whose values (grey levels or palette indices) are 0 where nothing is known and
1 to C where a label was drawn. The photo that is used unless another is named comes with scikit-image
(`skimage.data.astronaut`: Eileen Collins, by NASA, in the public domain); its scribbles lie beside this file.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, unary_from_scribbles

SCRIBBLES = Path(__file__).parent / "astronaut_scribbles.png"
COLOURS = np.array(
    [(90, 110, 150), (190, 120, 40), (250, 200, 170), (230, 80, 20), (40, 60, 170), (60, 180, 90), (200, 90, 200)],
    np.float32,
)
BOUNDARY = np.array((255, 235, 59), np.uint8)


def read_photo(path: Path | None) -> np.ndarray:
    """[H, W, 3] uint8."""
    if path is None:
        import skimage.data

        return np.array(skimage.data.astronaut())
    return np.array(Image.open(path).convert("RGB"))


def read_labels(path: Path, photo: np.ndarray) -> np.ndarray:
    """[H, W] uint8 with values 0 (unknown) to C."""
    picture = Image.open(path)
    if picture.mode not in ("L", "P"):
        raise SystemExit(f"labels must be a grey or palette picture, {path} is {picture.mode}")
    labels = np.array(picture)
    if labels.shape != photo.shape[:2]:
        raise SystemExit(f"labels must have the size of the photo, {photo.shape[:2]}, {path} has {labels.shape}")
    if labels.max() == 0:
        raise SystemExit(f"labels must mark some pixels, {path} is 0 everywhere")
    return labels


def median_ms(work: Callable[[], Tensor], repeat: int = 5) -> float:
    """Median time of a call in milliseconds, after one call to warm up."""
    work()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def paint(photo: np.ndarray, labels: np.ndarray, opacity: float) -> np.ndarray:
    """The photo under the colours of labels 1..C; where the label is 0 it is greyed."""
    colours = COLOURS[(labels.astype(int) - 1) % len(COLOURS)]
    grey = 0.5 * photo.mean(2, keepdims=True) + 110
    painted = opacity * colours + (1 - opacity) * photo
    return np.where(labels[..., None] > 0, painted, grey).clip(0, 255).astype(np.uint8)


def draw_boundaries(photo: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The photo with a line, two pixels wide, where the label changes."""
    edge = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return np.where(edge[..., None], BOUNDARY, photo).astype(np.uint8)


def boundary_contrast(photo: np.ndarray, labels: np.ndarray) -> float:
    """How much colours of neighbours differ across boundaries of labels, in units of how much they differ anywhere."""
    pixels = photo.astype(np.float32)
    steps, changes = [], []
    for axis in (0, 1):
        steps.append(np.abs(np.diff(pixels, axis=axis)).sum(2).ravel())
        changes.append(np.diff(labels.astype(int), axis=axis).ravel() != 0)
    step = np.concatenate(steps)
    return float(step[np.concatenate(changes)].mean() / step.mean())


def compose(panels: dict[str, np.ndarray]) -> Image.Image:
    """Panels side by side, each under its caption."""
    height, width = next(iter(panels.values())).shape[:2]
    gap, bar = 8, 30
    picture = Image.new("RGB", (len(panels) * (width + gap) - gap, height + bar), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=18)
    for i, (caption, panel) in enumerate(panels.items()):
        left = i * (width + gap)
        draw.text((left + width / 2, bar / 2), caption, fill="black", font=font, anchor="mm")
        picture.paste(Image.fromarray(panel), (left, bar))
    return picture


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """How many scribbled pixels "keep" their label, and the "contrast" of the photo at the new boundaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, help="any picture; without it the astronaut of scikit-image")
    parser.add_argument("--labels", type=Path, help="coarse labels, 0 = unknown; without it the astronaut's scribbles")
    parser.add_argument("--output", type=Path, default=Path("out/refined.png"), help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=10, help="updates of mean field, default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.photo and not options.labels:
        parser.error("--photo needs --labels")

    photo = read_photo(options.photo)
    labels = read_labels(options.labels or SCRIBBLES, photo)
    num_labels = int(labels.max())
    image = torch.from_numpy(photo).permute(2, 0, 1).to(options.device)
    unary = unary_from_scribbles(labels, num_labels, confidence=0.95).to(options.device)
    crf = DenseCRF(num_labels, [Gaussian(sxy=3, compat=3), Bilateral(sxy=25, srgb=15, compat=10)])

    refined = crf(unary, image, output="labels", iterations=options.iterations).cpu().numpy() + 1

    panels = {
        "photo": photo,
        f"coarse labels ({(labels > 0).mean():.0%} of the pixels)": paint(photo, labels, 0.9),
        "refined labels": paint(photo, refined, 0.6),
        "boundaries": draw_boundaries(photo, refined),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    compose(panels).save(options.output)

    def infer(iterations: int) -> Tensor:
        # .cpu() waits for the device, so that the clock sees all of the work
        return crf(unary, image, output="labels", iterations=iterations).cpu()

    build, total = median_ms(lambda: infer(0)), median_ms(lambda: infer(options.iterations))
    print(
        f"{photo.shape[1]} x {photo.shape[0]} pixels, {num_labels} classes, {options.iterations} iterations on "
        f"{options.device} ({torch.get_num_threads()} threads): {total:.0f} ms, of which {build:.0f} ms to build the "
        f"lattices (medians of 5)"
    )
    merits = {
        "keep": float((refined == labels)[labels > 0].mean()),
        "contrast": boundary_contrast(photo, refined),
    }
    print(
        f"{merits['keep']:.1%} of the scribbled pixels keep their label; colours differ {merits['contrast']:.1f} times "
        f"as much across boundaries as between neighbours anywhere"
    )
    print(options.output.resolve())
    return merits


if __name__ == "__main__":
    main()
