"""Refine a film as one volume of x, y and time, and count how often labels flicker, beside frame by frame.

    python examples/video.py

The film is drawn here: discs of two colours drift over an uneven ground, with noise in every frame, and a network that
looks at one frame at a time labels it coarsely and differently from frame to frame. Time is the third axis of `sxy`, in
frames here; with `spacing=(1, 1, 1 / 25)` it would be in seconds. See docs/volumes.md.
"""

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, unary_from_logits

CLASSES = 3
COLOURS = torch.tensor([[105.0, 115, 100], [170, 105, 85], [80, 110, 175]])  # of the ground and of discs


def draw(frames: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Film [3, T, H, W] on 0 to 255, labels [T, H, W] and the logits of a network [C, T, H, W]."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros_like(t)
    for disc in range(6):
        start, velocity = size * torch.rand(2), 3 * torch.rand(2) - 1.5  # pixels, pixels per frame
        radius = size * (0.08 + 0.08 * torch.rand(1))
        row, column = (start[axis] + velocity[axis] * t for axis in (0, 1))
        labels[(y - row) ** 2 + (x - column) ** 2 < radius**2] = 1 + disc % 2
    ground = 14 * torch.sin(x / 5) * torch.cos(y / 7)
    film = (COLOURS[labels].movedim(-1, 0) + ground + 20 * torch.randn(3, *labels.shape)).clamp(0, 255)
    truth = one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()
    logits = avg_pool2d(truth + 4 * torch.randn_like(truth), 9, stride=1, padding=4, count_include_pad=False)
    return film, labels, 3 * logits.transpose(0, 1)


def flicker(labels: Tensor, truth: Tensor) -> float:
    """How many of the pixels that show the same thing in the next frame have another label there."""
    same = truth[1:] == truth[:-1]
    return (labels[1:] != labels[:-1])[same].float().mean().item()


def main(frames: int = 16, size: int = 96, output: Path = Path("out/video.png")) -> dict[str, tuple[float, float]]:
    """Share of right pixels and flicker of the labels "before", "frame by frame" and "as one film"."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    film, truth, logits = draw(frames, size)
    unary, guide = unary_from_logits(logits, spatial_dims=3).to(device), film.to(device)

    settings = {"num_classes": CLASSES, "output": "labels"}
    single = DenseCRF(kernels=[Gaussian(sxy=2, compat=2), Bilateral(sxy=8, srgb=40, compat=5)], **settings)
    # Discs move by up to two pixels a frame: frames further than about two away say little about a place.
    whole_kernels = [Gaussian(sxy=(2, 2, 1), compat=2), Bilateral(sxy=(8, 8, 2), srgb=40, compat=5)]
    whole = DenseCRF(kernels=whole_kernels, spatial_dims=3, **settings)

    begin = time.perf_counter()
    labels = {
        "before": logits.argmax(0),
        # frames as a batch: [T, C, H, W]
        "frame by frame": single(unary.transpose(0, 1), guide.transpose(0, 1)).cpu(),
        "as one film": whole(unary, guide).cpu(),
    }
    elapsed = time.perf_counter() - begin

    merits = {name: ((own == truth).float().mean().item(), flicker(own, truth)) for name, own in labels.items()}
    print(f"{frames} frames of {size} x {size} pixels, both inferences: {1e3 * elapsed:.0f} ms")
    print(f"{'':16}{'right':>8}{'flicker':>9}   (of still pixels, from a frame to the next)")
    for name, (right, flickering) in merits.items():
        print(f"{name:16}{right:8.1%}{flickering:9.2%}")

    rows = [COLOURS[own[:6]] for own in (*labels.values(), truth)]
    picture = torch.cat(
        [film[:, :6].permute(1, 2, 3, 0).transpose(0, 1).flatten(1, 2)]
        + [row.transpose(0, 1).flatten(1, 2) for row in rows]
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.numpy().astype(np.uint8)).save(output)
    print(f"six frames: film, before, frame by frame, as one film, truth: {output.resolve()}")
    return merits


if __name__ == "__main__":
    main()
