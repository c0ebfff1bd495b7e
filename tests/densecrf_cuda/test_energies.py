"""The energy of a labelling, against sums over pairs of points written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DOUBLE, noise
from inference_model import make_example, matrix_of
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, Lattice

COMPATS: dict[str, Any] = {
    "potts": 3.0,
    "diagonal": [-3.0, -1.0, 2.0],
    "matrix": [[-3.0, 0.5, 0.0], [1.5, -2.0, 1.0], [0.0, 1.0, 4.0]],
}


@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric", "homogeneous"])
@pytest.mark.parametrize("form", COMPATS)
def test_double_loop(form: str, normalization: str, device: torch.device) -> None:
    example = make_example([COMPATS[form], 2.0], 3, normalization, points=9)
    labels = torch.arange(9) * 2 % 3
    expected = sum(float(example.unary[x, n]) for n, x in enumerate(labels.tolist()))
    for f, m in example.model.terms:
        for n, x in enumerate(labels.tolist()):
            for other, y in enumerate(labels.tolist()):
                expected += f[n, other] * m[x, y] / 2
    got = example.crf.to(device).energy(labels.to(device), example.unary.to(device))
    assert got.dtype == DOUBLE and got.shape == ()
    assert got.item() == pytest.approx(expected, rel=1e-12)  # sums of 81 terms in double


def test_textbook_potts_energy(device: torch.device) -> None:
    """Σ_{n<m} w [x_n ≠ x_m] k(n, m) lies half the sum of the filter above: its reward for the pairs of all labels."""
    example = make_example([3.0], 3, "symmetric", points=9)
    labels = np.arange(9) % 3
    f = example.model.terms[0][0]
    textbook = sum(3.0 * f[n, m] for n in range(9) for m in range(n) if labels[n] != labels[m])
    textbook += sum(float(example.unary[x, n]) for n, x in enumerate(labels))
    got = example.crf.to(device).energy(torch.from_numpy(labels).to(device), example.unary.to(device))
    assert got.item() == pytest.approx(textbook - 3.0 * f.sum() / 2, rel=1e-12)


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_it_is_the_energy_of_a_certain_q(filter: str, device: torch.device) -> None:
    # A unary that allows one label makes Q one-hot, of entropy 0.
    labels = torch.arange(6 * 7).reshape(6, 7) % 3
    unary = torch.where(torch.arange(3)[:, None, None] == labels, noise(3, 6, 7), torch.inf).to(device)
    crf = DenseCRF(3, [Gaussian(2, 3), Gaussian(1, COMPATS["matrix"])], filter=filter)
    start = next(crf.steps(unary))
    energy = crf.energy(labels.to(device), unary)
    torch.testing.assert_close(start.energy, energy, rtol=1e-12, atol=0)
    torch.testing.assert_close(start.free_energy, energy, rtol=1e-12, atol=0)
    other = labels.clone()
    other[0, 0] += 1
    assert crf.energy(other.to(device), unary).item() == math.inf


def test_lattice(device: torch.device) -> None:
    features = noise(2, 5, 6).to(device)
    unary, labels = noise(2, 3, 5, 6).to(device), (torch.arange(2 * 30).reshape(2, 5, 6) * 7 % 3).to(device)
    crf = DenseCRF(3, [Features(features, COMPATS["matrix"], normalization="after")])
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).to(DOUBLE)
    filtered = Lattice(features).filter(one_hot, "after")
    matrix = torch.from_numpy(matrix_of(COMPATS["matrix"], 3)).to(device)
    expected = (one_hot * (unary + torch.einsum("lm,bmhw->blhw", matrix, filtered) / 2)).sum((1, 2, 3))
    torch.testing.assert_close(crf.energy(labels, unary), expected, rtol=1e-12, atol=0)


def test_shapes_and_dtypes(device: torch.device) -> None:
    crf = DenseCRF(2, [Gaussian(2, 1), Bilateral(4, 20, 1)])
    unary = noise(3, 2, 5, 6, dtype=torch.float32).to(device)
    image = torch.randint(256, (3, 3, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(device)
    labels = crf.map(unary, image)
    energies = crf.energy(labels, unary, image)
    assert energies.shape == (3,) and energies.dtype == DOUBLE
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(crf.energy(labels.to(dtype), unary, image), energies)
    for b in range(3):
        assert torch.equal(crf.energy(labels[b], unary[b], image[b]), energies[b])
    torch.testing.assert_close(crf.energy(labels, unary.half(), image), energies, rtol=1e-3, atol=0)  # unary rounded
    volume = DenseCRF(2, [Gaussian(1, 1)], spatial_dims=3)
    flat = noise(2, 2, 3, 4)
    assert volume.energy(torch.zeros(2, 3, 4, dtype=torch.int64, device=device), flat.to(device)).shape == ()


def test_map_is_the_most_probable_label(device: torch.device) -> None:
    crf = DenseCRF(3, [Gaussian(2, 2)], iterations=3)
    unary = noise(2, 3, 7, 8, dtype=torch.float32).to(device)
    labels = crf.map(unary)
    assert labels.dtype == torch.int64 and torch.equal(labels, crf(unary).argmax(1))
    assert torch.equal(crf.map(unary, iterations=0), unary.argmin(1))
    assert (crf.energy(labels, unary) < crf.energy(unary.argmin(1), unary)).all()  # that is what smoothing is for


def test_gradients(device: torch.device) -> None:
    features, labels = noise(2, 7).to(device), torch.arange(7, device=device) % 3
    compat = torch.tensor(COMPATS["matrix"], dtype=DOUBLE)

    def energy(unary: Tensor, features: Tensor, weight: Tensor, compat: Tensor) -> Tensor:
        crf = DenseCRF(3, [Features(features, 1.0)], filter="dense", spatial_dims=1)
        values = {"kernels.0.weight": weight, "kernels.0.compat": compat, "kernels.0.features": features}
        call = torch.nn.Module()
        call.crf = crf
        call.forward = lambda: crf.energy(labels, unary)
        return torch.func.functional_call(call, {f"crf.{name}": value for name, value in values.items()}, ())

    inputs = [noise(3, 7), features, torch.tensor(1.5, dtype=DOUBLE), compat]
    assert torch.autograd.gradcheck(energy, [tensor.to(device).requires_grad_() for tensor in inputs])


def test_bad_labels() -> None:
    crf, unary = DenseCRF(3, [Gaussian(2, 1)]), torch.zeros(3, 4, 5)
    good = torch.zeros(4, 5, dtype=torch.int64)
    for labels, value in ((good + 3, "3"), (good - 1, "-1")):
        with pytest.raises(ValueError, match=rf"labels must be in 0 to 2, got {value}"):
            crf.energy(labels, unary)
    with pytest.raises(ValueError, match=r"shape of unary without its labels, \(4, 5\), got \(5, 4\)"):
        crf.energy(good.T, unary)
    with pytest.raises(TypeError, match=r"labels must have an integer dtype, got torch\.float32"):
        crf.energy(good.float(), unary)
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got list"):
        crf.energy(good.tolist(), unary)
    with pytest.raises(ValueError, match="unary must not be NaN"):
        crf.energy(good, unary * torch.nan)


def test_labels_that_nobody_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, unary = torch.zeros(2, 4, 5, dtype=torch.int64), torch.zeros(2, 3, 4, 5)
    labels[1, 2, 2] = 3
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # then the CPU is asked as little as a GPU
    assert DenseCRF(3, [Gaussian(2, 1)]).energy(labels, unary).isnan().tolist() == [False, True]
