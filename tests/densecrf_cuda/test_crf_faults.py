"""What only the data shows: an error at once on the CPU and its emulation, later on a GPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import noise
from oracles import pattern_image
from torch import Tensor

from densecrf_cuda import (
    Bilateral,
    DenseCRF,
    Features,
    Gaussian,
    Lattice,
    clear_lattice_cache,
    permutohedral_filter,
)
from densecrf_cuda import lattice as lattice_module
from densecrf_cuda._faults import capacity_needed, feature_fault, unary_fault
from densecrf_cuda._status import DeviceStatus, describe

GRID = (17, 22)
KERNELS = [Gaussian((3, 2), 3), Bilateral(8, (20, 25, 30), [-5.0, -4.0, -3.0]), Features(None, 2.0, bandwidth=30)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"damping": 0.3, "tol": 1e-3},
    {"trainable": True},
    {"trainable": True, "checkpoint": True},
    {"trainable": True, "damping": 0.3, "tol": 1e-3},
    {"trainable": True, "output": "labels"},
    {"filter": "dense"},
]


def example(device: torch.device, *batch: int) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(pattern_image(*GRID)).permute(2, 0, 1).expand(*batch, -1, -1, -1)
    return noise(*batch, 3, *GRID, dtype=torch.float32).to(device), image.to(device)


def with_nan(tensor: Tensor) -> Tensor:
    bad = tensor.clone()
    bad[..., 1, 2] = torch.nan
    return bad


def assert_refused(crf: Any, message: str, call: Callable[[], Tensor], fine: Callable[[], Tensor]) -> None:
    """Raised by the call itself, or by `check` and by the next call; then forgotten."""
    for find_out in (crf.check, fine):
        if fine().device.type == "cpu":
            with pytest.raises(ValueError, match=message):
                call()
            crf.check()
        else:
            result = call()
            assert not result.is_floating_point() or result.isnan().any()
            torch.cuda.synchronize()
            with pytest.raises(ValueError, match=message):
                find_out()
            crf.check()
    assert fine().isfinite().all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_bad_data_in_a_crf(settings: dict[str, Any], device: torch.device) -> None:
    unary, image = example(device, 2)
    crf = DenseCRF(3, KERNELS, iterations=2, **settings)
    forbidden = unary.clone()
    forbidden[1, :, 0, 3] = torch.inf
    for name, inputs in {
        "unary must": (with_nan(unary), image),
        "unary must allow|must allow at least one": (forbidden, image),
        "features must be finite": (unary, with_nan(image.float())),
    }.items():
        assert_refused(crf, name, lambda inputs=inputs: crf(*inputs), lambda: crf(unary, image))


def test_bandwidth_too_small_for_the_image(device: torch.device) -> None:
    unary, image = example(device)
    crf = DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 1e-5, 3)])
    message = r"key coordinates must stay below 2\^20 .*bandwidth 1e-05"
    assert_refused(crf, message, lambda: crf(unary, image), lambda: crf(unary, torch.zeros_like(image)))


def test_bad_data_in_a_lattice(device: torch.device) -> None:
    features = noise(3, 40, dtype=torch.float32).to(device)
    values = noise(2, 40, dtype=torch.float32).to(device)
    for bad, bandwidth, message in (
        (torch.full_like(features, torch.nan), 1, "(?i)features must be finite, got nan"),
        (features + 1, 1e-7, r"key coordinates must stay below 2\^20 .*bandwidth 1e-07"),
    ):
        if device.type == "cpu":
            with pytest.raises(ValueError, match=message):
                Lattice(bad, bandwidth)
            continue
        assert permutohedral_filter(values, bad, bandwidth).isnan().all()
        for find_out in (Lattice.check, lambda lattice: lattice.num_vertices, lambda lattice: lattice.filter(values)):
            lattice = Lattice(bad, bandwidth)
            torch.cuda.synchronize()
            with pytest.raises(ValueError, match=message):
                find_out(lattice)


def test_number_of_vertices_of_a_lattice_that_failed() -> None:
    lattice = Lattice(torch.rand(2, 9), 0.5)
    lattice.check()
    lattice.tensors = lattice.tensors._replace(num_vertices=torch.tensor(-(3 << 56 | 4 << 6 | 1)))
    with pytest.raises(ValueError, match=r"feature dimension 1 / bandwidth 0.5 is too large at point 4 of image 0"):
        _ = lattice.num_vertices


class Later(DeviceStatus):
    """A status that knows later, as that of a GPU does."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[Tensor] = []

    def watch(self, words: Tensor, points: int, bandwidths: Tensor | None = None) -> None:
        self.words.append(words)

    def raise_if_known(self) -> None:
        if self.words:
            raise ValueError("known")

    def check(self) -> None:
        self.raise_if_known()


def test_the_next_call_raises_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    unary, image = example(torch.device("cpu"))
    crf, lattice = DenseCRF(3, KERNELS), Lattice(torch.rand(2, 9))
    clear_lattice_cache()
    for owner, call in ((crf, lambda: crf(unary, image)), (lattice, lambda: lattice.filter(torch.rand(1, 9)))):
        owner._status = Later()
        call()
        owner._status.words.append(torch.zeros(1))
        for attempt in (call, owner.check):
            with pytest.raises(ValueError, match="known"):
                attempt()
    # Two lattices of the image and the unary; that of the grid alone is known to be right.
    assert [words.shape for words in crf._status.words] == [(), (), (1,), (1,)]


def test_copies_of_a_module_owe_nothing(device: torch.device) -> None:
    unary, image = example(device)
    crf = DenseCRF(3, KERNELS).to(device)
    expected = crf(unary, image)
    for other in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf))):
        assert other._status is not crf._status
        assert torch.equal(other(unary, image), expected)
        other.check()


def test_words_that_tensors_make() -> None:
    unary = torch.zeros(2, 3, 20)
    assert unary_fault(unary) == 0
    unary[0, :2, 4] = torch.inf
    assert unary_fault(unary) == 0
    unary[1, 2, 3] = torch.nan
    assert "at point 3 of image 1" in describe(int(unary_fault(unary)), points=20)
    unary[:, :, 7] = torch.inf
    assert "unary must not be NaN" in describe(int(unary_fault(unary)), points=20)
    assert "at point 7 of image 0" in describe(int(unary_fault(unary)), points=20)
    unary[0, 0, 2] = -torch.inf
    assert "at point 2 of image 0" in describe(int(unary_fault(unary)), points=20)
    features = torch.zeros(2, 3, 20)
    assert feature_fault(features) == 0
    features[1, 2, 5], features[1, 1, 6] = torch.nan, torch.inf
    assert "features must be finite" in describe(int(feature_fault(features)), points=20)
    assert "dimension 2 of point 5 of image 1" in describe(int(feature_fault(features)), points=20)


# --- capacity ---


def test_an_overflow_names_what_is_needed() -> None:
    assert capacity_needed(17) == capacity_needed(-(3 << 56 | 17)) == 0
    assert capacity_needed(-(4 << 56 | 17)) == 17


@pytest.mark.parametrize("waits", [True, False])
def test_a_lattice_that_overflows(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which does not raise: built again where one may wait for it, a fault where one may not."""
    capacities: list[int] = []

    def build(guide: Tensor, bandwidth: Tensor, grid: Any, coordinates: bool, capacity: int) -> Any:
        capacities.append(capacity)
        tensors = original(guide, bandwidth, grid, coordinates, 9 * guide.shape[2])
        vertices = int(tensors.num_vertices)
        word = torch.tensor(-(4 << 56 | vertices))
        return tensors if vertices <= capacity else tensors._replace(num_vertices=word)

    original = lattice_module.lattice_build
    monkeypatch.setattr(lattice_module, "lattice_build", build)
    monkeypatch.setattr(lattice_module, "_GENEROUS_BYTES", 0)
    monkeypatch.setattr(lattice_module, "may_wait", lambda device: waits)
    features = 100 * noise(8, 50)  # every point has nine vertices of its own
    if waits:
        assert Lattice(features).num_vertices == 450
        assert capacities == [200, 450]
    else:
        with pytest.raises(ValueError, match="450 vertices, more than its capacity"):
            Lattice(features)
        assert capacities == [200]
