"""`segment_scribbles` against the CRF that it stands for, and against pydensecrf."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, unary_from_scribbles
from densecrf_cuda.page.segment import Settings, pick_device, segment_scribbles


def blocks(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    """Noisy blocks of 30 × 30 pixels in colours that stand out from each other."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 4, (height // 30, width // 30, 3)) * 70
    return (rough.repeat(30, 0).repeat(30, 1) + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)


def marks(*labels: int, height: int = 60, width: int = 90) -> np.ndarray:
    """A short stroke for each label, in the middle of the blocks one after the other."""
    scribbles = np.zeros((height, width), np.int64)
    for i, label in enumerate(labels):
        row, column = divmod(i, width // 30)
        scribbles[30 * row + 15, 30 * column + 8 : 30 * column + 22] = label
    return scribbles


SETTINGS = Settings(2, 3, 20, 10, 8, 6, 0.9)


def direct(photo: np.ndarray, scribbles: np.ndarray, num_labels: int, device: torch.device) -> np.ndarray:
    kernels = [Gaussian(sxy=2, compat=3), Bilateral(sxy=20, srgb=10, compat=8)]
    unary = unary_from_scribbles(scribbles, num_labels, confidence=0.9).to(device)
    image = torch.from_numpy(photo).permute(2, 0, 1).to(device)
    labels = DenseCRF(num_labels, kernels, iterations=6)(unary, image, output="labels")
    return labels.cpu().numpy() + 1


def test_equals_the_crf_called_directly(device: torch.device) -> None:
    photo, scribbles = blocks(), marks(1, 2, 3, 1)
    labels = segment_scribbles(photo, scribbles, SETTINGS, device=device)
    np.testing.assert_array_equal(labels, direct(photo, scribbles, 3, device))
    assert set(np.unique(labels)) == {1, 2, 3}


def test_labels_may_leave_gaps_and_keep_their_dtype() -> None:
    photo, scribbles = blocks(), marks(3, 250, 7).astype(np.uint8)
    names = np.array([3, 7, 250], np.uint8)
    expected = direct(photo, np.searchsorted(names, marks(3, 250, 7)) + (marks(3, 250, 7) > 0), 3, torch.device("cpu"))
    labels = segment_scribbles(photo, scribbles, SETTINGS)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, names[expected - 1])


def test_agrees_with_pydensecrf() -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    from pydensecrf.utils import unary_from_labels

    photo, scribbles = blocks(), marks(1, 2, 3, 1)
    crf = densecrf.DenseCRF2D(90, 60, 3)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_labels(scribbles, 3, 0.9, zero_unsure=True), np.float32))
    crf.addPairwiseGaussian(sxy=2, compat=3)
    crf.addPairwiseBilateral(sxy=20, srgb=10, rgbim=photo, compat=8)
    expected = np.argmax(crf.inference(6), 0).reshape(60, 90) + 1
    # The two round differently in float32, which may turn pixels whose two best labels are as good as equal.
    assert (segment_scribbles(photo, scribbles, SETTINGS) == expected).mean() >= 0.999


def test_inputs_stay_as_they_are() -> None:
    photo, scribbles = blocks(), marks(1, 2)
    photo.flags.writeable = scribbles.flags.writeable = False
    before = scribbles.copy()
    segment_scribbles(photo[::-1], scribbles, SETTINGS)
    np.testing.assert_array_equal(scribbles, before)


def test_one_label_alone_goes_everywhere() -> None:
    assert (segment_scribbles(blocks(), marks(4), SETTINGS) == 4).all()


def test_scaled_settings_cover_the_same_part_of_a_larger_picture() -> None:
    assert SETTINGS.scaled(3) == Settings(6, 3, 60, 10, 8, 6, 0.9)
    small = segment_scribbles(blocks(), marks(1, 2, 3, 4, 5, 6), SETTINGS)
    photo, scribbles = (array.repeat(2, 0).repeat(2, 1) for array in (blocks(), marks(1, 2, 3, 4, 5, 6)))
    large = segment_scribbles(photo, scribbles, SETTINGS.scaled(2))
    # Equal but at borders: the lattice of the larger picture is another one.
    assert (large[::2, ::2] == small).mean() > 0.98


@pytest.mark.parametrize(
    ("photo", "scribbles", "error", "message"),
    [
        (blocks().astype(float), marks(1), TypeError, "photo must be uint8, got float64"),
        (blocks()[..., 0], marks(1), ValueError, r"photo must be \[H, W, 3\], got \(60, 90\)"),
        (blocks(), marks(1).astype(float), TypeError, "scribbles must be integers, got float64"),
        (blocks(), marks(1).T, ValueError, r"scribbles must have the size of the photo, \(60, 90\), got \(90, 60\)"),
        (blocks(), marks(), ValueError, "scribbles must mark some pixels, got 0 everywhere"),
        (blocks(), marks(-2), ValueError, "scribbles must not be negative, got -2"),
        (torch.from_numpy(blocks()), marks(1), TypeError, "photo must be a numpy array, got Tensor"),
        (blocks(), marks(1).tolist(), TypeError, "scribbles must be a numpy array, got list"),
    ],
)
def test_bad_input_is_named(photo: object, scribbles: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        segment_scribbles(photo, scribbles)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(gaussian_sxy=0), "sxy.*0"),
        (Settings(bilateral_srgb=-1), "srgb.*-1"),
        (Settings(confidence=2), r"confidence must be in \(0, 1\], got 2"),
        (Settings(iterations=-1), "iterations must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(settings: Settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment_scribbles(blocks(), marks(1, 2), settings)


def test_device_is_what_is_named_or_can_compute() -> None:
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device().type in ("cpu", "cuda")
    with pytest.raises(ValueError, match=r"device must be one of torch's, .* got 'gpu'"):
        pick_device("gpu")
