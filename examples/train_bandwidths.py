"""Learn the weights and the bandwidths of a dense CRF by gradient descent.

    python examples/train_bandwidths.py

The data are drawn here: discs on noisy pictures, with a unary as a coarse network would give it (noisy and blurred).
The CRF starts from bandwidths that do not fit and is trained like any other module; pictures that it did not see show
what that brought. With a real network, put its logits through `unary_from_logits` and train both together.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, nll_loss, one_hot

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, unary_from_logits

CLASSES, SIZE, STEPS = 4, 64, 60
COLOURS = torch.tensor([[110.0, 110, 110], [170, 90, 80], [80, 150, 100], [90, 100, 170]])


def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, 3, H, W] on 0 to 255, labels [B, H, W] and unaries [B, C, H, W]."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for picture in labels:
        for label in range(1, CLASSES):
            row, col, radius = torch.rand(3) * torch.tensor([SIZE, SIZE, 12]) + torch.tensor([0, 0, 8])
            picture[(y - row) ** 2 + (x - col) ** 2 < radius**2] = label
    images = (COLOURS[labels].permute(0, 3, 1, 2) + 12 * torch.randn(count, 3, SIZE, SIZE)).clamp(0, 255)
    truth = one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()
    logits = avg_pool2d(truth + 3 * torch.randn_like(truth), 9, stride=1, padding=4, count_include_pad=False)
    return images, labels, unary_from_logits(2 * logits)


def score(crf: DenseCRF, images: Tensor, labels: Tensor, unary: Tensor) -> tuple[float, float]:
    """Loss and share of right pixels."""
    with torch.no_grad():
        log_q = crf(unary, images)
    return nll_loss(log_q, labels).item(), (log_q.argmax(1) == labels).float().mean().item()


def main(steps: int = STEPS) -> dict[str, float]:
    """Share of right pixels in pictures that it did not learn from: "no CRF", "before" and "after" training."""
    torch.manual_seed(0)
    train, test = draw(8), draw(8)
    kernels = [Gaussian(sxy=1, compat=1), Bilateral(sxy=10, srgb=60, compat=1)]
    # Log-probabilities keep the loss finite where a probability underflows.
    crf = DenseCRF(CLASSES, kernels, iterations=5, trainable=("weights", "bandwidths"), output="log_probabilities")
    merits = {"no CRF": (test[2].argmin(1) == test[1]).float().mean().item()}
    print(f"{merits['no CRF']:.1%} of the pixels are right before any CRF")
    loss_before, merits["before"] = score(crf, *test)
    print(f"before training: test loss {loss_before:.3f}, right {merits['before']:.1%}")

    # Weights and log-bandwidths are of one magnitude, so one learning rate serves all of them.
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        loss = nll_loss(crf(train[2], train[0]), train[1])
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:3d}: loss {loss.item():.3f}")

    loss_after, merits["after"] = score(crf, *test)
    print(f"after training:  test loss {loss_after:.3f}, right {merits['after']:.1%}")
    for name, parameter in crf.named_parameters():
        value = parameter.exp() if ".log_" in name else parameter
        print(f"{name.replace('log_', ''):20} {value.item():.3g}")
    return merits


if __name__ == "__main__":
    main()
