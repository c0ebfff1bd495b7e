"""`DenseCRF`: inputs of every shape, dtype and layout, kernels, outputs and settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import DOUBLE, layouts, noise
from oracles import pattern_image
from torch import Tensor, nn

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian

HEIGHT, WIDTH = 17, 22


def example(
    device: torch.device, *batch: int, classes: int = 3, channels: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """A unary [*batch, C, H, W] and an image [*batch, G, H, W], uint8."""
    unary = noise(*batch, classes, HEIGHT, WIDTH, dtype=dtype)
    pattern = torch.from_numpy(pattern_image(HEIGHT, WIDTH)).permute(2, 0, 1)
    image = torch.cat([pattern, pattern.flip(1)])[:channels].expand(*batch, -1, -1, -1).clone()
    if batch:
        image[0] = 255 - image[0]
    return unary.to(device), image.to(device)


def usual(classes: int = 3, **settings: Any) -> DenseCRF:
    return DenseCRF(classes, [Gaussian(3, 3), Bilateral(8, 20, 5)], **{"iterations": 5} | settings)


def positions(*grid: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Coordinates of a grid from its last axis on: x, y, z, ..."""
    return torch.stack(torch.meshgrid(*(torch.arange(size, dtype=dtype) for size in grid), indexing="ij")[::-1])


# --- shapes, dtypes, layouts ---


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_images_and_batches(filter: str, device: torch.device) -> None:
    unary, image = example(device, 3)
    crf = usual(filter=filter)
    q = crf(unary, image)
    assert q.shape == unary.shape and q.dtype == unary.dtype and q.is_contiguous()
    assert crf(unary[0], image[0]).shape == unary[0].shape
    for b in range(3):
        single, batched = crf(unary[b], image[b]), crf(unary[b : b + 1], image[b : b + 1])
        assert torch.equal(single, batched[0])
        if filter == "lattice":
            assert torch.equal(single, q[b])
        else:  # a library GEMM may sum a batch in another order
            torch.testing.assert_close(single, q[b], rtol=1e-5, atol=1e-5)
    assert not torch.equal(q[0], q[1])


def test_outputs(device: torch.device) -> None:
    unary, image = example(device, 2)
    crf = usual()
    q = crf(unary, image)
    torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]))
    for name in ("log_probabilities", "log-probabilities"):
        torch.testing.assert_close(crf(unary, image, output=name), q.log(), rtol=1e-5, atol=1e-5)
    for name in ("labels", "map"):
        labels = crf(unary, image, output=name)
        assert labels.dtype == torch.int64 and labels.shape == (2, HEIGHT, WIDTH)
        assert torch.equal(labels, q.argmax(1))
    assert crf(unary[0], image[0], output="labels").shape == (HEIGHT, WIDTH)
    assert torch.equal(usual(output="labels")(unary, image), q.argmax(1))
    assert torch.equal(usual(output="labels")(unary, image, output="probabilities"), q)


@pytest.mark.parametrize("classes", [1, 2, 150, 1000])
def test_numbers_of_classes(classes: int, device: torch.device) -> None:
    unary, image = example(device, classes=classes)
    q = usual(classes)(unary, image)
    torch.testing.assert_close(q.sum(0), torch.ones_like(q[0]))
    if classes == 1:
        assert (q == 1).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_numbers_of_channels(channels: int, device: torch.device) -> None:
    unary, image = example(device, channels=channels)
    widths = [20.0 + c for c in range(channels)]
    q = DenseCRF(3, [Bilateral((8, 6), widths, 5)])(unary, image)
    features = torch.cat([positions(HEIGHT, WIDTH).to(device), image.float()])
    explicit = DenseCRF(3, [Features(features, 5, bandwidth=[8, 6, *widths])])(unary)
    assert torch.equal(q, explicit)  # x before y before the channels
    one = DenseCRF(3, [Bilateral(8, 20, 5)])(unary, image)
    assert torch.equal(one, DenseCRF(3, [Bilateral((8, 8), [20.0] * channels, 5)])(unary, image))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_of_every_dtype(dtype: torch.dtype, device: torch.device) -> None:
    unary, image = example(device, 2)
    assert torch.equal(usual()(unary, image.to(dtype)), usual()(unary, image))  # whole numbers up to 255 are exact


def test_images_outside_of_0_to_255(device: torch.device) -> None:
    unary, image = example(device)
    wide = 10 * image.float() - 1000
    scaled = DenseCRF(3, [Bilateral(8, 200, 5)])(unary, wide)
    features = torch.cat([positions(HEIGHT, WIDTH).to(device), wide])
    assert torch.equal(scaled, DenseCRF(3, [Features(features, 5, bandwidth=[8, 8, 200, 200, 200])])(unary))
    assert (scaled - (-unary).softmax(0)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_unaries_of_every_dtype(dtype: torch.dtype, device: torch.device) -> None:
    unary, image = example(device, 2)
    unary = unary.to(dtype)
    q = usual()(unary, image)
    assert q.dtype == dtype
    if dtype != DOUBLE:
        assert torch.equal(q, usual()(unary.float(), image).to(dtype))
    else:  # the same sums in another precision
        torch.testing.assert_close(q.float(), usual()(unary.float(), image), rtol=1e-4, atol=1e-4)


def test_layout_of_inputs_does_not_matter_and_they_are_not_modified(device: torch.device) -> None:
    unary, image = example(device, 2)
    originals = unary.clone(), image.clone()
    crf = usual()
    expected = crf(unary, image)
    for name in layouts(unary):
        assert torch.equal(crf(layouts(unary)[name], layouts(image)[name]), expected), name
    channels_last = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as image files come
    assert torch.equal(crf(unary.to(memory_format=torch.channels_last), channels_last), expected)
    grey = image[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(crf(unary, grey), crf(unary, grey.contiguous()))
    assert torch.equal(unary, originals[0]) and torch.equal(image, originals[1])


# --- kernels ---


def test_no_kernels(device: torch.device) -> None:
    unary, image = example(device, 2)
    for argument in (None, image):
        torch.testing.assert_close(DenseCRF(3)(unary, argument), (-unary).softmax(1))


def test_any_kernels_in_any_order(device: torch.device) -> None:
    unary, image = example(device, dtype=DOUBLE)
    kernels = [Gaussian(3, 1.0), Gaussian((1, 5), 1.0), Bilateral(8, 20, 2.0), Features(None, 1.0, bandwidth=30)]
    q = DenseCRF(3, kernels)(unary, image)
    torch.testing.assert_close(DenseCRF(3, kernels[::-1])(unary, image), q, rtol=1e-9, atol=1e-9)
    for left_out in range(4):
        fewer = DenseCRF(3, [kernel for i, kernel in enumerate(kernels) if i != left_out])(unary, image)
        assert (fewer - q).abs().max() > 1e-3
    # Twice a kernel of half the weight; a weight scales the compatibility.
    halves = DenseCRF(3, [Gaussian(3, 1.5), Gaussian(3, 3.0, weight=0.5)])(unary)
    torch.testing.assert_close(halves, DenseCRF(3, [Gaussian(3, 3.0)])(unary), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_forms_of_the_compatibility(filter: str, device: torch.device) -> None:
    unary, _ = example(device, dtype=DOUBLE)

    def run(compat: Any) -> Tensor:
        return DenseCRF(3, [Gaussian(3, compat)], filter=filter, iterations=4)(unary)

    def same(a: Any, b: Any) -> None:
        torch.testing.assert_close(run(a), run(b), rtol=1e-9, atol=1e-9)

    same(3.0, [-3.0, -3.0, -3.0])
    same([-1.0, -2.0, -3.0], torch.diag(torch.tensor([-1.0, -2.0, -3.0])))
    skew = torch.tensor([[-2.0, 1.0, 0.5], [0.0, -2.0, 0.3], [0.1, 0.0, -3.0]], dtype=DOUBLE)
    same(skew, (skew + skew.T) / 2)  # as pydensecrf makes it symmetric
    same(0.0, [0.0, 0.0, 0.0])
    assert (run(3.0) - run(0.0)).abs().max() > 0.1


def test_normalization_of_a_kernel_comes_before_that_of_the_crf(device: torch.device) -> None:
    unary, image = example(device)
    own = DenseCRF(3, [Gaussian(3, 3, normalization="after"), Bilateral(8, 20, 5)], normalization="before")
    stated = [Gaussian(3, 3, normalization="after"), Bilateral(8, 20, 5, normalization="NORMALIZE_BEFORE")]
    assert torch.equal(own(unary, image), DenseCRF(3, stated)(unary, image))
    default = DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 20, 5)])
    symmetric = DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 20, 5)], normalization="symmetric")
    assert torch.equal(default(unary, image), symmetric(unary, image))
    assert not torch.equal(default(unary, image), own(unary, image))


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_volumes(filter: str, device: torch.device) -> None:
    grid = (3, 5, 7)
    unary = noise(2, 3, *grid, dtype=torch.float32).to(device)
    place = positions(*grid).to(device)
    q = DenseCRF(3, [Features(place, 3, bandwidth=(2, 1.5, 1))], filter=filter)(unary)
    assert q.shape == unary.shape
    coordinates = DenseCRF(3, [Gaussian((2, 1.5, 1), 3)], filter=filter)
    assert torch.equal(coordinates(unary), q)
    single = DenseCRF(3, [Gaussian((2, 1.5, 1), 3)], filter=filter, spatial_dims=3)(unary[1])
    torch.testing.assert_close(single, q[1], rtol=1e-5, atol=1e-5)
    image = noise(2, 2, *grid, dtype=torch.float32).to(device)
    bilateral = DenseCRF(3, [Bilateral((2, 1.5, 1), 0.5, 3)], filter=filter)(unary, image)
    features = torch.cat([place.expand(2, -1, -1, -1, -1), image], 1)
    explicit = DenseCRF(3, [Features(features, 3, bandwidth=(2, 1.5, 1, 0.5, 0.5))], filter=filter)(unary)
    torch.testing.assert_close(bilateral, explicit, rtol=1e-5, atol=1e-6)


def test_point_sets(device: torch.device) -> None:
    unary, points = noise(2, 3, 50).to(device), noise(4, 50).to(device)
    crf = DenseCRF(3, [Features(points, 3)])
    single, batched = crf(unary[0]), crf(unary)
    assert single.shape == (3, 50) and batched.shape == (2, 3, 50)
    assert torch.equal(single, batched[0])
    own = torch.stack([points, points.flip(1)])
    each = DenseCRF(3, [Features(own, 3)], spatial_dims=1)(unary)
    assert torch.equal(each[0], single) and not torch.equal(each[1], batched[1])
    # A point set is a set: its order does not matter.
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0)).to(device)
    shuffled = DenseCRF(3, [Features(points[:, order], 3)])(unary[0][:, order])
    torch.testing.assert_close(shuffled, single[:, order], rtol=1e-9, atol=1e-9)


def test_features_from_the_image(device: torch.device) -> None:
    unary, image = example(device, 2)
    as_they_are = DenseCRF(3, [Features(None, 3, bandwidth=20)])(unary, image)
    assert torch.equal(as_they_are, DenseCRF(3, [Features(image.float(), 3, bandwidth=20)])(unary))
    halved = DenseCRF(3, [Features(lambda image: image.float() / 2, 3, bandwidth=10)])(unary, image)
    assert torch.equal(halved, as_they_are)
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 3, padding=1).to(device)
    crf = DenseCRF(3, [Features(network, 3, bandwidth=30)])
    assert set(crf.parameters()) == set(network.parameters())
    fixed = DenseCRF(3, [Features(network(image.float()).detach(), 3, bandwidth=30)])(unary)
    with torch.no_grad():
        assert torch.equal(crf(unary, image.float()), fixed)


# --- settings ---


def test_iterations(device: torch.device) -> None:
    unary, image = example(device, 2)
    torch.testing.assert_close(usual(iterations=0)(unary, image), (-unary).softmax(1))
    assert torch.equal(usual(iterations=9)(unary, image, iterations=3), usual(iterations=3)(unary, image))
    assert DenseCRF(3).iterations == 10


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_damping_and_tolerance(filter: str, device: torch.device) -> None:
    unary, _ = example(device, 2, dtype=DOUBLE)
    unary[0] *= 8

    def run(iterations: int, **settings: Any) -> Tensor:
        return DenseCRF(3, [Gaussian(3, 2)], iterations=iterations, filter=filter, **settings)(unary)

    torch.testing.assert_close(run(1, damping=0.3), 0.3 * run(0) + 0.7 * run(1), rtol=1e-12, atol=1e-12)
    trace = [run(n) for n in range(16)]
    stopped, stops = run(15, tol=0.01), []
    for b in range(2):
        stops.append(next(n for n in range(1, 16) if (trace[n][b] - trace[n - 1][b]).abs().max() <= 0.01))
        torch.testing.assert_close(stopped[b], trace[stops[b]][b], rtol=1e-12, atol=1e-12)
    assert stops[0] != stops[1]


@pytest.mark.parametrize("output", ["probabilities", "log_probabilities", "labels"])
@pytest.mark.parametrize("settings", [{}, {"damping": 0.4}, {"tol": 0.02}, {"normalization": "homogeneous"}])
def test_path_with_gradients_equals_the_fused_one(settings: dict[str, Any], output: str, device: torch.device) -> None:
    unary, image = example(device, 2, dtype=DOUBLE)
    unary[1, 2, :5] = torch.inf
    crf = usual(output=output, **settings)
    fused = crf(unary, image)
    unrolled = crf(unary.clone().requires_grad_(), image)
    assert unrolled.requires_grad == (output != "labels") and unrolled.is_contiguous()
    # The same sums in another order.
    torch.testing.assert_close(unrolled.detach(), fused, rtol=1e-9, atol=1e-12)


def test_inference_mode(device: torch.device) -> None:
    unary, image = example(device, 2)
    crf = DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 20, 5)], trainable=True)
    with torch.no_grad():
        expected = crf(unary, image)
    with torch.inference_mode():
        assert torch.equal(crf(unary, image), expected)


def test_trainable_or_not_is_the_same_at_the_start(device: torch.device) -> None:
    unary, image = example(device, 2)
    kernels = [Gaussian((0.7, 3.3), 1.1, weight=0.3), Bilateral(8.1, 20.3, [-1.1, -2.2, -0.7])]
    fixed, trainable = DenseCRF(3, kernels).to(device), DenseCRF(3, kernels, trainable=True).to(device)
    with torch.no_grad():
        # log-bandwidths begin at exactly the bandwidth that was asked for, or every lattice would be another one
        for ours, theirs in zip(fixed.kernels, trainable.kernels):
            for name in ours.bandwidths:
                count = 3 if name == "srgb" else 2
                a, b = (kernel.bandwidth_of(name, count, torch.float32, device) for kernel in (ours, theirs))
                assert torch.equal(a, b)
        assert torch.equal(fixed(unary, image), trainable(unary, image))
