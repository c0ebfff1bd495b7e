"""The formula of docs/memory.md against measured peaks, and bounds that are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, large, memory_plans, picture
from densecrf_cuda.footprint import KernelSizes, Sizes

# A fresh process for each plan, so that its peak is that of one call. The picture is smooth noise, which has about as
# many vertices as a photo; a small call first, so that what is loaded once does not count.
MEASURE = """
import json, re, sys
import torch
from densecrf_cuda import Bilateral, DenseCRF, Gaussian, memory_plans, picture
from densecrf_cuda.memory import choose_plan

bound, labels, height, width = json.loads(sys.argv[1])
torch.set_num_threads(2)
torch.manual_seed(0)

def example(height, width):
    noise = torch.rand(1, 3, height // 32 + 2, width // 32 + 2)
    image = torch.nn.functional.interpolate(noise, scale_factor=32, mode="bilinear")[0, :, :height, :width]
    return torch.rand(labels, height, width), (255 * image).to(torch.uint8).contiguous()

def crf(**settings):
    return DenseCRF(labels, [Gaussian(3, 3), Bilateral(80, 13, 5)], iterations=2, **settings)

def status(field):
    return 1024 * int(re.search(rf"^{field}:\\s+(\\d+) kB", open("/proc/self/status").read(), re.MULTILINE)[1])

def measured(unary, image):
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
    before = status("VmRSS")
    with torch.inference_mode():
        result = crf(max_memory=bound)(unary, image)
    return status("VmHWM") - before - result.nbytes

empty_result = picture.Picture.empty_result
# Else its pages would be free for other use until the last iteration writes them.
picture.Picture.empty_result = lambda *arguments: empty_result(*arguments).zero_()
chosen = []

def choose(plans, bound):
    chosen.append(choose_plan(plans, bound))
    return chosen[-1]

small, inputs = example(64, 64), example(height, width)
if bound is None:
    print(memory_plans(crf(), *inputs)[0].max_memory)
else:
    for plan in memory_plans(crf(), *small):
        crf(max_memory=plan.max_memory)(*small)
    picture.choose_plan = choose
    peak = measured(*inputs)
    print(json.dumps([chosen[-1].kind, chosen[-1].keeps_tables, chosen[-1].nbytes, peak]))
"""


def measure(bound: int | None) -> Any:
    # What is freed goes back at once: the allocator of the C library keeps up to 64 MiB, which is no matter for
    # pictures that need a bound, but would be for one that is quickly tested.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, json.dumps([bound, 20, 768, 1024])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


@pytest.fixture(scope="module")
def uncut() -> int:
    """The least bound that leaves the picture uncut."""
    bound: int = measure(None)
    return bound


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from procfs")
@pytest.mark.parametrize(
    ("share", "kind", "keeps"),
    [(1.0, "whole", True), (0.7, "labels", True), (0.5, "strips", True), (0.35, "strips", False)],
)
def test_measured_peaks(share: float, kind: str, keeps: bool, uncut: int) -> None:
    bound = int(share * uncut)
    *plan, formula, measured = measure(bound)
    assert plan == [kind, keeps]
    assert measured <= bound
    assert abs(measured - formula) <= 0.15 * formula


def allocated_peak(device: torch.device, work: Callable[[], Tensor]) -> int:
    """The most bytes that a call has allocated at a time, but for those of its result."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        return torch.cuda.max_memory_allocated() - before - result.nbytes
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        result = work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak - result.nbytes


@pytest.mark.parametrize("labels", [5, 40])
def test_allocations_of_cuda(labels: int, rung: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if rung == "cpu":
        pytest.skip("the CPU's kernels have memory of their own, which test_measured_peaks measures")
    height, width = 96, 160
    noise = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    image = 255 * torch.nn.functional.interpolate(noise, scale_factor=32, mode="bilinear")[0, :, :height, :width]
    inputs = torch.zeros(labels, height, width, device=device), image.contiguous().to(device)
    crf = DenseCRF(labels, [Gaussian(3, 3), Bilateral(40, 13, 5)], iterations=2)
    monkeypatch.setattr(large, "fits_in_any_case", lambda *_: False)
    monkeypatch.setattr(picture, "strip_points", lambda *_: 32 * width)
    crf.max_memory = 1 << 50
    for plan in [plan for plan in memory_plans(crf, *inputs) if plan.labels == 4]:
        monkeypatch.setattr(picture, "choose_plan", lambda *_, plan=plan: plan)
        with torch.inference_mode():
            peak = allocated_peak(device, lambda: crf(*inputs))
        # From above: the lattice of a `Gaussian` is trimmed for the cache, and kept tables are those of smaller strips.
        assert 0.75 * plan.nbytes <= peak <= 1.02 * plan.nbytes, plan


@pytest.mark.parametrize("cuda", [False, True])
def test_plans_need_less_the_more_they_cut(cuda: bool) -> None:
    sizes = Sizes(points=4096 * 4096, labels=21, cuda=cuda)
    points = sizes.points
    gaussian = KernelSizes(2, points // 8, points // 5, True, points // 7, 20_000, 30_000)
    bilateral = KernelSizes(5, points // 16, points * 2 // 5, True, points // 10, 20_000, 200_000)
    kernels = [gaussian, bilateral]
    strip = 1 << 18
    plans = [sizes.whole(kernels), *(sizes.by_labels(kernels, group) for group in (16, 8, 1))]
    plans += [sizes.by_strips(kernels, 8, strip, keeps) for keeps in (True, False)]
    assert plans == sorted(plans, reverse=True)
    assert plans[-1] < plans[0] / 6
    # Twice the labels, twice the rows; the tables stay.
    assert sizes.whole(kernels) < sizes._replace(labels=42).whole(kernels) < 2 * sizes.whole(kernels)
    assert sizes._replace(keeps_q=True).whole(kernels) > sizes.whole(kernels)
    assert sizes._replace(itemsize=8).by_labels(kernels, 8) > 1.5 * sizes.by_labels(kernels, 8)


def test_rows_are_padded() -> None:
    assert [Sizes(1, 1).row(labels) // 4 for labels in (1, 2, 3, 4, 5, 8, 9, 21)] == [1, 2, 4, 4, 8, 8, 16, 24]
    assert [Sizes(1, 1, itemsize=8).row(labels) // 8 for labels in (1, 2, 3, 5)] == [1, 2, 4, 8]
    assert [Sizes(1, 1, cuda=True).row(labels) // 4 for labels in (1, 2, 5, 21)] == [1, 4, 8, 24]


def test_the_bound_is_that_of_a_module() -> None:
    assert DenseCRF(2, [Gaussian(3)]).max_memory is None
    crf = DenseCRF(2, [Gaussian(3)], max_memory="1GiB")
    assert crf.max_memory == 1 << 30
    torch.testing.assert_close(crf(torch.zeros(2, 8, 8)), torch.full((2, 8, 8), 0.5))
