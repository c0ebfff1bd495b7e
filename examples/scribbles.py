"""Segment a photo from strokes of a brush, some of them careless, and score it on strokes that were held back.

    python examples/scribbles.py

The photo comes with scikit-image (`skimage.data.astronaut`: Eileen Collins, by NASA, in the public domain), its strokes
lie beside this file. Strokes in every second tile are shown to the CRF, the others tell how many labels come out
right. Then a careless hand adds blots with labels at random: taken for certain they spread; with a confidence of their
own, pixel by pixel, the picture overrules them. See docs/volumes.md for what else a unary can be made of.
"""

from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, unary_from_scribbles

SCRIBBLES = Path(__file__).parent / "astronaut_scribbles.png"
COLOURS = torch.tensor(
    [
        [0, 0, 0],
        [90, 110, 150],
        [190, 120, 40],
        [250, 200, 170],
        [230, 80, 20],
        [40, 60, 170],
        [60, 180, 90],
        [200, 90, 200],
    ]
)
TILE, BLOT = 96, 28  # pixels
CERTAIN, CARELESS = 0.98, 0.3


def nearest(strokes: Tensor, asked: Tensor) -> Tensor:
    """The label of the stroke that is nearest, [H, W], where it is asked for: what there is to beat."""
    sparse = torch.randperm(int((strokes > 0).sum()))[:1000]
    places, labels = strokes.nonzero()[sparse], strokes[strokes > 0][sparse]
    answer = torch.zeros_like(strokes)
    answer[asked] = labels[torch.cdist(asked.nonzero().float(), places.float()).argmin(1)]
    return answer


def blots(strokes: Tensor, size: int, count: int = 60) -> Tensor:
    """Strokes with squares of labels at random, where there were none."""
    careless = torch.zeros_like(strokes)
    for _ in range(count):
        row, column = (int(torch.randint(length - size, ())) for length in strokes.shape)
        careless[row : row + size, column : column + size] = torch.randint(1, int(strokes.max()) + 1, ())
    return torch.where(strokes > 0, strokes, careless)


def main(shrink: int = 1, output: Path = Path("out/scribbles.png")) -> dict[str, float]:
    """Share of the pixels of strokes held back whose label is right."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    photo = torch.from_numpy(skimage.data.astronaut().copy())[::shrink, ::shrink].permute(2, 0, 1)
    drawn = torch.from_numpy(np.array(Image.open(SCRIBBLES)))[::shrink, ::shrink].long()
    num_labels = int(drawn.max())
    y, x = torch.meshgrid(*(torch.arange(size) * shrink // TILE for size in drawn.shape), indexing="ij")
    shown = torch.where((y + x) % 2 == 0, drawn, 0)
    held_back = torch.where((y + x) % 2 == 1, drawn, 0)
    with_blots = blots(shown, BLOT // shrink)

    crf = DenseCRF(
        num_labels, [Gaussian(3 / shrink, 3), Bilateral(sxy=30 / shrink, srgb=10, compat=10)], output="labels"
    )

    def refine(strokes: Tensor, confidence: float | Tensor) -> Tensor:
        return crf(unary_from_scribbles(strokes, num_labels, confidence).to(device), photo.to(device)).cpu() + 1

    confidence = torch.where(shown > 0, CERTAIN, CARELESS)
    labels = {
        "nearest stroke": nearest(shown, held_back > 0),
        "CRF": refine(shown, CERTAIN),
        "with blots, nearest stroke": nearest(with_blots, held_back > 0),
        "with blots, all certain": refine(with_blots, CERTAIN),
        "with blots, own confidence": refine(with_blots, confidence),
    }
    merits = {name: (own == held_back)[held_back > 0].float().mean().item() for name, own in labels.items()}
    print(
        f"{(shown > 0).float().mean():.1%} of the pixels have a stroke; labels that are right where one was held back:"
    )
    for name, right in merits.items():
        print(f"{name:28}{right:7.1%}")

    panels = [photo.permute(1, 2, 0), COLOURS[shown], COLOURS[labels["CRF"]], COLOURS[with_blots]]
    panels += [COLOURS[labels[name]] for name in ("with blots, all certain", "with blots, own confidence")]
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(panels, 1).numpy().astype(np.uint8)).save(output)
    print(f"photo, strokes, CRF; strokes with blots, all certain, own confidence: {output.resolve()}")
    return merits


if __name__ == "__main__":
    main()
