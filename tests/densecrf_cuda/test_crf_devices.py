"""`DenseCRF` and the device: parameters follow it, and nobody waits for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import noise
from oracles import pattern_image
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, Lattice, bandwidths

GRID = (17, 22)
KERNELS = [Gaussian((3, 2), 3), Bilateral(8, (20, 25, 30), [-5.0, -4.0, -3.0]), Features(None, 2.0, bandwidth=30)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"trainable": True},
    {"trainable": True, "checkpoint": True},
    {"damping": 0.3, "tol": 1e-3},
    {"trainable": True, "damping": 0.3, "tol": 1e-3},
    {"filter": "dense"},
    {"filter": "dense", "trainable": True},
    {"output": "labels"},
    {"normalization": "homogeneous"},
    {"inference": "convergent", "normalization": "after"},
    {"inference": "convergent", "trainable": True, "checkpoint": True},
    {"inference": "frank_wolfe", "trainable": True},
    {"inference": "frank_wolfe", "regularization": "l2", "step_size": "decreasing", "filter": "dense"},
    {"inference": "frank_wolfe", "regularization": "none", "output": "log_probabilities"},
]


def example(device: torch.device, *batch: int, grid: tuple[int, int] = GRID) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(pattern_image(*grid)).permute(2, 0, 1).expand(*batch, -1, -1, -1)
    return noise(*batch, 3, *grid, dtype=torch.float32).to(device), image.to(device)


# --- what a GPU would be asked: the same calls with tensors of a GPU that have no data ---


class Transfers(TorchDispatchMode):
    """Notes which device each copy between devices goes to, and whether it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, bool]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            waits = not (kwargs.get("non_blocking", False) or (len(args) > 2 and args[2]))
            if source.device.type != result.device.type:
                self.seen.add((result.device.type, waits))
        return result


@pytest.fixture
def gpu_without_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Tensor]]:
    """Makes tensors on a GPU whose numbers cannot be read: whoever asks for one is told that there is none."""
    if torch.version.cuda is None:
        pytest.skip("a torch without CUDA cannot tell which kernels a tensor of a GPU would meet")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield lambda *shape, **options: torch.empty(*shape, device="cuda", **options)


@pytest.mark.filterwarnings("ignore:User provided device_type")  # by some versions of torch, where there is no GPU
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("moved", [True, False])
def test_forward_asks_a_gpu_nothing(
    moved: bool, settings: dict[str, Any], gpu_without_data: Callable[..., Tensor]
) -> None:
    with torch.utils._python_dispatch._disable_current_modes():
        crf = DenseCRF(3, KERNELS, iterations=2, **settings)
    parts = [*crf.named_parameters(), *crf.named_buffers()]
    own = {name: gpu_without_data(tensor.shape, dtype=tensor.dtype) for name, tensor in parts} if moved else {}
    wants = settings.get("trainable", False)
    unary = gpu_without_data(2, 3, *GRID, requires_grad=wants)
    image = gpu_without_data(2, 3, *GRID, requires_grad=wants)
    with Transfers() as transfers:
        q = torch.func.functional_call(crf, own, (unary, image))
    assert q.device.type == "cuda"
    assert transfers.seen == (set() if moved else {("cuda", False)})
    assert q.requires_grad == wants


@pytest.mark.filterwarnings("ignore:User provided device_type")
@pytest.mark.parametrize("inference", ["mean_field", "convergent", "frank_wolfe"])
def test_steps_and_energies_ask_a_gpu_nothing(inference: str, gpu_without_data: Callable[..., Tensor]) -> None:
    with torch.utils._python_dispatch._disable_current_modes():
        matrix = [[-3.0, 1.0, 0.0], [1.0, -2.0, 0.5], [0.0, 0.5, 1.0]]
        crf = DenseCRF(3, [*KERNELS, Gaussian(2, matrix)], inference=inference, tol=1e-3)
    own = {name: gpu_without_data(tensor.shape, dtype=tensor.dtype) for name, tensor in crf.named_buffers()}
    for name, tensor in own.items():
        owner, _, leaf = name.rpartition(".")
        crf.get_submodule(owner)._buffers[leaf] = tensor
    unary, image = gpu_without_data(2, 3, *GRID), gpu_without_data(2, 3, *GRID)
    with Transfers() as transfers:
        for step in crf.steps(unary, image, iterations=2):
            assert step.free_energy.device.type == step.kl_divergence.device.type == "cuda"
        assert crf.energy(gpu_without_data(2, *GRID, dtype=torch.int64), unary, image).shape == (2,)
    assert not transfers.seen


def test_lattice_asks_a_gpu_nothing(gpu_without_data: Callable[..., Tensor]) -> None:
    features, values = gpu_without_data(2, 3, 9, 11), gpu_without_data(2, 4, 9, 11)
    with Transfers() as transfers:
        for bandwidth in (2, [1.0, 2.0, 3.0], gpu_without_data(3)):
            for name in ("none", "symmetric", "homogeneous"):
                Lattice(features, bandwidth).filter(values, name)
    assert not transfers.seen


def test_bandwidths_on_the_device(device: torch.device) -> None:
    features, values = noise(3, 40, dtype=torch.float32).to(device), noise(2, 40, dtype=torch.float32).to(device)
    expected = Lattice(features, [0.5, 2.0, 3.0]).filter(values)
    assert torch.equal(Lattice(features, torch.tensor([0.5, 2.0, 3.0], device=device)).filter(values), expected)
    number = torch.tensor(2, device=device)
    assert torch.equal(Lattice(features, number).filter(values), Lattice(features, 2).filter(values))
    with pytest.raises(ValueError, match=r"bandwidth must be a number or one per dimension, 3 for .*\(3, 40\), got 2"):
        Lattice(features, torch.ones(2, device=device))
    # CRFs know theirs as numbers of the host.
    sxy = torch.tensor([0.5, 2.0], device=device)
    assert DenseCRF(3, [Gaussian(sxy, 3)]).kernels[0].bandwidths == {"sxy": (0.5, 2.0)}


@pytest.mark.parametrize("numbers", [(), (3.0,), (0.7, 0.7), (1.0, 2.0, 1 / 3)])
def test_numbers_become_the_nearest_of_a_tensor(numbers: tuple[float, ...], device: torch.device) -> None:
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(bandwidths.filled(numbers, dtype, device).cpu(), torch.tensor(numbers, dtype=dtype))


# --- settings and devices ---


def test_precision() -> None:
    unary, image = example(torch.device("cpu"), 2)
    half, single = (DenseCRF(3, KERNELS, precision=precision) for precision in ("fp16", "fp32"))
    assert torch.equal(half(unary, image), single(unary, image))  # the CPU ignores it
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'fp16', got 'half'"):
        DenseCRF(3, KERNELS, precision="half")


@pytest.mark.cuda
def test_half_precision_is_close_on_a_gpu() -> None:
    unary, image = example(torch.device("cuda"), 2, grid=(120, 160))
    half, single = (DenseCRF(3, KERNELS, precision=precision)(unary, image) for precision in ("fp16", "fp32"))
    # What storing rows in half was measured to cost.
    assert 0 < (half - single).abs().max() < 2e-2
    assert (half - single).abs().mean() < 1e-4


@pytest.mark.cuda
@pytest.mark.parametrize("settings", SETTINGS)
def test_parameters_follow_the_inputs(settings: dict[str, Any]) -> None:
    unary, image = example(torch.device("cuda"), 2)
    stays = DenseCRF(3, KERNELS, iterations=2, **settings)
    moved = copy.deepcopy(stays).cuda()
    results = [crf(unary, image) for crf in (stays, moved)]
    assert torch.equal(*results) and results[0].is_cuda
    assert torch.equal(moved(unary.cpu(), image.cpu()), stays(unary.cpu(), image.cpu()))
    if settings.get("trainable"):
        for crf, q in zip((stays, moved), results):
            q.square().sum().backward()
            assert all(parameter.grad.device == parameter.device for parameter in crf.parameters())
        for ours, theirs in zip(stays.parameters(), moved.parameters()):
            assert torch.equal(ours.grad, theirs.grad.cpu())


@pytest.mark.cuda
@pytest.mark.parametrize("settings", SETTINGS)
def test_nobody_waits_for_a_gpu(settings: dict[str, Any]) -> None:
    unary, image = example(torch.device("cuda"), 2)
    crf = DenseCRF(3, KERNELS, iterations=2, **settings).cuda()
    leaf = unary.requires_grad_(settings.get("trainable", False))
    crf(leaf, image)  # the lattice of the grid is trimmed for the cache, once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            q = crf(leaf, image.float())
            if q.requires_grad:
                q.square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    crf.check()
