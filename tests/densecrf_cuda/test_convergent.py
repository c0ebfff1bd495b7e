"""`inference="convergent"`: a free energy that never rises, for any compatibility."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DOUBLE, noise
from inference_model import make_example, softmax
from oracles import photo
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian
from densecrf_cuda.convergent import curvature, eigenvalue_bounds

NORMALIZATIONS = ["none", "before", "after", "symmetric", "homogeneous"]
COMPATS: dict[str, Any] = {
    "potts": 3.0,
    "repulsive": -8.0,
    "diagonal": [-3.0, -1.0, -2.0],
    "mixed diagonal": [-3.0, 6.0, 9.0],
    "distances": [[0.0, 2.0, 4.0], [2.0, 0.0, 2.0], [4.0, 2.0, 0.0]],
    "indefinite": [[8.0, -3.0, 1.0], [-2.0, 5.0, 4.0], [0.0, 4.0, -9.0]],
}


def falls(steps: Any) -> tuple[list[float], list[float]]:
    """How far each step lowers the free energy, and half of how far it moves Q, squared."""
    made = list(steps)
    fall = [(a.free_energy - b.free_energy).item() for a, b in itertools.pairwise(made)]
    return fall, [(a.q - b.q).square().sum().item() / 2 for a, b in itertools.pairwise(made)]


def assert_falls(steps: Any, share: float = 1.0) -> None:
    """By half of the squared distance, as derived; 1e-9: rounding of energies of some hundreds, in double."""
    fall, least = falls(steps)
    assert all(f >= share * d - 1e-9 for f, d in zip(fall, least)), (fall, least)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("form", COMPATS)
def test_it_is_the_formula(form: str, normalization: str, device: torch.device) -> None:
    example = make_example([COMPATS[form], 2.0], 3, normalization, inference="convergent")
    q = example.crf.to(device)(example.unary.to(device), iterations=6)
    # Sums of 12 terms in double; the bound on an eigenvalue is exact to some millionths, which sets the damping.
    np.testing.assert_allclose(q.cpu(), example.model.convergent(6), rtol=0, atol=1e-4 if "indef" in form else 1e-10)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("form", COMPATS)
def test_free_energy_falls(form: str, normalization: str, device: torch.device) -> None:
    for seed in range(3):
        example = make_example([COMPATS[form], -2.0], 3, normalization, seed=seed, inference="convergent")
        assert_falls(example.crf.to(device).steps(example.unary.to(device), iterations=12))


def test_free_energy_falls_whatever_the_problem(device: torch.device) -> None:
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is in the extra dev")
    st = hypothesis.strategies
    weights = st.floats(-30, 30, width=32)

    @hypothesis.settings(max_examples=30, derandomize=True, deadline=None, database=None)
    @hypothesis.given(data=st.data(), classes=st.integers(1, 4), seed=st.integers(0, 1000))
    def check(data: Any, classes: int, seed: int) -> None:
        form = data.draw(st.sampled_from(["potts", "diagonal", "matrix"]))
        row = st.lists(weights, min_size=classes, max_size=classes)
        matrix = st.lists(row, min_size=classes, max_size=classes)
        compat = data.draw({"potts": weights, "diagonal": row, "matrix": matrix}[form])
        normalization = data.draw(st.sampled_from(NORMALIZATIONS))
        example = make_example([compat], classes, normalization, points=7, seed=seed, inference="convergent")
        assert_falls(example.crf.to(device).steps(example.unary.to(device), iterations=5))

    check()


@pytest.mark.parametrize("normalization", ["symmetric", "after"])
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_free_energy_falls_on_the_lattice(name: str, normalization: str, device: torch.device) -> None:
    """Eigenvalues of its matrix down to -4e-4 (docs/inference.md) cost a hundredth of that with a weight of 10."""
    image = torch.from_numpy(photo(name, 24, 32)).permute(2, 0, 1).to(device)
    unary = noise(3, 24, 32).to(device)
    for compats in ((3.0, 10.0), (COMPATS["mixed diagonal"], COMPATS["indefinite"])):
        kernels = [Gaussian(3, compats[0]), Bilateral(20, 20, compats[1])]
        crf = DenseCRF(3, kernels, normalization=normalization, inference="convergent")
        assert_falls(crf.steps(unary, image, iterations=6), share=0.9)


def test_parallel_updates_rise_where_labels_repel(device: torch.device) -> None:
    parallel = make_example([-12.0], 2)
    fall, _ = falls(parallel.crf.to(device).steps(parallel.unary.to(device), iterations=10))
    assert min(fall) < -0.1
    convergent = make_example([-12.0], 2, inference="convergent")
    assert_falls(convergent.crf.to(device).steps(convergent.unary.to(device), iterations=10))


@pytest.mark.parametrize("normalization", ["symmetric", "none"])
@pytest.mark.parametrize("form", ["potts", "diagonal", "distances"])
def test_parallel_updates_are_convergent_where_the_energy_is_concave(
    form: str, normalization: str, device: torch.device
) -> None:
    examples = [
        make_example([COMPATS[form]], 3, normalization, inference=kind) for kind in ("convergent", "mean_field")
    ]
    ours, theirs = (made.crf.to(device)(made.unary.to(device)) for made in examples)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["potts", "indefinite"])
def test_it_ends_where_the_free_energy_is_stationary(form: str, device: torch.device) -> None:
    example = make_example([COMPATS[form]], 3, "after", inference="convergent")
    q = example.crf.to(device)(example.unary.to(device), iterations=200).cpu().numpy()
    expected = softmax(-example.unary.numpy() - example.model.messages(q, symmetric=True))
    np.testing.assert_allclose(q, expected, rtol=0, atol=1e-8)
    direction = noise(3, 12, seed=9).numpy()
    direction -= direction.mean(0)
    moved = [q * np.exp(h * direction) for h in (1e-4, -1e-4)]
    ahead, behind = (example.model.free_energy(m / m.sum(0)) for m in moved)
    assert abs(ahead - behind) / 2e-4 < 1e-5  # the derivative, by finite differences


def test_eigenvalue_bounds() -> None:
    centre = np.eye(5) - 0.2
    basis = np.linalg.svd(centre)[0][:, :4]  # of the vectors that sum to zero
    for seed in range(10):
        a = noise(5, 5, seed=seed) * 10 ** (seed - 5)
        a = a + a.T - (seed % 3) * 10 ** (seed - 4) * torch.eye(5)
        exact = np.linalg.eigvalsh(basis.T @ a.numpy() @ basis)
        least, most = (bound.item() for bound in eigenvalue_bounds(a))
        norm = a.norm().item()
        assert exact[0] - 1e-5 * norm <= least <= exact[0] + 1e-12 * norm
        assert exact[-1] - 1e-12 * norm <= most <= exact[-1] + 1e-5 * norm
    assert [bound.item() for bound in eigenvalue_bounds(torch.zeros(4, 4))] == [0, 0]
    assert [bound.item() for bound in eigenvalue_bounds(torch.ones(1, 1))] == [0, 0]
    assert [bound.item() for bound in eigenvalue_bounds(torch.tensor([2.0, -3.0]))] == [-3, 2]
    assert [bound.item() for bound in eigenvalue_bounds(torch.tensor(4.0))] == [-4, -4]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("form", COMPATS)
def test_curvature_bounds_the_pairwise_energy(form: str, normalization: str) -> None:
    example = make_example([COMPATS[form]], 3, normalization)
    f, matrix = example.model.terms[0]
    term = example.crf.kernels[0].dense_term(example.crf._read(example.unary, None)[0])
    bound = curvature(term)[0].numpy()
    kernel = np.kron((f + f.T) / 2, matrix)
    basis = np.kron(np.eye(12), np.linalg.svd(np.eye(3) - 1 / 3)[0][:, :2])
    gap = basis.T @ (np.kron(np.diag(bound), np.eye(3)) - kernel) @ basis
    assert np.linalg.eigvalsh(gap)[0] > -1e-10


@pytest.mark.parametrize("filter", ["lattice", "dense"])
@pytest.mark.parametrize("form", ["potts", "mixed diagonal", "indefinite"])
def test_gradients(form: str, filter: str, device: torch.device) -> None:
    crf = DenseCRF(
        3,
        [Features(None, COMPATS[form], bandwidth=30.0)],
        normalization="after",
        inference="convergent",
        iterations=2,
        filter=filter,
        trainable=True,
        spatial_dims=1,
    ).to(device, DOUBLE)
    names = [name for name, _ in crf.named_parameters()]

    def run(unary: Tensor, guide: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(crf, dict(zip(names, values)), (unary, guide))

    inputs = [noise(3, 6), 60 * noise(2, 6, seed=3), *crf.parameters()]
    leaves = [tensor.detach().clone().to(device).requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(run, leaves, eps=1e-5, atol=1e-5, fast_mode=True)


def test_checkpoint_and_outputs(device: torch.device) -> None:
    unary = noise(2, 3, 6, 7).to(device)
    results = []
    for checkpoint in (False, True):
        leaf = unary.clone().requires_grad_()
        crf = DenseCRF(3, [Gaussian(2, 3)], inference="convergent", iterations=3, checkpoint=checkpoint)
        q = crf(leaf)
        results.append((q, *torch.autograd.grad(q.square().sum(), leaf)))
    assert all(map(torch.equal, *results))
    torch.testing.assert_close(crf(unary, output="log_probabilities"), q.log())
    assert torch.equal(crf(unary, output="labels"), q.argmax(1))


def test_log_probabilities_do_not_underflow(device: torch.device) -> None:
    unary = torch.tensor([[0.0, 0.0], [500.0, 400.0]], device=device)
    crf = DenseCRF(2, [Features(torch.zeros(1, 2), 3.0)], inference="convergent", output="log_probabilities")
    assert crf.to(device)(unary)[1].tolist() == pytest.approx([-503.0, -403.0])  # each adds w · 1 for label 0


def test_forbidden_labels(device: torch.device) -> None:
    unary = noise(3, 6, 7).to(device)
    unary[1, :3] = torch.inf
    crf = DenseCRF(3, [Gaussian(2, -20.0)], inference="convergent")
    for step in crf.steps(unary):
        assert (step.q[1, :3] == 0).all() and step.q.isfinite().all() and step.free_energy.isfinite()


def test_settings() -> None:
    with pytest.raises(ValueError, match="inference must be 'mean_field', 'convergent' or 'frank_wolfe', got 'cccp'"):
        DenseCRF(2, inference="cccp")
    with pytest.raises(ValueError, match=r"damping is for inference='mean_field', got 0\.5 with 'convergent'"):
        DenseCRF(2, inference="convergent", damping=0.5)
    crf = DenseCRF(2, [Gaussian(2, 3)], inference="convergent")
    assert "inference='convergent'" in repr(crf) and "inference" not in repr(DenseCRF(2))
    assert crf.state_dict().keys() == DenseCRF(2, [Gaussian(2, 3)]).state_dict().keys()
