"""`DenseCRF` against what we did not write: pydensecrf, the dense formula, closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DOUBLE, noise
from oracles import assert_same, pattern_image, pattern_unary, photo, refine_with_pydensecrf
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, unary_from_labels

NORMALIZATIONS = ["none", "before", "after", "symmetric"]
COMPATS: dict[str, tuple[Any, Any]] = {
    "potts": (3.0, 10.0),
    "diagonal": ([-3.0, -1.0, -2.0], [-4.0, -10.0, -5.0]),
    "matrix": ([[-3.0, 0.5, 0.0], [0.5, -2.0, 1.0], [0.0, 1.0, -4.0]], np.diag([-7.0, -9.0, -5.0]).tolist()),
}


def assert_equals_pydensecrf(
    unary: np.ndarray,
    image: np.ndarray,
    device: torch.device,
    compats: Sequence[Any] = COMPATS["potts"],
    normalization: str = "symmetric",
    iterations: int = 10,
    bilateral: tuple[Any, Any] = (80.0, 13.0),
) -> None:
    """Q of [C, N] energies by both, with a Gaussian of 3 pixels and a bilateral kernel."""
    if normalization == "none":  # a row of the kernels sums to hundreds, not to 1: keep the messages as they are
        compats = [(np.array(compat) / 200).tolist() for compat in compats]
    sxy, srgb = np.broadcast_to(bilateral[0], 2).tolist(), np.broadcast_to(bilateral[1], 3).tolist()
    bandwidths = [(3.0, 3.0), (*sxy, *srgb)]
    expected = refine_with_pydensecrf(unary, image, bandwidths, compats, normalization, iterations)
    kernels = [Gaussian(3, compats[0]), Bilateral(*bilateral, compats[1])]
    crf = DenseCRF(len(unary), kernels, normalization=normalization, iterations=iterations)
    energies = torch.from_numpy(unary).reshape(-1, *image.shape[:2]).to(device)
    q = crf(energies, torch.from_numpy(image).permute(2, 0, 1).to(device))
    assert_same(q.flatten(1).cpu(), expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("form", COMPATS)
def test_pydensecrf(form: str, normalization: str, device: torch.device) -> None:
    image = photo("astronaut", 60, 80)
    assert_equals_pydensecrf(pattern_unary(3, 60, 80), image, device, COMPATS[form], normalization)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("labels", [2, 21])
def test_pydensecrf_on_photos(labels: int, name: str, device: torch.device) -> None:
    y, x = torch.meshgrid(torch.arange(120), torch.arange(160), indexing="ij")
    patches = (y // 24 * 3 + x // 20) % labels  # coarse labels, as a network gives them
    unary = unary_from_labels(patches, labels, 0.7).flatten(1).numpy()
    assert_equals_pydensecrf(unary, photo(name, 120, 160), device)


def test_pydensecrf_with_a_bandwidth_for_every_axis_and_channel(device: torch.device) -> None:
    bilateral = ((40.0, 25.0), (13.0, 20.0, 9.0))
    image = photo("coffee", 60, 80)
    assert_equals_pydensecrf(pattern_unary(4, 60, 80), image, device, bilateral=bilateral)


def test_pydensecrf_on_greys_and_whole_bandwidths(device: torch.device) -> None:
    grey = np.repeat(photo("astronaut", 60, 80).mean(2, keepdims=True).astype(np.uint8) // 8 * 8, 3, axis=2)
    assert_equals_pydensecrf(pattern_unary(3, 60, 80), grey, device, bilateral=(10.0, 8.0))  # points on faces


@pytest.mark.parametrize("iterations", [0, 1, 2])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_pydensecrf_at_a_size_that_is_no_multiple_of_four(
    iterations: int, normalization: str, device: torch.device
) -> None:
    # pydensecrf fills up with points whose features are zero. Where pixel 0 is black they add no vertex.
    image = pattern_image(61, 79)
    image[0, 0] = 0
    unary = pattern_unary(5, 61, 79)
    assert_equals_pydensecrf(unary, image, device, normalization=normalization, iterations=iterations)


def test_pydensecrf_on_voc_photos(voc_photos: list[tuple[Path, Path]], device: torch.device) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for path, labels in voc_photos[:2]:
        image = np.ascontiguousarray(np.array(pillow.open(path).convert("RGB"))[::2, ::2])
        height, width = (size // 2 * 2 for size in image.shape[:2])
        image = np.ascontiguousarray(image[:height, :width])
        annotation = np.array(pillow.open(labels))[::2, ::2][:height, :width].astype(np.int64)
        unary = unary_from_labels(annotation, 21, 0.7, unsure_label=255).reshape(21, -1).numpy()
        assert_equals_pydensecrf(unary, image, device)


def exact_mean_field(
    unary: Tensor, features: list[Tensor], matrices: list[Tensor], normalization: str, iterations: int
) -> Tensor:
    """Mean field with the exact kernel, from the formulas: unary [C, N], features [d, N], matrices [C, C]."""
    q = torch.softmax(-unary, 0)
    kernels = []
    for f in features:
        k = torch.exp(-(f.T[:, None] - f.T[None]).square().sum(2) / 2)
        rows = k.sum(1)
        before = {"before": 1 / rows, "symmetric": rows**-0.5}.get(normalization, torch.ones_like(rows))
        after = {"after": 1 / rows, "homogeneous": 1 / rows, "symmetric": rows**-0.5}.get(normalization, before * 0 + 1)
        kernels.append(after[:, None] * k * before)
    for _ in range(iterations):
        q = torch.softmax(-unary - sum(a @ (q @ k.T) for a, k in zip(matrices, kernels)), 0)
    return q


@pytest.mark.parametrize("normalization", [*NORMALIZATIONS, "homogeneous"])
@pytest.mark.parametrize("form", COMPATS)
def test_dense_filter_is_the_formula(form: str, normalization: str, device: torch.device) -> None:
    height, width = 7, 9
    image = torch.from_numpy(pattern_image(height, width)).permute(2, 0, 1)
    unary = torch.from_numpy(pattern_unary(3, height, width)).double()
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    position = torch.stack([x, y]).flatten(1)
    features = [position / 3, torch.cat([position / 8, image.flatten(1).double() / 20])]
    forms = [torch.tensor(compat, dtype=DOUBLE) for compat in COMPATS[form]]
    matrices = [
        {0: lambda w: -w * torch.eye(3, dtype=DOUBLE), 1: torch.diag}.get(c.dim(), lambda a: a)(c) for c in forms
    ]
    expected = exact_mean_field(unary, features, matrices, normalization, 5)
    crf = DenseCRF(
        3,
        [Gaussian(3, COMPATS[form][0]), Bilateral(8, 20, COMPATS[form][1])],
        filter="dense",
        iterations=5,
        normalization=normalization,
    )
    q = crf(unary.reshape(3, height, width).to(device), image.to(device))
    # Sums of 63 terms in double; with messages of some tens the softmax amplifies their rounding.
    torch.testing.assert_close(q.flatten(1).cpu(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("normalization", ["before", "after", "symmetric", "homogeneous"])
@pytest.mark.parametrize("form", COMPATS)
def test_lattice_is_exact_on_clusters(form: str, normalization: str, device: torch.device) -> None:
    # Points of a cluster are equal and clusters far apart: every normalized kernel takes the mean of a cluster.
    cluster = torch.randint(4, (40,), generator=torch.Generator().manual_seed(0))
    features = (100 * noise(3, 4))[:, cluster].to(device)
    unary = noise(2, 3, 40).to(device)
    kernels = [Features(features, COMPATS[form][0])]
    lattice, dense = (
        DenseCRF(3, kernels, normalization=normalization, filter=name, spatial_dims=1)(unary)
        for name in ("lattice", "dense")
    )
    torch.testing.assert_close(lattice, dense, rtol=1e-10, atol=1e-12)
    assert (lattice - (-unary).softmax(1)).abs().max() > 0.1


def test_lattice_approximates_the_dense_formula(device: torch.device) -> None:
    image = torch.from_numpy(photo("astronaut", 60, 80)).permute(2, 0, 1).to(device)
    confident = torch.from_numpy(pattern_unary(2, 60, 80)).reshape(2, 60, 80).to(device)
    kernels = [Gaussian(3, 3), Bilateral(30, 20, 5)]
    lattice, dense = (
        DenseCRF(2, kernels, iterations=5, filter=name)(confident, image) for name in ("lattice", "dense")
    )
    # What pydensecrf loses too, since Q equals its Q: see docs/accuracy.md.
    assert (lattice - dense).abs().mean() < 0.03
    assert (lattice.argmax(0) == dense.argmax(0)).double().mean() > 0.97
    assert (dense - (-confident).softmax(0)).abs().mean() > 0.1


def test_two_pixels_by_hand(device: torch.device) -> None:
    # Equal features: K averages the two. One update of U = (0, u) and (u, 0) with Potts weight w leaves them mixed.
    u, w = 1.5, 2.0
    unary = torch.tensor([[0.0, u], [u, 0.0]], dtype=DOUBLE, device=device)
    crf = DenseCRF(2, [Features(torch.zeros(1, 2, dtype=DOUBLE), w)], iterations=1).to(device)
    expected = torch.sigmoid(torch.tensor(u, dtype=DOUBLE)).item()
    assert crf(unary)[0, 0].item() == pytest.approx(expected, rel=1e-12)  # both labels have mean Q of one half
    unary = torch.tensor([[0.0, 0.0], [u, u]], dtype=DOUBLE, device=device)
    q = torch.sigmoid(torch.tensor(u, dtype=DOUBLE))
    expected = torch.sigmoid(u + w * (2 * q - 1)).item()
    assert crf(unary)[0, 0].item() == pytest.approx(expected, rel=1e-12)
