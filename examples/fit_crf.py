"""Learn all numbers of a dense CRF from a few labelled pictures with `fit_crf`.

    python examples/fit_crf.py

The pictures are drawn here, each of another size: discs on noisy grounds, with a unary as a coarse network would give
it. The CRF starts from guesses. `fit_crf` returns a copy with the values of the best epoch; other pictures show what
that brought, beside guesses that nobody fitted. At the end the fitted kernels are printed as code. For a training loop
of your own, together with a network, see examples/train_bandwidths.py.
"""

import argparse
import time

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from densecrf_cuda import Bilateral, DenseCRF, FitEpoch, Gaussian, evaluate_crf, fit_crf, unary_from_logits

CLASSES = 4
COLOURS = torch.tensor([[110.0, 110, 110], [170, 90, 80], [80, 150, 100], [90, 100, 170]])


def draw(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A unary [C, H, W], an image [3, H, W] on 0 to 255, and labels [H, W] with a border of 255 around each object."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = torch.zeros(height, width, dtype=torch.long)
    for label in range(1, CLASSES):
        row, column, radius = (torch.rand(3) * torch.tensor([height, width, 8]) + torch.tensor([0, 0, 8])).tolist()
        labels[(y - row) ** 2 + (x - column) ** 2 < radius**2] = label
    image = (COLOURS[labels].permute(2, 0, 1) + 12 * torch.randn(3, height, width)).clamp(0, 255)
    truth = one_hot(labels, CLASSES).permute(2, 0, 1).float()
    logits = avg_pool2d(truth + 3 * torch.randn_like(truth), 9, stride=1, padding=4, count_include_pad=False)
    # As in PASCAL VOC: nobody can say what a pixel on an edge is, so it counts neither way.
    edge = (labels != labels.roll(1, 0)) | (labels != labels.roll(1, 1))
    return unary_from_logits(2 * logits), image, torch.where(edge, 255, labels)


def right(crf: DenseCRF, examples: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Share of labelled pixels whose most probable label is the true one."""
    hits = [(crf(u, image, output="labels") == labels)[labels != 255] for u, image, labels in examples]
    return torch.cat(hits).float().mean().item()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, and tell; the share of pixels right on pictures that were not fitted, by the CRF."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="log_likelihood", choices=["log_likelihood", "soft_iou"])
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    train, validation, unseen = ([draw(48 + 4 * i, 64 - 4 * i) for i in range(count)] for count in (4, 2, 6))

    def tell(epoch: FitEpoch) -> None:
        if epoch.epoch % 5 == 0:
            print(f"epoch {epoch.epoch:2d}: {epoch.objective:.4f}, validation {epoch.validation:.4f}")

    crf = DenseCRF(CLASSES, [Gaussian(sxy=1, compat=1), Bilateral(sxy=10, srgb=60, compat=1)], iterations=5)
    start = time.perf_counter()
    fit = fit_crf(
        crf,
        train,
        validation=validation,
        objective=arguments.objective,
        epochs=arguments.epochs,
        learning_rate=0.1,
        progress=tell,
    )
    print(f"fitted in {time.perf_counter() - start:.0f} s; epoch {fit.best} was the best")

    usual = DenseCRF(CLASSES, [Gaussian(sxy=3, compat=3), Bilateral(sxy=80, srgb=13, compat=10)], iterations=5)
    print(f"\non {len(unseen)} other pictures    {arguments.objective}   right")
    shares = {}
    for name, candidate in {
        "no CRF": DenseCRF(CLASSES),
        "usual values": usual,
        "start": crf,
        "fitted": fit.crf,
    }.items():
        score = evaluate_crf(candidate, unseen, objective=arguments.objective)
        shares[name] = right(candidate, unseen)
        print(f"{name:20} {score:14.3f} {shares[name]:9.1%}")

    learned = {name: f"{value:.3g}" for name, value in fit.parameters.items()}
    print(f"\nGaussian(sxy={learned['0.sxy']}, compat=1, weight={learned['0.weight']})")
    print(f"Bilateral(sxy={learned['1.sxy']}, srgb={learned['1.srgb']}, compat=1, weight={learned['1.weight']})")
    return shares


if __name__ == "__main__":
    main()
