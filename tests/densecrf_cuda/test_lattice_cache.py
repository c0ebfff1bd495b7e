"""The cache of spatial lattices: what it keeps, for whom, and that nobody can tell by the results."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import DOUBLE, noise
from oracles import pattern_image
from torch import Tensor
from torch._subclasses import FakeTensorMode

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, clear_lattice_cache, lattice_cache, no_sync
from densecrf_cuda import lattice as lattice_module
from densecrf_cuda.lattice_cache import _entries, spatial_lattice

GRID = (17, 22)


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    """Each test begins with an empty cache and leaves one."""
    clear_lattice_cache()
    yield
    clear_lattice_cache()


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The grids that lattices are built for."""
    grids: list[tuple[int, ...]] = []

    def build(guide: Tensor, bandwidth: Tensor, grid: tuple[int, ...], *rest: Any) -> Any:
        grids.append(tuple(grid))
        return original(guide, bandwidth, grid, *rest)

    original = lattice_module.lattice_build
    monkeypatch.setattr(lattice_module, "lattice_build", build)
    return grids


def uncached(monkeypatch: pytest.MonkeyPatch, crf: DenseCRF, *inputs: Tensor) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(lattice_cache, "MAX_BYTES", 0)
        return crf(*inputs)


def unaries(
    device: torch.device, *batch: int, grid: tuple[int, ...] = GRID, dtype: torch.dtype = torch.float32
) -> Tensor:
    return noise(*batch, 3, *grid, dtype=dtype).to(device)


def test_a_lattice_is_built_once_and_the_results_stay(
    builds: list[Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.from_numpy(pattern_image(*GRID)).permute(2, 0, 1).to(device)
    crf = DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 20, 5)])
    expected = uncached(monkeypatch, crf, unaries(device), image)
    builds.clear()
    for _ in range(3):
        assert torch.equal(crf(unaries(device), image), expected)
    assert len(builds) == 1 + 3  # the bilateral lattice is that of the image
    # Neither the batch, the labels nor the CRF matter.
    assert torch.equal(crf(unaries(device, 2), image.expand(2, -1, -1, -1))[1], crf(unaries(device, 2)[1], image))
    DenseCRF(5, [Gaussian(3, 1.0)])(noise(5, *GRID, dtype=torch.float32).to(device))
    assert len(_entries) == 1


@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric", "homogeneous"])
def test_everything_that_matters_is_in_the_key(
    normalization: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = 0.1 if normalization == "none" else 3.0
    for sxy in (3, (3, 2), (2, 3)):
        for grid in ((9, 14), (14, 9), (126,), (2, 7, 9)):
            if isinstance(sxy, tuple) and len(grid) != 2:
                continue
            for dtype in (torch.float32, DOUBLE):
                crf = DenseCRF(
                    3, [Gaussian(sxy, weight)], normalization=normalization, spatial_dims=len(grid), iterations=2
                )
                unary = unaries(device, grid=grid, dtype=dtype)
                expected = uncached(monkeypatch, crf, unary)
                before = len(_entries)
                first, again = crf(unary), crf(unary)
                assert torch.equal(first, expected) and torch.equal(again, expected)
                assert len(_entries) == min(before + 1, lattice_cache.MAX_ENTRIES)


def test_kernels_of_other_features_are_not_kept(device: torch.device) -> None:
    image = torch.from_numpy(pattern_image(*GRID)).permute(2, 0, 1).to(device)
    points = noise(2, *GRID, dtype=torch.float32).to(device)
    trained = DenseCRF(3, [Gaussian(3, 3)], trainable="bandwidths").requires_grad_(False)
    for crf in (DenseCRF(3, [Bilateral(8, 20, 5)]), DenseCRF(3, [Features(points, 3)]), trained):
        crf(unaries(device), image)
    assert not _entries
    DenseCRF(3, [Gaussian(3, 3)], trainable=("weights", "compatibility"))(unaries(device))
    assert len(_entries) == 1


def test_training_beside_a_kept_lattice(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(unary: Tensor, crf: DenseCRF) -> list[Tensor]:
        leaf = unary.clone().requires_grad_()
        crf(leaf).square().sum().backward()
        gradients = [leaf.grad, *(parameter.grad.clone() for parameter in crf.parameters())]
        crf.zero_grad()
        return gradients

    crf = DenseCRF(3, [Gaussian(3, 3)], trainable=("weights", "compatibility"), iterations=3).to(device)
    with monkeypatch.context() as patch:
        patch.setattr(lattice_cache, "MAX_BYTES", 0)
        expected = train(unaries(device), crf)
    with torch.inference_mode():  # whose tensors autograd could not save
        crf(unaries(device))
    (entry,) = _entries.values()
    kept = copy.deepcopy(entry)
    for _ in range(2):
        assert all(map(torch.equal, train(unaries(device), crf), expected))
    assert list(_entries.values()) == [entry]
    for ours, before in zip((*entry.tensors, entry.norm), (*kept.tensors, kept.norm)):
        assert torch.equal(ours, before) and not ours.is_inference() and not ours.requires_grad


def test_entries_have_no_room_to_spare(device: torch.device) -> None:
    DenseCRF(3, [Gaussian(3, 3)])(unaries(device, grid=(60, 80)))
    (entry,) = _entries.values()
    vertices = int(entry.tensors.num_vertices)
    assert entry.tensors.neighbours.shape == (3, vertices, 2) and entry.tensors.vertex_offsets.shape == (vertices + 1,)
    assert vertices < 60 * 80 / 4


def test_the_one_used_least_recently_goes_first(builds: list[Any]) -> None:
    crfs = [DenseCRF(3, [Gaussian(1 + i / 8, 3)]) for i in range(lattice_cache.MAX_ENTRIES + 1)]
    for crf in crfs[:-1]:
        crf(unaries(torch.device("cpu")))
    crfs[0](unaries(torch.device("cpu")))
    crfs[-1](unaries(torch.device("cpu")))
    assert len(_entries) == lattice_cache.MAX_ENTRIES
    builds.clear()
    crfs[0](unaries(torch.device("cpu")))
    assert not builds
    crfs[1](unaries(torch.device("cpu")))
    assert len(builds) == 1


def test_bytes_are_bounded(builds: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    DenseCRF(3, [Gaussian(3, 3)])(unaries(device))
    (entry,) = _entries.values()
    monkeypatch.setattr(lattice_cache, "MAX_BYTES", 2 * entry.nbytes)
    for sxy in (3, 2.9, 2.8, 2.7):
        DenseCRF(3, [Gaussian(sxy, 3)])(unaries(device))
    assert len(_entries) in (1, 2)
    assert sum(kept.nbytes for kept in _entries.values()) <= 2 * entry.nbytes
    builds.clear()
    large = DenseCRF(3, [Gaussian(3, 3)])
    for _ in range(2):
        large(unaries(device, grid=(60, 80)))
    assert builds == [(60, 80)] * 2 and all(key.grid == GRID for key in _entries)
    clear_lattice_cache()
    assert not _entries


def test_bandwidths_that_are_loaded_are_the_ones_that_count(device: torch.device) -> None:
    wide, narrow = DenseCRF(3, [Gaussian(5, 3)]), DenseCRF(3, [Gaussian((2, 1), 3)])
    unary = unaries(device)
    results = {"wide": wide(unary), "narrow": narrow(unary)}
    assert not torch.equal(results["wide"], results["narrow"])
    buffer = io.BytesIO()
    torch.save(DenseCRF(3, [Gaussian((5, 5), 3)]).state_dict(), buffer)
    buffer.seek(0)
    narrow.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(narrow(unary), results["wide"])
    moved = copy.deepcopy(narrow).half().double().to(device)  # bandwidths are nobody's half
    moved.kernels[0].compat.fill_(3)
    assert torch.equal(moved(unary), results["wide"])


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "sxy must be positive and finite"), ([1.0, 2.0], "sxy must be of the same form"), (None, "Missing key")],
)
def test_bandwidths_that_cannot_be_loaded(value: Any, message: str) -> None:
    crf = DenseCRF(3, [Gaussian(5, 3)])
    state = crf.state_dict()
    assert state["kernels.0.sxy"].dtype == DOUBLE
    del state["kernels.0.sxy"]
    if value is not None:
        state["kernels.0.sxy"] = torch.tensor(value)
    with pytest.raises(RuntimeError, match=message):
        crf.load_state_dict(state)
    if value is None:
        crf.load_state_dict(state, strict=False)
    assert crf.kernels[0].bandwidths == {"sxy": 5.0}


def test_a_bandwidth_that_is_too_small_is_an_error_every_time(device: torch.device) -> None:
    crf = DenseCRF(3, [Gaussian(1e-6, 3)])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"key coordinates must stay below 2\^20"):
            crf(unaries(device))
    assert not _entries


def test_neither_fake_tensors_nor_compiled_code_meet_it(device: torch.device) -> None:
    crf = DenseCRF(3, [Gaussian(3, 3)], iterations=2).to(device)
    with FakeTensorMode(allow_non_fake_inputs=True):
        crf(torch.empty(3, *GRID))
    torch._dynamo.reset()
    compiled = torch.compile(crf, fullgraph=True, backend="eager")
    got = compiled(unaries(device))
    torch._dynamo.reset()
    assert not _entries
    assert torch.equal(got, crf(unaries(device)))


def test_threads_share_it() -> None:
    grids = [(9 + i % 5, 20) for i in range(40)]
    crfs = {grid: DenseCRF(3, [Gaussian(3, 3)], iterations=2) for grid in grids}
    expected = {grid: crf(unaries(torch.device("cpu"), grid=grid)) for grid, crf in crfs.items()}
    clear_lattice_cache()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda grid: crfs[grid](unaries(torch.device("cpu"), grid=grid)), grids))
    assert all(torch.equal(result, expected[grid]) for grid, result in zip(grids, results))
    assert len(_entries) == 5


# --- while a graph is captured, and where nobody may wait: what follows from it, without a GPU ---


def look_up() -> lattice_cache.SpatialLattice | None:
    return spatial_lattice(GRID, (3.0, 3.0), "symmetric", torch.float32, torch.zeros(3))


def test_while_a_graph_is_captured_it_is_not_filled_and_read_only_by_a_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lattice_cache, "may_wait", lambda device: False)
    monkeypatch.setattr(lattice_cache, "is_capturing", lambda device: True)
    with lattice_cache.hold() as held:
        assert look_up() is None
    assert not _entries and not held
    monkeypatch.undo()
    entry = look_up()
    monkeypatch.setattr(lattice_cache, "is_capturing", lambda device: True)
    assert look_up() is None  # a graph would read memory that could be given away
    with lattice_cache.hold() as held:
        assert look_up() is entry
        with lattice_cache.hold() as inner:
            assert look_up() is entry
        clear_lattice_cache()
    assert held == [entry] and inner == [entry] and look_up() is None


def test_where_nobody_may_wait_it_is_read_but_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lattice_cache, "may_wait", lambda device: False)
    assert look_up() is None
    monkeypatch.undo()
    entry = look_up()
    monkeypatch.setattr(lattice_cache, "may_wait", lambda device: False)
    assert entry is not None and look_up() is entry


def test_no_sync_changes_nothing_on_the_cpu(device: torch.device) -> None:
    crf = DenseCRF(3, [Gaussian(3, 3)])
    with no_sync():
        q = crf(unaries(device))
    assert torch.equal(q, crf(unaries(device)))


@pytest.mark.cuda
def test_no_sync_does_not_fill_it_on_a_gpu() -> None:
    crf, unary = DenseCRF(3, [Gaussian(3, 3)]).cuda(), unaries(torch.device("cuda"))
    with no_sync():
        q = crf(unary)
    assert not _entries
    assert torch.equal(crf(unary), q) and len(_entries) == 1
    with no_sync():
        assert torch.equal(crf(unary), q)


@pytest.mark.cuda
def test_streams_share_it() -> None:
    crf, unary = DenseCRF(3, [Gaussian(3, 3)]).cuda(), unaries(torch.device("cuda"), grid=(300, 400))
    expected = crf(unary)
    for _ in range(3):
        crf(unary)  # where it is missing it is made on this stream
        side = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(10_000_000)
            q = crf(unary)
        clear_lattice_cache()  # before the other stream has read it
        _ = [torch.full((1 << 16,), torch.nan, device="cuda") for _ in range(256)]
        side.synchronize()
        assert torch.equal(q, expected)
