"""`crf_loss` and `CRFLoss` against the formulas written out with the whole matrix of pairs, and at work."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DOUBLE, noise
from torch import Tensor, nn

from densecrf_cuda import Bilateral, CRFLoss, Features, Gaussian, Lattice, crf_loss

GRID = (6, 7)
KERNELS = (Bilateral(3.0, (40.0, 45.0, 50.0), 2.0), Gaussian((1.7, 1.3), 0.5, weight=3.0))


def example(device: torch.device, *batch: int, labels: int = 3, grid: tuple[int, ...] = GRID) -> tuple[Tensor, Tensor]:
    """Probabilities and an image in float64, points off the faces of simplices."""
    probabilities = noise(*batch, labels, *grid).mul(2).softmax(len(batch))
    return probabilities.to(device), 128 + 50 * noise(*batch, 3, *grid, seed=2).to(device)


def affinity(image: Tensor, filter: str, normalization: str) -> np.ndarray:
    """W [N, N] of KERNELS: each kernel as a matrix, normalised by its row sums, times its weight."""
    y, x = torch.meshgrid(*map(torch.arange, image.shape[1:]), indexing="ij")
    xy = torch.stack([x, y]).to(image)
    bilateral = torch.cat([xy / 3.0, image / torch.tensor([40.0, 45.0, 50.0]).to(image)[:, None, None]])
    spatial = xy / torch.tensor([1.7, 1.3], dtype=DOUBLE).to(image)[:, None, None]
    total = np.zeros((xy[0].numel(),) * 2)
    for weight, features in ((2.0, bilateral), (1.5, spatial)):
        if filter == "dense":
            f = features.flatten(1).T.cpu().numpy()
            kernel = np.exp(-((f[:, None] - f[None]) ** 2).sum(2) / 2)
        else:  # a column for every point
            points = torch.eye(features[0].numel()).to(features).reshape(-1, *features.shape[1:])
            kernel = Lattice(features).filter(points, "none").flatten(1).T.cpu().numpy()
        if normalization == "symmetric":
            scale = 1 / np.sqrt(kernel.sum(1))
            kernel = scale[:, None] * kernel * scale
        total += weight * kernel
    return total


def formula(kind: str, s: np.ndarray, w: np.ndarray, r: np.ndarray) -> float:
    """Σ_k over labels of S [C, N], with r in the place of 1."""
    total = 0.0
    for row in s:
        inside = row * r
        cut = inside @ w @ (r - inside)
        total += cut / (inside @ w @ r) if kind == "normalized_cut" else cut / r.sum()
    return total


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("filter", ["lattice", "dense"])
@pytest.mark.parametrize(("kind", "normalization"), [("potts", "symmetric"), ("normalized_cut", "none")])
def test_formula(kind: str, normalization: str, filter: str, masked: bool, device: torch.device) -> None:
    s, image = example(device)
    mask = noise(*GRID, seed=3).to(device) > 0 if masked else None
    r = np.ones(s[0].numel()) if mask is None else mask.cpu().numpy().ravel().astype(float)
    expected = formula(kind, s.flatten(1).cpu().numpy(), affinity(image, filter, normalization), r)
    assert expected > 0.1
    got = crf_loss(s, image, mask, kernels=KERNELS, kind=kind, filter=filter)
    assert got.item() == pytest.approx(expected, rel=1e-12)  # float64
    # a mask of weights, half as large everywhere: the Potts loss is of second degree, its N of first
    if mask is not None:
        half = crf_loss(s, image, 0.5 * mask.double(), kernels=KERNELS, kind=kind, filter=filter)
        assert half.item() == pytest.approx(expected * (0.5 if kind == "potts" else 1), rel=1e-12)


def test_difference_to_the_negative_loss_of_the_authors(device: torch.device) -> None:
    s, image = example(device)
    w = affinity(image, "lattice", "symmetric")
    theirs = -sum(row @ w @ row for row in s.flatten(1).cpu().numpy())
    ours = crf_loss(s, image, kernels=KERNELS).item() * s[0].numel()
    assert theirs < 0 < ours
    assert ours == pytest.approx(theirs + w.sum(), rel=1e-12)


@pytest.mark.parametrize("filter", ["lattice", "dense"])
@pytest.mark.parametrize("kind", ["potts", "normalized_cut"])
def test_gradients(kind: str, filter: str, device: torch.device) -> None:
    inputs = [*example(device, 2, labels=2, grid=(2, 3)), noise(2, 2, 3, seed=3).sigmoid().to(device)]
    module = CRFLoss(KERNELS, kind=kind, filter=filter, reduction="none")
    leaves = [tensor.requires_grad_() for tensor in inputs]
    for gradient in torch.autograd.grad(module(*leaves).square().sum(), leaves):
        assert gradient.abs().max() > 0
    assert torch.autograd.gradcheck(module, leaves)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return nn.functional.one_hot(labels, classes).movedim(-1, 0).float()


def test_known_values(device: torch.device) -> None:
    image = torch.zeros(3, *GRID, device=device)
    everywhere = one_hot(torch.ones(GRID, dtype=torch.long, device=device), 3)
    assert crf_loss(everywhere, image, kernels=KERNELS).item() == 0
    # nobody has labels 0 and 2: each counts 1, the limit of few pixels
    assert crf_loss(everywhere, image, kernels=KERNELS, kind="normalized_cut").item() == pytest.approx(2, abs=1e-6)
    # undecided between two labels everywhere: S (1 - S) = 1/4 twice, times a row sum near 3.5
    undecided = torch.full((2, *GRID), 0.5, device=device)
    assert crf_loss(undecided, image, kernels=KERNELS).item() == pytest.approx(3.5 / 2, rel=0.1)
    assert crf_loss(undecided, image, kernels=KERNELS, kind="normalized_cut").item() == pytest.approx(1, rel=1e-5)
    # two regions whose colours have nothing in common: no pair is cut where the labels follow the colours
    image[:, :, 3:] = 255
    labels = (torch.arange(7, device=device) >= 3).long().expand(GRID)
    along, across = one_hot(labels, 2), one_hot(labels.roll(2, 1), 2)
    kernels = [Bilateral(5, 5)]
    assert crf_loss(along, image, kernels=kernels).item() == 0
    assert crf_loss(across, image, kernels=kernels).item() > 0.2
    assert crf_loss(along, image, kernels=kernels, kind="normalized_cut").item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["potts", "normalized_cut"])
def test_range(kind: str, device: torch.device) -> None:
    for seed in range(5):
        logits = 5 * noise(2, 4, *GRID, seed=seed, dtype=torch.float32).to(device)
        image = example(device, 2)[1].float()
        loss = crf_loss(logits.softmax(1), image, kernels=KERNELS, kind=kind, reduction="none")
        # 1e-6: float32. The lattice's matrix is not quite symmetric, so its norm may be a little above 1.
        assert (loss >= -1e-6).all() and (loss <= (3.5 * 1.05 if kind == "potts" else 4 + 1e-5)).all()


@pytest.mark.parametrize("kind", ["potts", "normalized_cut"])
def test_one_channel_is_the_foreground_of_two(kind: str, device: torch.device) -> None:
    s, image = example(device, 2, labels=2)
    both = torch.cat([1 - s[:, 1:], s[:, 1:]], 1)
    one, two = (crf_loss(p, image, kernels=KERNELS, kind=kind) for p in (s[:, 1:], both))
    torch.testing.assert_close(one, two, rtol=1e-13, atol=0)  # other strides, so torch may add in another order


@pytest.mark.parametrize("kind", ["potts", "normalized_cut"])
def test_labels_that_no_pixel_has_and_empty_masks(kind: str, device: torch.device) -> None:
    logits = torch.zeros(2, 3, *GRID, device=device)
    logits[:, 2] = -200  # exp underflows
    logits[:, 1] = -80  # and here its square does
    logits.requires_grad_()
    mask = torch.ones(2, *GRID, device=device)
    mask[1] = 0
    image = torch.zeros(2, 3, *GRID, device=device)
    loss = crf_loss(logits.softmax(1), image, mask, kernels=KERNELS, kind=kind, reduction="none")
    loss.sum().backward()
    assert loss[1].item() == 0 and loss.isfinite().all()
    assert logits.grad.isfinite().all() and (logits.grad[1] == 0).all()


def test_reductions_batches_and_dtypes(device: torch.device) -> None:
    s, image = (tensor.float() for tensor in example(device, 3))
    module = CRFLoss(KERNELS, reduction="none")
    each = module(s, image)
    assert each.shape == (3,) and module(s[0], image[0]).shape == ()
    assert all(torch.equal(module(s[b], image[b]), each[b]) for b in range(3))
    assert torch.equal(CRFLoss(KERNELS)(s, image), each.mean())
    assert torch.equal(CRFLoss(KERNELS, reduction="sum")(s, image), each.sum())
    assert torch.equal(copy.deepcopy(module)(s, image), each)
    half = module(s.half(), image)
    assert half.dtype == torch.float32
    assert torch.equal(half, module(s.half().float(), image))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(module(s, image), each)
    assert list(module.parameters()) == []


def test_points_and_volumes(device: torch.device) -> None:
    points = noise(3, 30).to(device)
    s = noise(2, 4, 30, seed=4).softmax(1).to(device)
    cloud = CRFLoss([Features(points, bandwidth=0.5)], reduction="none", spatial_dims=1)
    assert torch.equal(cloud(s)[0], crf_loss(s[0], kernels=[Features(points, bandwidth=0.5)]))
    volume = noise(1, 2, 3, 4, 5, seed=5).softmax(1).to(device)
    scan = 50 * noise(1, 1, 3, 4, 5, seed=6).to(device)
    kernels = [Bilateral((2, 2, 1), 30)]
    whole = crf_loss(volume, scan, kernels=kernels)
    assert torch.equal(whole, crf_loss(volume[0], scan[0], kernels=kernels, spatial_dims=3)) and whole > 0


@pytest.mark.filterwarnings("ignore:::torch")  # torch's compiler warns of torch
def test_compiled(device: torch.device) -> None:
    module = CRFLoss(KERNELS)
    s, image = (tensor.float() for tensor in example(device, 2))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (module, compiled):
        leaf = s.clone().requires_grad_()
        loss = run(leaf, image)
        loss.backward()
        gradients.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-7)  # sums in another order
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["potts", "normalized_cut"])
def test_scribbles_become_a_segmentation(kind: str) -> None:
    # Free logits for every pixel: the cross entropy alone says nothing off the scribbles, the loss spreads them.
    height, width = 24, 32
    truth = ((torch.arange(height)[:, None] - 12) ** 2 + (torch.arange(width) - 14) ** 2 < 70).long()
    colours = torch.tensor([[70.0, 90, 80], [120.0, 80, 90]])
    image = colours[truth].permute(2, 0, 1) + 6 * noise(3, height, width, dtype=torch.float32)
    scribbles = torch.full((height, width), 255)
    scribbles[12, 11:17] = 1
    scribbles[2, 4:28] = 0

    def train(weight: float) -> float:
        logits = torch.zeros(2, height, width, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.2)
        regularizer = CRFLoss([Bilateral(10, 15)], kind=kind)
        for _ in range(60):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(logits[None], scribbles[None], ignore_index=255)
            (loss + weight * regularizer(logits.softmax(0), image)).backward()
            optimizer.step()
        return (logits.argmax(0) == truth).float().mean().item()

    assert train(0.0) < 0.8  # everything off the scribbles stays undecided, so label 0
    assert train(2.0) > 0.97


def test_bad_input() -> None:
    s, image = torch.full((2, 4, 5), 0.5), torch.zeros(3, 4, 5)
    settings: list[tuple[dict[str, Any], str]] = [
        ({"kind": "ising"}, "kind must be 'potts' or 'normalized_cut', got 'ising'"),
        ({"reduction": "max"}, "reduction must be 'mean' or 'sum' or 'none', got 'max'"),
        ({"filter": "exact"}, "filter must be 'lattice' or 'dense', got 'exact'"),
        ({"kernels": []}, "kernels must hold at least one kernel, got none"),
        ({"normalization": "l2"}, "normalization must be one of .*, got 'l2'"),
        (
            {"kernels": [Gaussian(3, -1)]},
            "compat must be a number, with its weight not negative, got Gaussian.*compat=-1",
        ),
        ({"kernels": [Gaussian(3, [1.0])]}, r"compat must be a number, .*compat=\[1.0\]"),
    ]
    for setting, message in settings:
        with pytest.raises(ValueError, match=message):
            crf_loss(s, image, **setting)
    with pytest.raises(TypeError, match="kernels must be Gaussian, Bilateral or Features, got int"):
        crf_loss(s, image, kernels=[3])
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"probabilities must be in \[0, 1\], got {value}"):
            crf_loss(torch.full((2, 4, 5), value), image)
    with pytest.raises(ValueError, match=r"probabilities must have at least one channel, got shape \(0, 4, 5\)"):
        crf_loss(s[:0], image)
    with pytest.raises(ValueError, match=r"probabilities must be \[B, C, H, W\] or \[C, H, W\], got shape \(4,\)"):
        crf_loss(s[0, :, 0], image)
    with pytest.raises(TypeError, match=r"probabilities must be a torch\.Tensor, got list"):
        crf_loss([0.5], image)
    with pytest.raises(ValueError, match="image must have the spatial shape of probabilities"):
        crf_loss(s, image[:, :3])
    with pytest.raises(ValueError, match="needs an image, got none"):
        crf_loss(s)
    with pytest.raises(ValueError, match=r"mask must have the shape of .*, \(4, 5\), got \(1, 4, 5\)"):
        crf_loss(s, image, torch.ones(1, 4, 5))
    with pytest.raises(TypeError, match=r"mask must be bool or floating, got torch\.int64"):
        crf_loss(s, image, torch.ones(4, 5, dtype=torch.long))
    with pytest.raises(TypeError, match=r"mask must be a torch\.Tensor, got int"):
        crf_loss(s, image, 1)
    for value in (-1.0, float("inf")):
        with pytest.raises(ValueError, match=f"mask must be finite and not negative, got {value}"):
            crf_loss(s, image, torch.full((4, 5), value))
