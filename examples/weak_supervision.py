"""Train a small network from scribbles, with and without the CRF loss.

    python examples/weak_supervision.py

The data are drawn here: discs and bars on a ground, with uneven light and noise. Of every training picture only a few
strokes are labelled. Cross entropy on the strokes alone leaves the network free between them; `CRFLoss` asks alike
pixels to get the same label, without knowing which. Both networks are then judged on pictures that neither saw, pixel
by pixel.
"""

import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from densecrf_cuda import Bilateral, CRFLoss

CLASSES, SIZE, STEPS, UNLABELLED = 3, 48, 150, 255
COLOURS = torch.tensor([[120.0, 115, 110], [150, 95, 90], [100, 120, 150]])


def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, 3, H, W] on 0 to 255, labels [B, H, W], and scribbles: the labels on a few strokes, else 255."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    scribbles = torch.full_like(labels, UNLABELLED)
    for picture, strokes in zip(labels, scribbles):
        row, left, top = (10 + (SIZE - 20) * torch.rand(3)).long().tolist()
        picture[(y - row) ** 2 + (x - left) ** 2 < 100] = 1
        picture[(y - top).abs() + (x - (left + SIZE // 2) % SIZE).abs() < 11] = 2
        for label in range(CLASSES):
            inside = (picture == label).nonzero()
            r, c = inside[torch.randint(len(inside), ())].tolist()
            stroke = (slice(r, r + 2), slice(max(c - 4, 0), c + 5))
            strokes[stroke] = torch.where(picture[stroke] == label, label, strokes[stroke])
    light = 25 * interpolate(torch.randn(count, 1, 3, 3), size=(SIZE, SIZE), mode="bilinear")
    images = COLOURS[labels].permute(0, 3, 1, 2) + light + 6 * torch.randn(count, 3, SIZE, SIZE)
    return images.clamp(0, 255), labels, scribbles


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, CLASSES, 1),
    )


def train(images: Tensor, scribbles: Tensor, weight: float, steps: int) -> nn.Module:
    torch.manual_seed(1)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    regularizer = CRFLoss([Bilateral(sxy=12, srgb=15)])
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(images / 128 - 1)
        loss = cross_entropy(logits, scribbles, ignore_index=UNLABELLED)
        if weight > 0:  # the images as they are: bandwidths are in their units
            loss = loss + weight * regularizer(logits.softmax(1), images)
        loss.backward()
        optimizer.step()
    return model


def main(steps: int = STEPS) -> dict[float, float]:
    """Train with and without the CRF loss; the share of unseen pixels that are right, by the loss's weight."""
    torch.manual_seed(0)
    images, _, scribbles = draw(8)
    unseen, truth, _ = draw(16)
    print(f"{(scribbles != UNLABELLED).float().mean():.1%} of the training pixels are labelled")
    shares = {}
    for weight in (0.0, 0.5):
        start = time.perf_counter()
        model = train(images, scribbles, weight, steps)
        with torch.no_grad():
            right = shares[weight] = float((model(unseen / 128 - 1).argmax(1) == truth).float().mean())
        print(
            f"weight {weight} of the CRF loss: {right:.1%} of unseen pixels right ({time.perf_counter() - start:.0f} s)"
        )
    return shares


if __name__ == "__main__":
    main()
