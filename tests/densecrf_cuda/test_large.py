"""`max_memory`: the same result whatever is cut, and what cannot be done in so little is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import DOUBLE, compatibility, noise
from oracles import pattern_image
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, MemoryPlan, large, memory_plans, no_sync, picture

HEIGHT, WIDTH, CLASSES = 37, 22, 5
AMPLE = 1 << 50

PLANS = [
    MemoryPlan("labels", 0, 2, 0),
    MemoryPlan("strips", 0, CLASSES, 0, keeps_tables=True),
    MemoryPlan("strips", 0, 2, 0, keeps_tables=False),
]


def example(device: torch.device, *batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A unary [*batch, C, H, W] and an image [*batch, 3, H, W], different from image to image."""
    image = torch.from_numpy(pattern_image(HEIGHT, WIDTH)).permute(2, 0, 1).expand(*batch, -1, -1, -1).clone()
    if batch:
        image[0] = 255 - image[0]
    return noise(*batch, CLASSES, HEIGHT, WIDTH, dtype=dtype).to(device), image.to(device)


def usual(compat: Any = 3.0, **settings: Any) -> DenseCRF:
    return DenseCRF(CLASSES, [Gaussian(3, compat), Bilateral(8, 20, compat)], **{"iterations": 4} | settings)


@pytest.fixture
def run_by(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a CRF by a plan, in strips of one row of tiles."""

    def run(crf: DenseCRF, plan: MemoryPlan, *inputs: Tensor, **options: Any) -> Tensor:
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(large, "fits_in_any_case", lambda *_: False)
            patch.setattr(picture, "strip_points", lambda *_: 1)
            patch.setattr(picture, "choose_plan", lambda *_: plan)
            patch.setattr(crf, "max_memory", AMPLE)
            return crf(*inputs, **options)

    return run


def assert_same(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype and got.is_contiguous()
    if got.is_floating_point():
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    else:
        assert torch.equal(got, expected)


# Sums in another order, ten thousand numbers long at most, four updates one after the other.
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-3}


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("form", ["potts", "diagonal", "matrix"])
@pytest.mark.parametrize("normalization", ["symmetric", "none", "before", "after", "homogeneous"])
def test_the_same_result_for_every_normalization(
    normalization: str, form: str, plan: MemoryPlan, run_by: Any, device: torch.device
) -> None:
    inputs = example(device, dtype=DOUBLE)
    compat = compatibility(form, CLASSES) / (30 if normalization == "none" else 1)
    crf = usual(compat, normalization=normalization)
    assert_same(run_by(crf, plan, *inputs), crf(*inputs), ROUNDING[DOUBLE])


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize(
    "settings", [{}, {"damping": 0.3}, {"tol": 0.02}, {"damping": 0.3, "tol": 0.02}, {"iterations": 0}], ids=str
)
def test_the_same_result_for_every_setting(
    settings: dict[str, Any], plan: MemoryPlan, run_by: Any, device: torch.device
) -> None:
    inputs = example(device, 2)
    crf = usual(**settings)
    for output in ("probabilities", "log_probabilities", "labels"):
        got = run_by(crf, plan, *inputs, output=output)
        assert_same(got, crf(*inputs, output=output), ROUNDING[torch.float32])


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_tolerance_stops_the_iterations(plan: MemoryPlan, run_by: Any, device: torch.device) -> None:
    inputs = example(device, dtype=DOUBLE)
    crf, endless = (usual(0.5, iterations=12, tol=tol) for tol in (0.02, None))
    for output in ("probabilities", "log_probabilities"):
        stopped, ran_on = (run_by(each, plan, *inputs, output=output) for each in (crf, endless))
        assert_same(stopped, crf(*inputs, output=output), ROUNDING[DOUBLE])
        assert not torch.equal(stopped, ran_on)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_same_result_in_every_dtype_and_layout(
    dtype: torch.dtype, plan: MemoryPlan, run_by: Any, device: torch.device
) -> None:
    unary, image = example(device, 2, dtype=dtype)
    unary, image = unary.mT.contiguous().mT, image.movedim(1, 3).contiguous().movedim(3, 1)
    before = unary.clone(), image.clone()
    crf = usual()
    assert_same(run_by(crf, plan, unary, image), crf(unary, image), ROUNDING[dtype])
    assert torch.equal(unary, before[0]) and torch.equal(image, before[1])


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_volumes_points_and_no_kernels(plan: MemoryPlan, run_by: Any, device: torch.device) -> None:
    unary, image = example(device, dtype=DOUBLE)
    grey = image[:1].double()
    assert_same(run_by(DenseCRF(CLASSES), plan, unary), DenseCRF(CLASSES)(unary), ROUNDING[DOUBLE])
    cases = {
        "volume": (unary.reshape(CLASSES, 2, 37, 11), Features(grey.reshape(1, 2, 37, 11), 2, bandwidth=9.0)),
        "points": (unary.flatten(1), Features(grey.flatten(1), 2, bandwidth=9.0)),
        "guide": (unary, Features(lambda image: image.double() / 9, 2)),
    }
    for name, (own, kernel) in cases.items():
        crf = DenseCRF(CLASSES, [kernel], iterations=3)
        inputs = (own, image) if name == "guide" else (own,)
        assert_same(run_by(crf, plan, *inputs), crf(*inputs), ROUNDING[DOUBLE])
    # The coordinates of a volume continue from strip to strip along every axis.
    crf = DenseCRF(CLASSES, [Gaussian((2, 3, 1.5), 2), Bilateral((4, 5, 2), 30, 2)], iterations=3, spatial_dims=3)
    inputs = (cases["volume"][0], grey.reshape(1, 2, 37, 11))
    assert_same(run_by(crf, plan, *inputs), crf(*inputs), ROUNDING[DOUBLE])


def test_a_plan_for_every_bound() -> None:
    inputs = example(torch.device("cpu"), 2)
    expected = usual()(*inputs)
    plans = memory_plans(usual(), *inputs)
    assert [plan.kind for plan in plans[:2]] == ["whole", "labels"] and plans[-1].kind == "strips"
    assert all(isinstance(plan.nbytes, int) and plan.nbytes > 0 for plan in plans)
    for plan in plans:
        assert_same(usual(max_memory=plan.max_memory)(*inputs), expected, ROUNDING[torch.float32])
    assert_same(usual(max_memory="1 TiB")(*inputs), expected, 0)


def test_too_little_memory_names_the_least() -> None:
    inputs = example(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"max_memory must be at least \d+ for image 0 .* got 1000") as raised:
        usual(max_memory=1000)(*inputs)
    least = int(re.findall(r"at least (\d+)", str(raised.value))[0])
    while True:  # where counting alone exceeds the bound, what follows is not known yet
        try:
            got = usual(max_memory=least)(*inputs)
            break
        except ValueError as error:
            more = int(re.findall(r"at least (\d+)", str(error))[0])
            assert more > least
            least = more
    assert_same(got, usual()(*inputs), ROUNDING[torch.float32])


@pytest.mark.parametrize(
    ("bound", "error", "message"),
    [
        (0, ValueError, "max_memory must be positive, got 0"),
        (-5, ValueError, "max_memory must be positive, got -5"),
        ("lots", ValueError, "max_memory must be a size .* got 'lots'"),
        ("2 parsecs", ValueError, "max_memory must be a size .* got '2 parsecs'"),
        (1.5, TypeError, "max_memory must be a whole number of bytes .* got 1.5"),
        (True, TypeError, "max_memory must be a whole number of bytes .* got True"),
    ],
)
def test_bounds_that_are_none(bound: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        usual(max_memory=bound)


def test_sizes_as_text() -> None:
    sizes = {"2GiB": 2 << 30, "500 MB": 500_000_000, "1.5kib": 1536, "70000": 70_000, "3b": 3}
    assert {text: usual(max_memory=text).max_memory for text in sizes} == sizes


def test_what_it_is_not_for() -> None:
    inputs = example(torch.device("cpu"))
    with pytest.raises(ValueError, match="max_memory needs filter='lattice'"):
        usual(max_memory=AMPLE, filter="dense")
    trainable = usual(max_memory=AMPLE, trainable=True)
    with pytest.raises(ValueError, match="max_memory is for inference, but gradients are wanted"):
        trainable(*inputs)
    with pytest.raises(ValueError, match="gradients are wanted"):
        usual(max_memory=AMPLE)(inputs[0].clone().requires_grad_(), inputs[1])
    with torch.no_grad():
        assert_same(trainable(*inputs), usual()(*inputs), ROUNDING[torch.float32])
    with no_sync():  # the CPU never makes anybody wait
        usual(max_memory=AMPLE)(*inputs)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_bad_data_is_refused(plan: MemoryPlan, run_by: Any, device: torch.device) -> None:
    unary, image = example(device, 2)
    for value, label in ((torch.nan, 2), (-torch.inf, 2), (torch.inf, slice(None))):
        bad = unary.clone()
        bad[1, label, 30, 4] = value
        with pytest.raises(ValueError, match=f"unary must .* at point {30 * WIDTH + 4} of image 1"):
            run_by(usual(), plan, bad, image)
    wrong = image.float()
    wrong[1, 2, 20, 3] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        run_by(usual(), plan, unary, wrong)
    with pytest.raises(ValueError, match="use a larger bandwidth"):
        run_by(DenseCRF(CLASSES, [Gaussian(1e-6)]), plan, unary)
    with pytest.raises(ValueError, match="energies overflow in iteration"):
        sure = 10 * torch.arange(CLASSES, device=device).reshape(-1, 1, 1).expand_as(unary[0]).float()
        run_by(usual(3.3e38, iterations=1), plan, sure, image[0])
