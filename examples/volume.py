"""Refine the segmentation of a volume whose voxels are longer than wide, and write its middle slices as a picture.

    python examples/volume.py

The volume is drawn here as an MR scanner would give it: slices 4 mm apart of pixels of 0.9 mm, with an organ, a lesion
in it and a thin vessel across, under noise and a bias of the coil; the coarse segmentation is blurred and noisy like
that of a small network. `spacing` states the size of a voxel, and with it bandwidths are in millimetres along every
axis; the same numbers taken as voxels reach too far from slice to slice, and lose the vessel. See docs/volumes.md.
"""

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool3d, one_hot

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, unary_from_logits

SPACING = (0.9, 0.9, 4.0)  # millimetres between voxels along x, y, z
NAMES = ("tissue", "organ", "lesion", "vessel")
BRIGHTNESS = torch.tensor([80.0, 120.0, 165.0, 215.0])
COLOURS = torch.tensor([[0, 0, 0], [70, 150, 90], [230, 90, 60], [80, 130, 240]])


def draw(size: int, slices: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image [1, D, H, W], labels [D, H, W] and the logits of a coarse segmentation [C, D, H, W]."""
    grid = torch.meshgrid(torch.arange(slices), torch.arange(size), torch.arange(size), indexing="ij")
    z, y, x = ((axis - (axis.max() / 2)) * step for axis, step in zip(grid, SPACING[::-1]))  # millimetres
    labels = torch.zeros_like(grid[0])
    labels[(x / 32) ** 2 + (y / 25) ** 2 + (z / 36) ** 2 < 1] = 1
    labels[(x - 10) ** 2 + (y - 5) ** 2 + (z - 4) ** 2 < 11**2] = 2
    labels[(x + 12 - 0.5 * z) ** 2 + (y + 4 + 0.3 * z) ** 2 < 3**2] = 3  # oblique: it moves by 2 mm from slice to slice
    image = BRIGHTNESS[labels] * (1 + 0.002 * x) + 20 * torch.randn(labels.shape)
    truth = one_hot(labels, len(NAMES)).movedim(-1, 0).float()
    scores = truth + 2 * torch.randn_like(truth)
    return image[None], labels, 3 * avg_pool3d(scores, (1, 7, 7), stride=1, padding=(0, 3, 3), count_include_pad=False)


def dice(labels: Tensor, truth: Tensor) -> list[float]:
    """Dice score of each label: 1 where both agree everywhere."""
    pairs = [(labels == label, truth == label) for label in range(len(NAMES))]
    return [(2 * (a & b).sum() / (a.sum() + b.sum())).item() for a, b in pairs]


def paint(image: Tensor, labels: Tensor) -> np.ndarray:
    """A slice [H, W] in grey under the colours of its labels."""
    grey = image[..., None].expand(-1, -1, 3)
    painted = torch.where(labels[..., None] > 0, 0.5 * grey + 0.5 * COLOURS[labels], grey)
    return painted.clamp(0, 255).byte().numpy()


def main(size: int = 96, slices: int = 24, output: Path = Path("out/volume.png")) -> dict[str, float]:
    """Mean Dice score of the segmentations: "before", "voxels" and "millimetres"."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    image, truth, logits = draw(size, slices)
    unary = unary_from_logits(logits, spatial_dims=3)

    def refine(spacing: float | tuple[float, ...]) -> Tensor:
        kernels = [Gaussian(sxy=1.5, compat=2, spacing=spacing), Bilateral(sxy=4, srgb=30, compat=4, spacing=spacing)]
        crf = DenseCRF(len(NAMES), kernels, spatial_dims=3, output="labels")
        return crf(unary.to(device), image.to(device)).cpu()

    begin = time.perf_counter()
    refined = {"before": logits.argmax(0), "voxels": refine(1), "millimetres": refine(SPACING)}
    elapsed = time.perf_counter() - begin

    print(f"{size} x {size} x {slices} voxels of {SPACING} mm, two inferences: {1e3 * elapsed:.0f} ms; Dice scores:")
    print(f"{'bandwidths in':14}" + "".join(f"{name:>8}" for name in NAMES))
    for name, labels in refined.items():
        print(f"{name:14}" + "".join(f"{score:8.3f}" for score in dice(labels, truth)))

    middle = slices // 2
    panels = [paint(image[0, middle], labels[middle]) for labels in (0 * truth, *refined.values(), truth)]
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(panels, 1)).resize((5 * 3 * size, 3 * size), Image.Resampling.NEAREST).save(output)
    print(f"image, before, voxels, millimetres, truth: {output.resolve()}")
    return {name: sum(dice(labels, truth)) / len(NAMES) for name, labels in refined.items()}


if __name__ == "__main__":
    main()
