"""Fault words of the device: what they say, and when a status raises them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from helpers import CASES, build, compatibility, infer_with_status, levels, make_term, noise
from torch import Tensor

from densecrf_cuda import _status
from densecrf_cuda._status import DeviceStatus, describe

POINTS = 20


def feature_word(kind: int, point: int, dimension: int) -> int:
    return kind << 56 | point << 6 | dimension


def update_word(kind: int, iteration: int, point: int) -> int:
    return kind << 56 | iteration << 40 | point


UNARY = update_word(5, 0, 7)  # of the second image in what follows
UNARY_MESSAGE = "unary must not be NaN or -infinity, and must allow at least one label, at point 7 of image 1"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (feature_word(1, 0, 2), "bandwidths must be positive and finite, got 0.5 in dimension 2"),
        (feature_word(2, 27, 47), "features must be finite, got NaN or infinity in dimension 47 of point 7 of image 1"),
        (
            feature_word(3, 47, 1),
            "key coordinates must stay below 2^20 in magnitude, but feature dimension 1 / bandwidth 1e-06 is too large "
            "at point 7 of image 2: use a larger bandwidth",
        ),
        (4 << 56 | 123456789012, "the lattice has 123456789012 vertices, more than its capacity"),
        (update_word(5, 0, 27), UNARY_MESSAGE),
        (
            update_word(6, 9, 3),
            "the energies overflow in iteration 9 at point 3 of image 0: compat or unary is too large",
        ),
        (update_word(6, 0xFFFF, (1 << 40) - 1), "the energies overflow in iteration 65535 at point"),
        (99 << 56, "unknown fault, 0x63000"),
    ],
)
def test_words(word: int, message: str) -> None:
    assert message in describe(word, points=POINTS, bandwidths=torch.tensor([3.0, 1e-6, 0.5]))


def test_faults_of_the_update_count_from_their_image() -> None:
    assert describe(UNARY, points=POINTS, image=1) == UNARY_MESSAGE
    assert "point 3 of image 5" in describe(update_word(6, 2, 3), points=POINTS, image=5)
    for word in (feature_word(2, 27, 0), feature_word(3, 27, 0)):  # of a lattice that may be shared
        assert "point 7 of image 1" in describe(word, points=POINTS, image=5)


def test_words_without_bandwidths() -> None:
    assert "finite, got another value in dimension 2" in describe(feature_word(1, 0, 2), points=POINTS)
    assert "dimension 1 / its bandwidth is too large" in describe(feature_word(3, 0, 1), points=POINTS)


def test_words_of_the_cpu_are_raised_at_once() -> None:
    status = DeviceStatus()
    status.watch(torch.zeros(3, dtype=torch.int64), POINTS)
    status.watch(torch.zeros(0, dtype=torch.int64), POINTS)
    status.watch(torch.tensor(24540), POINTS)  # vertices of a lattice
    with pytest.raises(ValueError, match=UNARY_MESSAGE):
        status.watch(torch.tensor([0, UNARY]), POINTS)
    with pytest.raises(ValueError, match=UNARY_MESSAGE):
        status.watch(torch.tensor(update_word(5, 0, 27)), POINTS)  # one word for the whole batch
    with pytest.raises(ValueError, match=r"dimension 1 / bandwidth 0.25 is too large at point 7 of image 1"):
        status.watch(torch.tensor(-feature_word(3, 27, 1)), POINTS, torch.tensor([1.0, 0.25]))
    status.raise_if_known()
    status.check()


def test_what_the_operators_return_on_the_cpu_is_no_fault() -> None:
    case, status = CASES["d5"], DeviceStatus()
    guide = levels(2, 3, case.points)
    status.watch(build(case, guide).num_vertices, case.points)
    terms = [make_term(case, guide, compatibility("potts", 3))]
    status.watch(infer_with_status(noise(2, 3, case.points).float(), terms)[1], case.points)
    status.check()


def test_tensors_without_data_are_passed_over() -> None:
    status = DeviceStatus()
    status.watch(torch.empty(2, dtype=torch.int64, device="meta"), POINTS)

    @torch.compile(backend="eager", fullgraph=True)
    def watch(words: Tensor) -> Tensor:
        status.raise_if_known()
        status.watch(words, POINTS)
        return words + 1

    assert watch(torch.tensor([0, UNARY])).tolist() == [1, UNARY + 1]


class Event:
    """Stands for that of a GPU."""

    def __init__(self, done: bool) -> None:
        self.done = done

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True


@pytest.fixture
def pending(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceStatus]:
    """A status that waits for three copies: one without a fault, a fault, and one more."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    status = DeviceStatus()
    for word in (0, UNARY, update_word(6, 1, 0)):
        status._copies.append(_status._Copy(torch.tensor([0, word]), Event(False), POINTS, None))
    yield status
    assert not status._copies


def test_only_what_has_arrived_is_raised(pending: DeviceStatus) -> None:
    pending.raise_if_known()
    assert len(pending._copies) == 3
    pending._copies[0].arrived.done = True
    pending.raise_if_known()
    assert len(pending._copies) == 2
    pending._copies[0].arrived.done = True
    with pytest.raises(ValueError, match=UNARY_MESSAGE):
        pending.raise_if_known()
    pending.raise_if_known()


def test_check_waits_and_raises_the_first(pending: DeviceStatus) -> None:
    with pytest.raises(ValueError, match=UNARY_MESSAGE):
        pending.check()
    pending.check()


def test_copies_start_anew(pending: DeviceStatus) -> None:
    for twin in (copy.copy(pending), copy.deepcopy(pending), pickle.loads(pickle.dumps(pending))):
        assert isinstance(twin, DeviceStatus)
        twin.check()
    with pytest.raises(ValueError, match=UNARY_MESSAGE):
        pending.check()


@pytest.mark.cuda
def test_words_of_a_gpu_arrive_later() -> None:
    status = DeviceStatus()
    status.watch(torch.zeros(2, dtype=torch.int64, device="cuda"), POINTS)
    status.watch(torch.tensor([0, UNARY], device="cuda"), POINTS)
    status.watch(torch.tensor(24540, device="cuda"), POINTS)
    with pytest.raises(ValueError, match=UNARY_MESSAGE):
        status.check()
    status.check()
    widths = torch.tensor([1.0, 0.25], device="cuda")
    status.watch(torch.tensor(-feature_word(3, 27, 1), device="cuda"), POINTS, widths)
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=r"bandwidth 0\.25 is too large at point 7 of image 1"):
        status.raise_if_known()
    status.raise_if_known()


@pytest.mark.cuda
def test_nothing_waits_for_a_gpu() -> None:
    status, words = DeviceStatus(), torch.tensor([0, UNARY], device="cuda")
    torch.empty(1, pin_memory=True)  # the first allocation of its kind may wait
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    with torch.cuda.stream(torch.cuda.current_stream()):
        status.watch(words, POINTS)
    status.raise_if_known()
    with pytest.raises(ValueError, match=UNARY_MESSAGE):
        status.check()


@pytest.mark.cuda
def test_a_graph_is_not_watched() -> None:
    status, words = DeviceStatus(), torch.tensor([0, UNARY], device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = words + 0
        status.watch(again, POINTS)
        status.raise_if_known()
    status.check()
    graph.replay()
    status.watch(again, POINTS)
    with pytest.raises(ValueError, match=UNARY_MESSAGE):
        status.check()
