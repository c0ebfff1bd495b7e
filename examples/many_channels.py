"""A guide of twelve channels, with a bandwidth for each, and a guide that a network learns to make of them.

    python examples/many_channels.py

The scenes are drawn here as a hyperspectral camera would see them: four materials, two of which look the same in
colour, and channels of very different noise. Four CRFs refine the same coarse labels: by the colours, by all channels
with one bandwidth, by all with the bandwidth that fits the noise of each, and by three channels that a convolution
learns to make of them from one scene with known labels, back through the mean field. See docs/volumes.md.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, nll_loss, one_hot

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, unary_from_logits

CLASSES, CHANNELS = 4, 12
NOISE = torch.tensor([6.0, 9, 60, 8, 7, 12, 8, 70, 50, 6, 10, 8])  # standard deviation of each channel
PALETTE = torch.tensor([[90, 90, 90], [220, 170, 60], [60, 140, 220], [120, 200, 110]])


def draw(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image [12, H, W], labels [H, W] and the logits of a coarse classifier [C, H, W]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(size, size, dtype=torch.long)
    for patch in range(12):
        (row, column), (height, width) = size * torch.rand(2), size * (0.1 + 0.15 * torch.rand(2))
        labels[((y - row).abs() < height) & ((x - column).abs() < width)] = patch % CLASSES
    colours = torch.tensor([[100.0, 100, 100], [150, 120, 80], [80, 110, 150], [80, 110, 150]])
    spectra = colours.repeat_interleave(4, 1)
    spectra[3] += 22 * torch.tensor([1.0, -1, 1, -1]).repeat(3)  # which no mean over four channels sees
    image = spectra[labels].permute(2, 0, 1) + NOISE[:, None, None] * torch.randn(CHANNELS, size, size)
    truth = one_hot(labels, CLASSES).permute(2, 0, 1).float()
    scores = avg_pool2d(truth + 3 * torch.randn_like(truth), 9, stride=1, padding=4, count_include_pad=False)
    return image, labels, 3 * scores


class Guide(nn.Module):
    """Features [B, 2 + 3, H, W]: where a pixel is, as `Bilateral` has it, and what is learned of its channels."""

    def __init__(self, sxy: float) -> None:
        super().__init__()
        self.sxy = sxy
        self.mix = nn.Conv2d(CHANNELS, 3, 1)
        with torch.no_grad():
            self.mix.weight.mul_(1 / NOISE.mean())

    def forward(self, image: Tensor) -> Tensor:
        grid = torch.meshgrid(*(torch.arange(n, device=image.device) for n in image.shape[2:]), indexing="ij")
        place = torch.stack(grid[::-1]).to(image.dtype) / self.sxy
        return torch.cat([place.expand(len(image), -1, -1, -1), self.mix(image)], 1)


def learn(crf: DenseCRF, unary: Tensor, image: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nll_loss(crf(unary[None], image[None], output="log_probabilities"), labels[None]).backward()
        optimizer.step()


def main(size: int = 96, steps: int = 40, output: Path = Path("out/many_channels.png")) -> dict[str, float]:
    """Share of pixels whose label is right, by the guide."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (seen, seen_labels, seen_logits), (image, truth, logits) = (
        tuple(tensor.to(device) for tensor in draw(size)) for _ in range(2)
    )
    colour = image.reshape(3, 4, size, size).mean(1)  # as a camera with three wide filters
    unary = unary_from_logits(logits)

    def refine(kernel: Bilateral | Features, guide: Tensor, steps: int = 0) -> Tensor:
        crf = DenseCRF(CLASSES, [Gaussian(sxy=2, compat=2), kernel], iterations=5).to(device)
        if steps:
            learn(crf, unary_from_logits(seen_logits), seen, seen_labels, steps)
        return crf(unary[None], guide[None], output="labels")[0]

    labels = {
        "no CRF": logits.argmax(0),
        "3 colours": refine(Bilateral(sxy=10, srgb=30, compat=5), colour),
        "12 channels, one bandwidth": refine(Bilateral(sxy=10, srgb=60, compat=5), image),
        "12 channels, each its own": refine(Bilateral(sxy=10, srgb=4 * NOISE, compat=5), image),
        "3 learned channels": refine(Features(Guide(sxy=10), compat=5), image, steps),
    }
    merits = {name: (own == truth).float().mean().item() for name, own in labels.items()}
    for name, right in merits.items():
        print(f"{name:28}{right:7.1%} right")

    panels = [colour.permute(1, 2, 0).cpu(), *(PALETTE[own.cpu()] for own in (*labels.values(), truth))]
    picture = torch.cat([panel.float() for panel in panels], 1).clamp(0, 255).numpy().astype(np.uint8)
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(output)
    print(f"colours, the labels in this order, truth: {output.resolve()}")
    return merits


if __name__ == "__main__":
    main()
