"""`inference="frank_wolfe"`: plain and regularised, against mean field, scipy and all labellings of tiny problems."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DOUBLE, noise
from inference_model import Example, Model, brute_force, make_example, softmax
from oracles import photo
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian
from densecrf_cuda.frank_wolfe import project_to_simplex

COMPATS: dict[str, Any] = {
    "potts": 3.0,
    "repulsive": -8.0,
    "diagonal": [-3.0, -1.0, -2.0],
    "indefinite": [[8.0, -3.0, 1.0], [-2.0, 5.0, 4.0], [0.0, 4.0, -9.0]],
}
REGULARIZATIONS = ["entropy", "l2", "none"]


def make(compats: Any, classes: int = 3, normalization: str = "symmetric", **settings: Any) -> Example:
    return make_example(compats, classes, normalization, **{"inference": "frank_wolfe"} | settings)


def project(v: np.ndarray) -> np.ndarray:
    """The distribution nearest to each column, by bisection of the θ for which max(v - θ, 0) sums to 1."""
    low, high = v.min(0) - 1, v.max(0)
    for _ in range(100):
        middle = (low + high) / 2
        above = np.maximum(v - middle, 0).sum(0) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.maximum(v - low, 0)


def objective(model: Model, q: np.ndarray, regularization: str, weight: float) -> float:
    """What the inference minimises."""
    if regularization == "entropy":
        return model.energy(q) + weight * (model.free_energy(q) - model.energy(q))
    return model.energy(q) + (weight * float((q**2).sum()) / 2 if regularization == "l2" else 0)


def towards(model: Model, q: np.ndarray, regularization: str, weight: float) -> np.ndarray:
    """The solution of the linearised problem."""
    gradient = model.unary + model.messages(q)
    if regularization == "entropy":
        return softmax(-gradient / weight)
    return project(-gradient / weight) if regularization == "l2" else np.eye(len(q))[gradient.argmin(0)].T


def test_projection_onto_the_simplex(device: torch.device) -> None:
    for seed, classes in enumerate((1, 2, 3, 21, 200)):
        v = 3 * noise(4, 5, classes, seed=seed)
        got = project_to_simplex(v.to(device)).cpu()
        np.testing.assert_allclose(got, np.moveaxis(project(np.moveaxis(v.numpy(), 2, 0)), 0, 2), rtol=0, atol=1e-12)
    v = noise(50, 2, seed=9)
    closed = ((1 + v[:, 0] - v[:, 1]) / 2).clamp(0, 1)
    torch.testing.assert_close(project_to_simplex(v.to(device))[:, 0].cpu(), closed)
    far = torch.tensor([[1e6, 1e6 - 0.25, -1e6], [-torch.inf, 0.0, -torch.inf]], device=device)
    assert project_to_simplex(far).tolist() == [[0.625, 0.375, 0.0], [0.0, 1.0, 0.0]]


def test_projection_minimises_the_distance() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is in the extra dev")
    v = noise(6, seed=3).numpy()
    constraint = {"type": "eq", "fun": lambda p: p.sum() - 1}
    found = optimize.minimize(
        lambda p: ((p - v) ** 2).sum(), np.full(6, 1 / 6), bounds=[(0, 1)] * 6, constraints=constraint, tol=1e-14
    )
    np.testing.assert_allclose(project_to_simplex(torch.from_numpy(v)), found.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric", "homogeneous"])
@pytest.mark.parametrize("form", COMPATS)
def test_whole_entropic_steps_are_mean_field(form: str, normalization: str, device: torch.device) -> None:
    settings = {"step_size": 1.0, "iterations": 7}
    ours = make([COMPATS[form], 2.0], normalization=normalization, **settings)
    theirs = make_example([COMPATS[form], 2.0], 3, normalization, iterations=7)
    unary = ours.unary.to(device)
    for output in ("probabilities", "log_probabilities"):
        q, expected = (made.crf.to(device)(unary, output=output) for made in (ours, theirs))
        # Messages are added up before the unary, not after: rounding, which updates that oscillate amplify.
        torch.testing.assert_close(q, expected, rtol=1e-9, atol=1e-9)


def test_whole_entropic_steps_are_mean_field_on_the_lattice(device: torch.device) -> None:
    image = torch.from_numpy(photo("astronaut", 24, 32)).permute(2, 0, 1).to(device)
    unary = noise(3, 24, 32, dtype=torch.float32).to(device)
    kernels = [Gaussian(3, 3), Bilateral(30, 13, 5)]
    q = DenseCRF(3, kernels, inference="frank_wolfe", step_size=1)(unary, image)
    torch.testing.assert_close(q, DenseCRF(3, kernels)(unary, image), rtol=1e-4, atol=1e-4)  # float32, ten iterations


@pytest.mark.parametrize("step_size", [0.4, "decreasing"])
@pytest.mark.parametrize("regularization", REGULARIZATIONS)
def test_steps_of_given_size(regularization: str, step_size: float | str, device: torch.device) -> None:
    settings = {"regularization": regularization, "step_size": step_size, "regularization_weight": 0.7}
    example = make([3.0, COMPATS["indefinite"]], normalization="after", **settings)
    q = softmax(-example.unary.numpy())
    for t, step in enumerate(example.crf.to(device).steps(example.unary.to(device), iterations=6)):
        np.testing.assert_allclose(step.q.cpu(), q, rtol=0, atol=1e-9)
        size = 2 / (t + 2) if isinstance(step_size, str) else step_size
        q = q + size * (towards(example.model, q, regularization, 0.7) - q)


@pytest.mark.parametrize("normalization", ["symmetric", "after"])
@pytest.mark.parametrize("form", COMPATS)
@pytest.mark.parametrize("regularization", REGULARIZATIONS)
def test_line_search(regularization: str, form: str, normalization: str, device: torch.device) -> None:
    """No point of the segment is better than the one taken; with the entropy, whose segment may have two valleys, none
    nearby, but for a thousandth of the fall: ten steps."""
    example = make([COMPATS[form]], 3, normalization, regularization=regularization, regularization_weight=0.5)

    def cost(q: np.ndarray) -> float:
        return objective(example.model, q, regularization, 0.5)

    steps = list(example.crf.to(device).steps(example.unary.to(device), iterations=6))
    for before, after in itertools.pairwise(steps):
        q = before.q.cpu().numpy()
        d = towards(example.model, q, regularization, 0.5) - q
        taken = float(((after.q.cpu().numpy() - q) * d).sum() / max((d * d).sum(), 1e-300))
        np.testing.assert_allclose(after.q.cpu(), q + taken * d, rtol=0, atol=1e-9)
        near, share = (0.05, 1e-3) if regularization == "entropy" else (1, 0)
        sizes = np.clip(np.linspace(taken - near, taken + near, 81), 0, 1)
        least = min(cost(q + size * d) for size in sizes)
        assert cost(q + taken * d) <= least + share * (cost(q) - least) + 1e-10  # rounding of sums of some tens


def test_objective_never_rises(device: torch.device) -> None:
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is in the extra dev")
    st = hypothesis.strategies
    numbers = st.floats(-30, 30, width=32)

    @hypothesis.settings(max_examples=30, derandomize=True, deadline=None, database=None)
    @hypothesis.given(
        rows=st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=3, max_size=3),
        regularization=st.sampled_from(REGULARIZATIONS),
        weight=st.floats(0.05, 5),
        normalization=st.sampled_from(["none", "before", "after", "symmetric"]),
        seed=st.integers(0, 1000),
    )
    def check(rows: list[list[float]], regularization: str, weight: float, normalization: str, seed: int) -> None:
        settings = {"regularization": regularization, "regularization_weight": weight}
        example = make([rows], 3, normalization, points=7, seed=seed, **settings)
        steps = example.crf.to(device).steps(example.unary.to(device), iterations=5)
        values = [objective(example.model, step.q.cpu().numpy(), regularization, weight) for step in steps]
        assert (np.diff(values) <= 1e-9).all(), values  # sums of hundreds, in double

    check()


def test_objective_never_rises_on_the_lattice(device: torch.device) -> None:
    image = torch.from_numpy(photo("coffee", 24, 32)).permute(2, 0, 1).to(device)
    unary = noise(2, 3, 24, 32).to(device)
    kernels = [Gaussian(3, -6.0), Bilateral(20, 20, COMPATS["indefinite"], normalization="after")]
    crf = DenseCRF(3, kernels, inference="frank_wolfe")
    values = torch.stack([step.free_energy for step in crf.steps(unary, image.expand(2, -1, -1, -1))])
    assert (values.diff(dim=0) <= 1e-9).all()  # the search takes the lattice as it is: no tolerance but rounding
    assert (values[-1] < values[0] - 1).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_all_labellings(classes: int, device: torch.device) -> None:
    """Potts and a kernel matrix make the energy concave, so that no distribution costs less than the best labelling."""
    exact = 0
    for seed in range(12):
        example = make([2.0], classes, points=7, seed=seed, regularization="none", iterations=40)
        least, labels = brute_force(example.model)
        *_, last = example.crf.to(device).steps(example.unary.to(device))
        assert last.energy.item() >= least - 1e-12
        assert ((last.q == 0) | (last.q == 1)).all()  # steps to corners end in one
        found = example.crf.energy(last.q.argmax(0), example.unary.to(device)).item()
        assert found == pytest.approx(last.energy.item(), rel=1e-12)
        exact += found <= least + 1e-9
        assert found > least + 1e-9 or np.array_equal(last.q.argmax(0).cpu(), labels)
        greedy = example.crf.energy(example.unary.argmin(0).to(device), example.unary.to(device)).item()
        assert least - 1e-12 <= found <= greedy + 1e-12
    assert exact >= 8  # a local method: it may miss, but not often on seven points


def test_l2_of_a_convex_problem_is_solved(device: torch.device) -> None:
    """With enough regularisation the minimum is the one fixed point of the projection, and steps reach it."""
    example = make([2.0], 3, regularization="l2", regularization_weight=4.0, iterations=400)
    q = example.crf.to(device)(example.unary.to(device)).cpu().numpy()
    expected = softmax(-example.unary.numpy())
    for _ in range(400):  # a contraction by 2 / 4
        expected = project(-(example.unary.numpy() + example.model.messages(expected)) / 4)
    np.testing.assert_allclose(q, expected, rtol=0, atol=1e-6)
    assert ((q > 0) & (q < 1)).any() and (q == 0).any()


@pytest.mark.parametrize("filter", ["lattice", "dense"])
@pytest.mark.parametrize("regularization", ["entropy", "l2"])
@pytest.mark.parametrize("step_size", [0.5, "decreasing", "line_search"])
def test_gradients(step_size: float | str, regularization: str, filter: str, device: torch.device) -> None:
    kernels = [Features(None, COMPATS["indefinite"], bandwidth=30.0)]
    crf = DenseCRF(
        3,
        kernels,
        inference="frank_wolfe",
        regularization=regularization,
        regularization_weight=1.5,
        step_size=step_size,
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
    assert torch.autograd.gradcheck(run, leaves, eps=1e-5, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("regularization", REGULARIZATIONS)
def test_outputs(regularization: str, device: torch.device) -> None:
    unary = 5 * noise(2, 3, 6, 7, dtype=torch.float32)
    unary[0, 1, :3] = torch.inf
    unary = unary.to(device).requires_grad_()
    crf = DenseCRF(3, [Gaussian(2, 3)], inference="frank_wolfe", regularization=regularization, iterations=3)
    q = crf(unary)
    assert torch.allclose(q.sum(1), torch.ones_like(q[:, 0])) and (q[0, 1, :3] == 0).all() and (q >= 0).all()
    logarithm = crf(unary, output="log_probabilities")
    assert logarithm.isfinite().all()  # a loss survives what has probability 0
    torch.testing.assert_close(logarithm.exp(), q, rtol=1e-5, atol=1e-30)
    assert torch.autograd.grad(logarithm.sum(), unary)[0].isfinite().all()
    assert torch.equal(crf(unary, output="labels"), q.argmax(1))
    half = crf(unary.detach().half(), output="log_probabilities")
    assert half.dtype == torch.float16 and half.isfinite().all()


def test_checkpoint(device: torch.device) -> None:
    results = []
    for checkpoint in (False, True):
        leaf = noise(2, 3, 6, 7).to(device).requires_grad_()
        crf = DenseCRF(3, [Gaussian(2, 3)], inference="frank_wolfe", iterations=3, checkpoint=checkpoint)
        q = crf(leaf)
        results.append((q, *torch.autograd.grad(q.square().sum(), leaf)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularization": "l1"}, "regularization must be 'entropy', 'l2' or 'none', got 'l1'"),
        ({"regularization_weight": 0}, "regularization_weight must be positive and finite, got 0"),
        ({"regularization_weight": float("nan")}, "regularization_weight must be positive and finite, got nan"),
        ({"step_size": 0.0}, r"step_size must be in \(0, 1\], got 0.0"),
        ({"step_size": 1.5}, r"step_size must be in \(0, 1\], got 1.5"),
        ({"step_size": "exact"}, "step_size must be .*, got 'exact'"),
        ({"damping": 0.5}, "damping is for inference='mean_field', got 0.5 with 'frank_wolfe'"),
        ({"inference": "mean_field", "step_size": 0.5}, "step_size are for inference='frank_wolfe', got .* 0.5 with"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseCRF(2, **{"inference": "frank_wolfe"} | settings)


def test_settings_of_wrong_types() -> None:
    for settings in ({"regularization_weight": "1"}, {"step_size": None}):
        with pytest.raises(TypeError, match="must be a number"):
            DenseCRF(2, inference="frank_wolfe", **settings)
