"""`DenseCRF.compile_graph`: what a captured inference takes, copies, returns and reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from helpers import layouts, noise
from oracles import pattern_image
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, GraphedCRF, clear_lattice_cache, graph

GRID = (17, 22)


def example(device: torch.device, *batch: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(pattern_image(*GRID)).permute(2, 0, 1).expand(*batch, -1, -1, -1)
    image = image.flip(-1) if seed % 2 else image.clone()
    return noise(*batch, 3, *GRID, seed=seed, dtype=torch.float32).to(device), image.to(device)


def usual(**settings: Any) -> DenseCRF:
    return DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 20, [-5.0, -4.0, -3.0])], **{"iterations": 3} | settings)


class Again:
    """In place of a captured graph: does everything again and writes where the graph would."""

    def __init__(self, run: Callable[[], Any], device: torch.device) -> None:
        self.run, self.result, self.replays = run, run(), 0

    def replay(self, reads: Iterable[Tensor]) -> None:
        self.replays += 1
        (result, reports), (own_result, own_reports) = self.run(), self.result
        own_result.copy_(result)
        for report, own in zip(reports, own_reports):
            own.words.copy_(report.words)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, rung: str) -> torch.device:
    """The device of the rung, where graphs can be captured after a fashion if it is no GPU."""
    if rung != "cuda":
        monkeypatch.setattr(graph, "_Graph", Again)
        monkeypatch.setattr(graph, "_require_gpu", lambda name, tensor: None)
    return torch.device("cuda" if rung == "cuda" else "cpu")


@pytest.mark.parametrize("output", ["probabilities", "log_probabilities", "labels"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_it_equals_the_module(batch: tuple[int, ...], output: str, graphs: torch.device) -> None:
    crf = usual().to(graphs)
    graphed = crf.compile_graph(*example(graphs, *batch), output=output, iterations=4)
    assert isinstance(graphed, GraphedCRF) and f"unary={(*batch, 3, *GRID)}" in repr(graphed)
    for seed in (1, 2, 3):
        unary, image = example(graphs, *batch, seed=seed)
        originals = unary.clone(), image.clone()
        expected = crf(unary, image, output=output, iterations=4)
        assert torch.equal(graphed(unary, image), expected)
        assert torch.equal(unary, originals[0]) and torch.equal(image, originals[1])
    graphed.check()


@pytest.mark.parametrize(
    "settings",
    [
        {"damping": 0.3, "tol": 1e-3},
        {"normalization": "homogeneous"},
        {"filter": "dense"},
        {"trainable": True},
        {"inference": "convergent"},
        {"inference": "frank_wolfe"},
    ],
)
def test_settings(settings: dict[str, Any], graphs: torch.device) -> None:
    crf = usual(**settings).to(graphs)
    graphed = crf.compile_graph(*example(graphs, 2))
    unary, image = example(graphs, 2, seed=2)
    got = graphed(unary.requires_grad_(), image)
    assert not got.requires_grad
    with torch.no_grad():
        assert torch.equal(got, crf(unary, image))


def test_no_image_and_features(graphs: torch.device) -> None:
    points = noise(2, *GRID, seed=5, dtype=torch.float32).to(graphs)
    crf = DenseCRF(3, [Gaussian(3, 3), Features(points, 2.0)], iterations=3).to(graphs)
    graphed = crf.compile_graph(example(graphs)[0])
    unary, image = example(graphs, seed=2)
    assert torch.equal(graphed(unary), crf(unary))
    with pytest.raises(ValueError, match="captured for unary, got unary and image"):
        graphed(unary, image)
    with_image = usual().to(graphs).compile_graph(unary, image)
    with pytest.raises(ValueError, match="captured for unary and image, got unary"):
        with_image(unary)


def test_strides_and_devices_of_the_inputs_do_not_matter(graphs: torch.device) -> None:
    crf = usual().to(graphs)
    graphed = crf.compile_graph(*example(graphs, 2))
    unary, image = example(graphs, 2, seed=2)
    expected = crf(unary, image)
    for name in layouts(unary):
        assert torch.equal(graphed(layouts(unary)[name], layouts(image)[name]), expected), name
    assert torch.equal(graphed(unary.cpu(), image.cpu()), expected)
    if graphs.type == "cuda":
        assert torch.equal(graphed(unary.cpu().pin_memory(), image.cpu().pin_memory()), expected)


def test_results_are_copies_unless_told_otherwise(graphs: torch.device) -> None:
    crf = usual().to(graphs)
    graphed = crf.compile_graph(*example(graphs))
    first, second = example(graphs, seed=2), example(graphs, seed=3)
    kept, static = graphed(*first), graphed(*first, copy=False)
    assert torch.equal(kept, static)
    assert graphed(*second, copy=False).data_ptr() == static.data_ptr() != kept.data_ptr()
    assert torch.equal(kept, crf(*first)) and torch.equal(static, crf(*second))


@pytest.mark.parametrize("moved", [True, False])
def test_parameters_count_as_they_are(moved: bool, graphs: torch.device) -> None:
    crf = usual(trainable=True)
    crf = crf.to(graphs) if moved else crf
    inputs = example(graphs, 2)
    graphed = crf.compile_graph(*inputs)
    before = graphed(*inputs)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter += 0.1
        assert torch.equal(graphed(*inputs), crf(*inputs))
    assert not torch.equal(graphed(*inputs), before)
    crf.load_state_dict(usual(trainable=True).state_dict())
    assert torch.equal(graphed(*inputs), before)


def test_inference_mode(graphs: torch.device) -> None:
    crf = usual().to(graphs)
    with torch.inference_mode():
        graphed = crf.compile_graph(*example(graphs))
        inside = graphed(*example(graphs, seed=2))
    assert torch.equal(graphed(*example(graphs, seed=2)), inside)


def test_lattices_of_grids_stay_while_the_graph_does(graphs: torch.device) -> None:
    clear_lattice_cache()
    crf = usual().to(graphs)
    inputs = example(graphs)
    expected = crf(*inputs)
    graphed = crf.compile_graph(*inputs)
    clear_lattice_cache()
    if graphs.type == "cuda":
        _ = [torch.full((1 << 16,), torch.nan, device=graphs) for _ in range(64)]
    assert torch.equal(graphed(*inputs), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda unary, image: (unary[:, :, :-1], image),
            "unary must be of shape (2, 3, 17, 22) and dtype torch.float32",
        ),
        (lambda unary, image: (unary[0], image), "got (3, 17, 22) and torch.float32"),
        (lambda unary, image: (unary.double(), image), "got (2, 3, 17, 22) and torch.float64"),
        (lambda unary, image: (unary, image.float()), "image must be of shape (2, 3, 17, 22) and dtype torch.uint8"),
    ],
)
def test_other_shapes_and_dtypes(change: Callable[..., Any], message: str, graphs: torch.device) -> None:
    graphed = usual().to(graphs).compile_graph(*example(graphs, 2))
    with pytest.raises(ValueError, match=re.escape(message)):
        graphed(*change(*example(graphs, 2)))


def test_bad_data(graphs: torch.device) -> None:
    unary, image = example(graphs, 2)
    crf = usual().to(graphs)
    graphed = crf.compile_graph(unary, image.float())
    nan_unary, nan_image = unary.clone(), image.float()
    nan_unary[1, 0, 2, 3] = nan_image[0, 1, 4, 5] = torch.nan
    for message, inputs in {
        "unary must": (nan_unary, image.float()),
        "features must be finite": (unary, nan_image),
    }.items():
        for find_out in (graphed.check, lambda: graphed(unary, image.float())):
            if graphs.type == "cpu":
                with pytest.raises(ValueError, match=message):
                    graphed(*inputs)
            else:
                assert graphed(*inputs).isnan().any()
                torch.cuda.synchronize()
                with pytest.raises(ValueError, match=message):
                    find_out()
            assert torch.equal(graphed(unary, image.float()), crf(unary, image))


def test_inputs_on_the_cpu_are_refused() -> None:
    unary, image = example(torch.device("cpu"))
    with pytest.raises(ValueError, match="CUDA graphs need inputs on a GPU, got unary on cpu"):
        usual().compile_graph(unary, image)
    with pytest.raises(ValueError, match="CUDA graphs need inputs on a GPU, got image on meta"):
        graph._require_gpu("image", image.to("meta"))
    with pytest.raises(TypeError, match=r"unary must be a torch\.Tensor, got ndarray"):
        usual().compile_graph(unary.numpy(), image)


@pytest.mark.cuda
def test_the_whole_of_it_is_captured() -> None:
    unary, image = example(torch.device("cuda"), 2)
    graphed = usual().cuda().compile_graph(unary, image)
    graphed(unary, image)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            graphed(unary, image, copy=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any("densecrf_cuda::" in event.key for event in profile.key_averages())


@pytest.mark.cuda
def test_streams_in_turn() -> None:
    crf = usual().cuda()
    graphed = crf.compile_graph(*example(torch.device("cuda"), 2))
    side = torch.cuda.Stream()
    for seed in range(4):
        inputs = example(torch.device("cuda"), 2, seed=seed)
        expected = crf(*inputs)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            got = graphed(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(got, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("settings", [{}, {"filter": "dense"}, {"damping": 0.3, "tol": 1e-3}])
def test_a_capture_of_ones_own(settings: dict[str, Any]) -> None:
    crf = usual(**settings).cuda()
    unary, image = example(torch.device("cuda"), 2)
    expected = crf(unary, image)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        q = crf(unary, image)
    clear_lattice_cache()  # which it must not have read
    _ = [torch.full((1 << 16,), torch.nan, device="cuda") for _ in range(64)]
    q.zero_()
    captured.replay()
    assert torch.equal(q, expected)
    unary.copy_(example(torch.device("cuda"), 2, seed=4)[0])
    captured.replay()
    assert torch.equal(q, crf(unary, image))
