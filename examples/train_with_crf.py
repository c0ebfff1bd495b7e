"""Train a network and the CRF inside it together, and see on photos left out what that does to boundaries.

    python examples/train_with_crf.py                         # pictures drawn here
    python examples/train_with_crf.py --data FOLDER           # photos: NAME.image.png, NAME.labels.png (255: unknown)

In the place of a backbone stand coarse scores, as a network of stride 16 gives them: the labels averaged over blocks,
disturbed by noise and partly confused. A small head and the CRF learn together, from all pictures but one, what to make
of them. The one left out is judged within w pixels of its true boundaries (a trimap): mean intersection over union
before any CRF, with the CRF as it begins, and with what was learned. Every picture is left out once.
"""

import argparse
import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, one_hot

import deeplab
from densecrf_cuda import Bilateral, DenseCRF, Gaussian

STRIDE, UNKNOWN = 16, 255
BANDS = (2, 5, 10, 20)  # half the widths of the trimaps in pixels
NAMES = ("no CRF", "as it begins", "learned")


class Picture(NamedTuple):
    """image [1, 3, H, W] on 0 to 255, labels [1, H, W], coarse scores [1, C, H / 16, W / 16]."""

    image: Tensor
    labels: Tensor
    scores: Tensor


class Head(nn.Module):
    """Coarse scores to logits: enlarged, smoothed, and as sure as they deserve; the same for every class."""

    scores: Tensor  # of the picture at hand, what a backbone would compute of it

    def __init__(self) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(1.0))
        self.smooth = nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate", bias=False)
        nn.init.dirac_(self.smooth.weight)

    def forward(self, input: Tensor) -> Tensor:
        scores = self.smooth(self.scores.transpose(0, 1)).transpose(0, 1)
        return self.sure * interpolate(scores, input.shape[-2:], mode="bilinear", align_corners=False)


def coarse_scores(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """What a network of stride 16 may say of labels [1, H, W]."""
    truth = one_hot(labels.where(labels < classes, 0), classes).permute(0, 3, 1, 2).float()
    size = [max(side // STRIDE, 2) for side in labels.shape[1:]]
    shares = interpolate(truth, size, mode="area")
    confused = shares.roll(1, dims=1) * 0.25
    return 4 * (shares + confused) + 0.8 * torch.randn(shares.shape, generator=generator)


def read_photos(folder: Path, shrink: int) -> list[tuple[Tensor, Tensor]]:
    """Images and labels, their sides divided by `shrink`; labels are numbered through as they occur."""
    from PIL import Image

    pairs = []
    for path in sorted(folder.glob("*.image.png")):
        photo = Image.open(path).convert("RGB")
        labels = Image.open(path.with_name(path.name.replace(".image.", ".labels.")))
        size = (photo.width // shrink, photo.height // shrink)
        image = np.array(photo.resize(size, Image.Resampling.BOX), np.float32)
        truth = np.array(labels.resize(size, Image.Resampling.NEAREST), np.int64)
        pairs.append((torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(truth)[None]))
    occurring = torch.cat([truth.unique() for _, truth in pairs]).unique()
    numbers = torch.full((256,), UNKNOWN)
    numbers[occurring[occurring != UNKNOWN]] = torch.arange(int((occurring != UNKNOWN).sum()))
    return [(image, numbers[truth]) for image, truth in pairs]


def draw_pictures(shrink: int, generator: torch.Generator, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Leaves of many corners on an uneven ground, in colours that differ from picture to picture."""
    height, width, pairs = 288 // shrink, 384 // shrink, []
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-4 / 3, 4 / 3, width), indexing="ij")
    for _ in range(count):
        labels = torch.zeros(height, width, dtype=torch.long)
        for label in (1, 2, 3):
            a, b, petals, phase = torch.rand(4, generator=generator).tolist()
            dx, dy = x - 1.6 * (a - 0.5), y - 1.2 * (b - 0.5)
            radius = 0.4 + 0.15 * torch.sin((3 + int(4 * petals)) * torch.atan2(dy, dx) + 6 * phase)
            labels[dx.hypot(dy) < radius] = label
        colours = 60 + 140 * torch.rand(4, 3, generator=generator)
        uneven = 25 * interpolate(torch.randn(1, 3, 6, 8, generator=generator), (height, width), mode="bicubic")
        noise = 10 * torch.randn(1, 3, height, width, generator=generator)
        pairs.append((colours[labels].permute(2, 0, 1)[None] + uneven + noise, labels[None]))
    return pairs


def trimap(labels: Tensor, width: int) -> Tensor:
    """Pixels [1, H, W] within `width` of where the label changes, those of unknown label left out."""
    edge = torch.zeros(labels.shape)
    across, down = labels[..., 1:] != labels[..., :-1], labels[:, 1:] != labels[:, :-1]
    edge[..., 1:][across] = edge[..., :-1][across] = 1
    edge[:, 1:][down] = edge[:, :-1][down] = 1
    return (max_pool2d(edge, 2 * width - 1, stride=1, padding=width - 1) > 0) & (labels != UNKNOWN)


def mean_iou(predicted: Tensor, labels: Tensor, where: Tensor) -> float:
    """Over the classes that the truth has there."""
    predicted, labels = predicted[where], labels[where]
    shares = []
    for label in labels.unique():
        both, either = (predicted == label) & (labels == label), (predicted == label) | (labels == label)
        shares.append((both.sum() / either.sum()).item())
    return sum(shares) / len(shares)


def initial_model(classes: int, shrink: int) -> deeplab.WithCRF:
    """The head and a CRF with published values, smaller by as much as the pictures are."""
    kernels = [Gaussian(sxy=3 / shrink, compat=1, weight=3), Bilateral(sxy=49 / shrink, srgb=5, compat=1, weight=4)]
    crf = DenseCRF(classes, kernels, trainable=("weights", "bandwidths"))
    return deeplab.with_crf(Head(), crf, normalization="imagenet")


def run(model: deeplab.WithCRF, picture: Picture) -> dict[str, Tensor] | Tensor:
    model.model.scores = picture.scores
    return model(deeplab.NORMALIZATIONS["imagenet"].normalize(picture.image))


def train(model: deeplab.WithCRF, pictures: Sequence[Picture], steps: int) -> None:
    """One step is one look at every picture; the network's own scores count too, so that they stay scores."""
    model.train()
    optimizer = torch.optim.Adam(deeplab.parameter_groups(model, 0.01, multipliers={"crf": 5}))
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        for picture in pictures:
            loss = deeplab.output_loss(run(model, picture), picture.labels, {"out": 1.0, "logits": 0.2})
            (loss / len(pictures)).backward()
        optimizer.step()
        schedule.step()


def judge(model: deeplab.WithCRF, picture: Picture) -> tuple[list[float], list[float]]:
    """IoU without and with the CRF in each band, and in the whole picture."""
    model.eval()
    with torch.no_grad():
        refined = run(model, picture)
        logits = model.model(picture.image)
    everywhere = picture.labels != UNKNOWN
    places = [*(trimap(picture.labels, band) for band in BANDS), everywhere]
    plain, better = (
        [mean_iou(scores.argmax(1), picture.labels, place) for place in places] for scores in (logits, refined)
    )
    return plain, better


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Leave every picture out once; mean IoU by NAMES, in each of BANDS and in the whole pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("DENSECRF_TEST_DATA"), help="folder of photos")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shrink", type=int, default=1, help="divides the sides of the pictures")
    parser.add_argument("--figure", type=Path, help="draw the means as a curve over the width of the band")
    arguments = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(0)
    if arguments.data and any(arguments.data.glob("*.image.png")):
        pairs = read_photos(arguments.data, arguments.shrink)
    else:
        pairs = draw_pictures(arguments.shrink, generator)
    classes = 1 + max(int(labels[labels != UNKNOWN].max()) for _, labels in pairs)
    pictures = [Picture(image, labels, coarse_scores(labels, classes, generator)) for image, labels in pairs]

    results: dict[str, list[list[float]]] = {name: [] for name in NAMES}
    print(
        f"{len(pictures)} pictures, {classes} classes; IoU within {', '.join(map(str, BANDS))} pixels, and everywhere"
    )
    for left_out, picture in enumerate(pictures):
        model = initial_model(classes, arguments.shrink)
        learned = copy.deepcopy(model)
        train(learned, [other for i, other in enumerate(pictures) if i != left_out], arguments.steps)
        values = (*judge(model, picture), judge(learned, picture)[1])
        for name, value in zip(NAMES, values):
            results[name].append(value)
            print(f"without picture {left_out}: {name:14}", "  ".join(f"{100 * share:5.1f}" for share in value))
        print("   ", "  ".join(f"{name.split('.', 1)[1]} {p.item():.3g}" for name, p in numbers(learned).items()))
    means = {name: np.mean(values, 0).tolist() for name, values in results.items()}
    for name, value in means.items():
        print(f"mean: {name:26}", "  ".join(f"{100 * share:5.1f}" for share in value))
    if arguments.figure:
        draw(means, arguments.figure)
    return means


def numbers(model: deeplab.WithCRF) -> dict[str, Tensor]:
    """What was learned, apart from the kernel of the head; bandwidths in their units."""
    named = {name: p.exp() if ".log_" in name else p for name, p in model.named_parameters() if p.dim() == 0}
    return {name.replace("log_", "").replace("crf.kernels.", "crf."): p for name, p in named.items()}


def draw(means: dict[str, list[float]], path: Path) -> None:
    """The means over the widths of the bands."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "densecrf_cuda", "svg.fonttype": "path"}):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for (name, values), colour in zip(means.items(), ("#777777", "#a67c1a", "#2f5d94")):
            axes.plot(BANDS, [100 * value for value in values[:-1]], "o-", color=colour, label=name)
        axes.set(xlabel="pixels on either side of the boundary", ylabel="mean IoU, %", xticks=BANDS)
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
