"""`densecrf refine`: what it writes equals what the package computes, in the style of what it read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SIZE, coarse_classes, infer, pixels, random_scores, refuse, save_photo, succeed
from PIL import Image

from densecrf_cuda import Bilateral, Gaussian, unary_from_labels, unary_from_logits, unary_from_probabilities

UNSURE = (slice(4, 12), slice(6, 20))


def save_labels(path: Path, mode: str, codes: list[int], classes: np.ndarray, unsure: int) -> dict[str, object]:
    """Write a label picture of a mode; what its style is."""
    stored = np.where(classes < 0, unsure, np.array(codes)[classes])
    if mode == "RGB":
        picture = Image.fromarray(np.stack([stored >> 16, stored >> 8 & 255, stored & 255], -1).astype(np.uint8))
    elif mode == "I;16":
        picture = Image.fromarray(stored.astype(np.uint16))
    else:
        picture = Image.fromarray(stored.astype(bool if mode == "1" else np.uint8))
    if mode == "P":
        picture.putpalette(bytes(range(255, -1, -1)) * 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return style(path)


def style(path: Path) -> dict[str, object]:
    with Image.open(path) as picture:
        return {"mode": picture.mode, "palette": picture.getpalette(), "info": picture.info}


@pytest.mark.parametrize(
    ("mode", "codes", "unsure", "options"),
    [
        ("P", [0, 3, 15], 255, []),
        ("P", [0, 3, 255], 7, ["--ignore", "7"]),
        ("L", [0, 1, 20], 255, []),
        ("L", [0, 128, 255], 9, ["--unsure-label", "9"]),
        ("I;16", [0, 700, 65000], 255, []),
        ("RGB", [0x000000, 0x800000, 0xE0E0C0], 0xFF00FF, ["--unsure-label", "#ff00ff"]),
    ],
)
def test_labels_keep_their_style(mode: str, codes: list[int], unsure: int, options: list[str], tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    classes = coarse_classes(3)
    classes[UNSURE] = -1
    before = save_labels(tmp_path / "labels.png", mode, codes, classes, unsure)
    succeed("refine", tmp_path / "photo.png", "--labels", tmp_path / "labels.png", "-o", tmp_path / "out.png", *options)
    expected = infer(unary_from_labels(classes, 3, 0.7, unsure_label=-1), image)
    assert len(np.unique(expected)) == 3
    assert not np.array_equal(expected[classes >= 0], classes[classes >= 0])  # there is something to see
    save_labels(tmp_path / "expected.png", mode, codes, expected, unsure)
    assert style(tmp_path / "out.png") == before
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), pixels(tmp_path / "expected.png"))


@pytest.mark.parametrize(("mode", "codes"), [("1", [0, 1]), ("L", [0, 255])])
def test_masks(mode: str, codes: list[int], tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    classes = coarse_classes(2)
    save_labels(tmp_path / "mask.png", mode, codes, classes, 0)
    succeed("refine", tmp_path / "photo.png", "--labels", tmp_path / "mask.png", "-o", tmp_path / "out.png")
    expected = infer(unary_from_labels(classes, 2, 0.7), image)
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), np.array(codes)[expected])


def test_every_option_of_the_model(tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png", "coffee")
    logits = random_scores(3)
    np.save(tmp_path / "logits.npy", logits)
    for options, settings in (
        (
            "--gaussian-sxy 2,4 --gaussian-compat 1.5 --sxy 20,30 --srgb 9,11,14 "
            "--compat=-4,-5,-6 --normalization after --iterations 3",
            {
                "kernels": [Gaussian((2, 4), 1.5), Bilateral((20, 30), (9, 11, 14), [-4, -5, -6])],
                "normalization": "after",
                "iterations": 3,
            },
        ),
        ("--gaussian-compat 0", {"kernels": [Bilateral(80, 13, 10)]}),
        ("--compat 0 --iterations 1", {"kernels": [Gaussian(3, 3)], "iterations": 1}),
    ):
        paths = [tmp_path / "photo.png", "--logits", tmp_path / "logits.npy", "-o", tmp_path / "out.npy"]
        succeed("refine", *paths, "--threads", torch.get_num_threads(), *options.split())
        expected = infer(unary_from_logits(logits), image, "probabilities", **settings)
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_confidence_and_a_number_of_classes(tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    classes = coarse_classes(3)
    save_labels(tmp_path / "labels.png", "L", [0, 1, 2], classes, 255)
    paths = [tmp_path / "photo.png", "--labels", tmp_path / "labels.png", "-o", tmp_path / "out.npz"]
    succeed("refine", *paths, "--confidence", "0.6", "--num-classes", "5")
    expected = infer(unary_from_labels(classes, 5, 0.6), image, "probabilities")
    with np.load(tmp_path / "out.npz") as saved:
        np.testing.assert_array_equal(saved["probabilities"], expected)
        assert saved["labels"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_probabilities_of_either_layout(suffix: str, layout: str, tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    probabilities = torch.from_numpy(random_scores(4)).softmax(0).numpy()
    stored = probabilities if layout == "chw" else np.moveaxis(probabilities, 0, 2)
    if suffix == ".npy":
        np.save(tmp_path / "probs.npy", stored)
    else:
        np.savez(tmp_path / "probs.npz", any_name=stored)
    out, scores = tmp_path / "out.png", tmp_path / "scores.npz"
    source = tmp_path / f"probs{suffix}"
    succeed("refine", tmp_path / "photo.png", "--probs", source, "-o", out, "--probs-out", scores)
    unary = unary_from_probabilities(probabilities)
    np.testing.assert_array_equal(np.load(scores)["probabilities"], infer(unary, image, "probabilities"))
    np.testing.assert_array_equal(pixels(out), infer(unary, image))
    assert style(out)["mode"] == "P"


def test_one_channel_is_label_1_against_label_0(tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    logits = random_scores(1)[0]
    p = torch.from_numpy(logits).sigmoid().numpy()
    np.save(tmp_path / "p.npy", p)
    np.save(tmp_path / "x.npy", logits)
    paths = [tmp_path / "photo.png", "-o", tmp_path / "out.npy"]
    succeed("refine", *paths, "--probs", tmp_path / "p.npy")
    expected = infer(unary_from_probabilities(np.stack([1 - p, p])), image, "probabilities")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    succeed("refine", *paths, "--logits", tmp_path / "x.npy")
    # the softmax of (0, x) is the sigmoid to a few units in the last place, and ten iterations may amplify them
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)


def test_overlay_and_palette(tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    save_labels(tmp_path / "labels.png", "L", [0, 1], coarse_classes(2), 255)
    paths = [tmp_path / "photo.png", "--labels", tmp_path / "labels.png", "-o", tmp_path / "out.png"]
    options = ["--overlay", tmp_path / "overlay.png", "--opacity", "0.25", "--no-boundaries", "--palette", "voc"]
    succeed("refine", *paths, *options)
    labels = pixels(tmp_path / "out.png")
    assert style(tmp_path / "out.png")["mode"] == "P"
    red = image.copy()
    red[labels == 1] = (0.75 * image[labels == 1] + [32, 0, 0]).round()  # label 1 of VOC is (128, 0, 0)
    # a half may be rounded to either side
    np.testing.assert_allclose(pixels(tmp_path / "overlay.png").astype(int), red.astype(int), atol=1)

    save_labels(tmp_path / "other.png", "P", [0, 1], coarse_classes(2), 255)
    succeed("refine", *paths, "--palette", tmp_path / "other.png")
    assert style(tmp_path / "out.png") == style(tmp_path / "other.png")
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), labels)
    succeed("refine", *paths, "--palette", "grey")
    assert style(tmp_path / "out.png")["mode"] == "L"


@pytest.mark.cuda
def test_a_gpu_gives_the_same(tmp_path: Path) -> None:
    save_photo(tmp_path / "photo.png")
    np.save(tmp_path / "logits.npy", random_scores(3))
    paths = [tmp_path / "photo.png", "--logits", tmp_path / "logits.npy"]
    for device in ("cpu", "cuda"):
        succeed("refine", *paths, "-o", tmp_path / f"{device}.npy", "--device", device)
    # equal to rounding, which ten iterations amplify
    np.testing.assert_allclose(np.load(tmp_path / "cuda.npy"), np.load(tmp_path / "cpu.npy"), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of --labels, --probs and --logits is needed, got 0"),
        (["--labels", "L", "--probs", "L"], "one of --labels, --probs and --logits is needed, got 2"),
        (["--labels", "missing.png"], "--labels missing.png does not exist"),
        (["--labels", "L", "--srgb", "0"], "srgb must be positive and finite, got 0.0"),
        (["--labels", "L", "--sxy", "80;60"], "--sxy must be a number"),
        (["--labels", "L", "--normalization", "both"], "normalization must be one of"),
        (["--labels", "L", "--confidence", "1.5"], "--confidence must be in (0, 1], got 1.5"),
        (["--labels", "L", "--layout", "cwh"], "--layout must be auto, chw, hwc, got cwh"),
        (["--labels", "L", "--ignore", "void"], "--unsure-label must be a label from 0 on or a colour as #rrggbb"),
        (["--labels", "L", "--format", "jpg"], "--format must be png, npy or npz, got jpg"),
        (
            ["--labels", "L", "--palette", "bright"],
            "--palette must be keep, voc, grey or a palette picture, got bright",
        ),
        (["--labels", "L", "--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got tpu"),
        (["--labels", "L", "--device", "cuda:99"], "--device cuda:99"),
        (["--labels", "L", "--overlay", "o.txt"], "--overlay must end in .png, .jpg, .jpeg, .webp, got o.txt"),
        (["--labels", "L", "--probs-out", "o.png"], "--probs-out must end in .npy, .npz, got o.png"),
    ],
)
def test_wrong_commands(options: list[str], message: str, tmp_path: Path) -> None:
    save_photo(tmp_path / "photo.png")
    save_labels(tmp_path / "labels.png", "L", [0, 1], coarse_classes(2), 255)
    options = [str(tmp_path / "labels.png") if option == "L" else option for option in options]
    assert message in refuse("refine", tmp_path / "photo.png", "-o", tmp_path / "out.png", *options)
    assert not (tmp_path / "out.png").exists()


def test_the_photo_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    upright = save_photo(tmp_path / "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, turn it clockwise
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    save_labels(tmp_path / "labels.png", "L", [0, 1], coarse_classes(2), 255)
    for name in ("photo", "turned"):
        paths = [tmp_path / f"{name}.png", "--labels", tmp_path / "labels.png"]
        succeed("refine", *paths, "-o", tmp_path / f"{name}_out.png")
    np.testing.assert_array_equal(pixels(tmp_path / "turned_out.png"), pixels(tmp_path / "photo_out.png"))
    assert pixels(tmp_path / "turned_out.png").shape == SIZE
