"""`fit_crf`: its objectives against their definitions, its gradients against differences, and what it learns."""

from __future__ import annotations

import builtins
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import noise
from torch import Tensor, nn

from densecrf_cuda import (
    Bilateral,
    DenseCRF,
    Features,
    FitEpoch,
    Gaussian,
    evaluate_crf,
    fit_crf,
    unary_from_logits,
)
from densecrf_cuda.objectives import gradient, objective_named, read_examples, total

Labelled = tuple[Tensor, Tensor, Tensor]
COLOURS = torch.tensor([[110.0, 110, 110], [170, 90, 80], [80, 150, 100]])


def coarse(labels: Tensor, classes: int, seed: int) -> Tensor:
    """A unary as of a network that sees little detail: the truth under noise, blurred."""
    truth = nn.functional.one_hot(labels, classes).permute(2, 0, 1).float()
    logits = truth + 1.5 * noise(*truth.shape, seed=seed, dtype=torch.float32)
    return unary_from_logits(4 * nn.functional.avg_pool2d(logits, 5, 1, 2, count_include_pad=False))


def drawing(seed: int, height: int, width: int, device: torch.device | None = None) -> Labelled:
    """Two discs on a ground, in noisy colours of their own: unary, image, labels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = torch.zeros(height, width, dtype=torch.long)
    for label in (1, 2):
        row, column = (noise(2, seed=10 * seed + label).sigmoid() * torch.tensor([height, width])).tolist()
        labels[(y - row) ** 2 + (x - column) ** 2 < (height / 4) ** 2] = label
    image = COLOURS[labels].permute(2, 0, 1) + 12 * noise(3, height, width, seed=seed, dtype=torch.float32)
    return coarse(labels, 3, seed + 100).to(device), image.to(device), labels.to(device)


def start(**settings: Any) -> DenseCRF:
    """Bandwidths that do not fit."""
    return DenseCRF(3, [Gaussian(1, 1), Bilateral(10, 60, 1)], **{"iterations": 3} | settings)


def accuracy(crf: DenseCRF, examples: list[Labelled]) -> float:
    right = [crf(unary, image, output="labels") == labels for unary, image, labels in examples]
    return torch.cat([r.flatten() for r in right]).double().mean().item()


def soft_iou(q: np.ndarray, labels: np.ndarray, ignored: int) -> float:
    """From the definition, with loops over labels; q [C, N]."""
    counts = labels != ignored
    ious = []
    for label in range(len(q)):
        truth = labels[counts] == label
        if truth.any():
            said = q[label, counts]
            ious.append(said[truth].sum() / (said.sum() + truth.sum() - said[truth].sum()))
    return float(np.mean(ious))


def test_objectives_from_their_definitions(device: torch.device) -> None:
    examples = [drawing(seed, *size, device) for seed, size in enumerate([(12, 16), (17, 11)])]
    examples[0][2][:, :5] = 255
    examples[1][2][examples[1][2] == 2] = 1  # one image without label 2
    crf = start()
    qs = [crf(unary, image).flatten(1).double().cpu().numpy() for unary, image, _ in examples]
    labels = [truth.flatten().cpu().numpy() for *_, truth in examples]
    counts = [truth != 255 for truth in labels]
    chosen = np.concatenate([q[truth[c], np.flatnonzero(c)] for q, truth, c in zip(qs, labels, counts)])
    # 1e-5: exp of a float32 log-probability against the float32 probability
    assert evaluate_crf(crf, examples) == pytest.approx(np.log(chosen).mean(), rel=1e-5)
    expected = soft_iou(np.concatenate(qs, 1), np.concatenate(labels), 255)
    assert evaluate_crf(crf, examples, objective="soft_iou") == pytest.approx(expected, rel=1e-5)
    # a batch counts as its images do, and any other label can be the one to ignore
    unary, image, truth = examples[0]
    stacked = [(torch.stack([unary] * 2), torch.stack([image] * 2), torch.stack([truth] * 2))]
    assert evaluate_crf(crf, stacked) == pytest.approx(evaluate_crf(crf, examples[:1]), rel=1e-9)
    renamed = torch.where(truth == 255, -1, truth)
    assert evaluate_crf(crf, [(unary, image, renamed)], ignore_index=-1) == evaluate_crf(crf, examples[:1])


@pytest.mark.parametrize("objective", ["log_likelihood", "soft_iou"])
def test_gradient_against_differences(objective: str, device: torch.device) -> None:
    # Points off the faces of simplices, in float64: the lattice is smooth there.
    sizes = [(4, 5), (3, 6)]
    examples = []
    for seed, (height, width) in enumerate(sizes):
        labels = torch.arange(height * width).reshape(height, width) % 3
        labels[0, 0] = 255
        image = 128 + 50 * noise(3, height, width, seed=seed)
        examples.append((noise(3, height, width, seed=seed + 5).to(device), image.to(device), labels.to(device)))
    matrix = -torch.eye(3) + 0.1 * torch.arange(9.0).reshape(3, 3)
    crf = DenseCRF(3, [Gaussian((1.7, 1.3), 1.2), Bilateral(2.1, 45.0, matrix)], iterations=2, trainable=True)
    crf = crf.double().to(device)
    parameters = list(crf.parameters())
    assert len(parameters) == 7
    wanted, read = objective_named(objective), read_examples("examples", examples, crf, 255)

    def value() -> float:
        return float(wanted.value(total(crf, read, wanted)))

    for parameter, got in zip(parameters, gradient(crf, read, wanted, parameters, total(crf, read, wanted))):
        differences = torch.zeros_like(got)
        for index in np.ndindex(*parameter.shape):
            sides = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter[index] += step
                    sides.append(value())
                    parameter[index] -= step
            differences[index] = (sides[0] - sides[1]) / 2e-6
        assert differences.abs().max() > 1e-6
        # 1e-8: rounding of two values near 1, over a step of 2e-6; the second order of the step is smaller still
        torch.testing.assert_close(got, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("objective", ["log_likelihood", "soft_iou"])
def test_learning_improves_images_that_were_not_seen(objective: str) -> None:
    examples = [drawing(seed, *size) for seed, size in enumerate([(24, 32), (30, 26), (28, 28)])]
    unseen = [drawing(seed, 28, 30) for seed in range(10, 14)]
    crf = start()
    before = copy.deepcopy(crf.state_dict())
    fit = fit_crf(crf, examples, objective=objective, epochs=20, learning_rate=0.15)
    gains = [evaluate_crf(c, unseen, objective=objective) for c in (crf, fit.crf)]
    assert gains[1] > gains[0] + 0.04
    assert accuracy(fit.crf, unseen) > accuracy(crf, unseen) + 0.02 > accuracy(DenseCRF(3), unseen) + 0.02
    assert all(torch.equal(before[name], value) for name, value in crf.state_dict().items())  # the CRF is as it was
    assert len(fit.history) == 21 and [epoch.epoch for epoch in fit.history] == list(range(21))
    assert fit.history[fit.best].objective == max(epoch.objective for epoch in fit.history)
    assert fit.history[3].loss == -fit.history[3].objective
    # The history starts with the values that the CRF has; both numbers of a Potts term are one degree of freedom.
    assert fit.history[0].parameters == pytest.approx(
        {"0.weight": 1, "0.sxy": 1, "1.weight": 1, "1.sxy": 10, "1.srgb": 60}, rel=1e-6
    )
    assert fit.history[0].objective == evaluate_crf(crf, examples, objective=objective)
    assert fit.parameters["1.srgb"] < 55  # colours that differ by 60 were too much alike


def test_the_best_epoch_is_the_one_of_the_result(device: torch.device) -> None:
    # Steps that are far too large: the objective goes up and down.
    examples = [drawing(0, 14, 18, device)]
    validation = [drawing(1, 12, 16, device)]
    for held_out in (None, validation):
        fit = fit_crf(start(), examples, validation=held_out, epochs=5, learning_rate=1.0)
        scores = [epoch.objective if held_out is None else epoch.validation for epoch in fit.history]
        assert fit.best == int(np.argmax(scores)) and fit.parameters == fit.history[fit.best].parameters
        again = evaluate_crf(fit.crf, examples if held_out is None else validation)
        # Bandwidths that are fixed again are rounded once less: 1e-4 for a pixel that changes its simplex.
        assert again == pytest.approx(scores[fit.best], rel=1e-4)
        assert {f"{k}.{n}": v for k, t in enumerate(fit.crf.kernels) for n, v in t.values().items()} == pytest.approx(
            {"0.compat": 1, "1.compat": 1} | fit.parameters, rel=1e-6
        )
        assert f"srgb={fit.parameters['1.srgb']:.3f}" in repr(fit.crf)


def test_learning_is_repeatable(device: torch.device) -> None:
    examples = [drawing(seed, 10, 12, device) for seed in range(2)]
    runs = [fit_crf(start(), iter(examples), epochs=3) for _ in range(2)]
    assert runs[0].history == runs[1].history


TRAINABLE: dict[str, tuple[Any, set[str]]] = {
    "weights": ("weights", {"0.weight", "1.weight"}),
    "compatibility": (["compatibility"], {"0.compat", "1.compat"}),
    "bandwidths": (("bandwidths",), {"0.sxy", "1.sxy", "1.srgb"}),
    "all": (True, {"0.weight", "1.weight", "1.compat", "0.sxy", "1.sxy", "1.srgb"}),
}


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("before", [False, True, ("bandwidths",)])
def test_what_is_learned(name: str, before: Any) -> None:
    trainable, learned = TRAINABLE[name]
    matrix = torch.tensor([[-1.0, 0.1, 0.0], [0.2, -1.0, 0.0], [0.0, 0.0, -2.0]])
    crf = DenseCRF(3, [Gaussian(1, 1), Bilateral((10, 8), 60, matrix)], iterations=2, trainable=before)
    fit = fit_crf(crf, [drawing(0, 10, 12)], epochs=2, trainable=trainable)
    first, last = fit.history[0].parameters, fit.history[-1].parameters
    assert set(first) == learned and all(first[key] != last[key] for key in learned)
    # what is trainable in the result is what was, and its state fits the module that it came from
    assert [name for name, _ in fit.crf.named_parameters()] == [name for name, _ in crf.named_parameters()]
    crf.load_state_dict(fit.crf.state_dict())
    unary, image, _ = drawing(0, 10, 12)
    assert torch.equal(crf(unary, image), fit.crf(unary, image))


def test_features_stay_as_they_are() -> None:
    unary, image, labels = drawing(0, 10, 12)
    crf = DenseCRF(3, [Features(nn.Conv2d(3, 2, 1), 1.0, bandwidth=30.0)], iterations=2)
    fit = fit_crf(crf, [(unary[None], image[None], labels[None])], epochs=2)
    assert set(fit.parameters) == {"0.weight", "0.bandwidth"}
    for old, new in zip(crf.kernels[0].features.parameters(), fit.crf.kernels[0].features.parameters()):
        assert torch.equal(old, new) and new.grad is None


def test_arrays_and_no_image() -> None:
    unary, _, labels = drawing(0, 10, 12)
    crf = DenseCRF(3, [Gaussian(2.0)], iterations=2)
    fits = [
        fit_crf(crf, [(unary, None, labels)], epochs=2),
        fit_crf(crf, [(unary.numpy(), None, labels.numpy().astype(np.uint8))], epochs=2),
    ]
    assert fits[0].history == fits[1].history
    assert fit_crf(crf, [(unary, None, labels)], epochs=0).best == 0


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [drawing(0, 10, 12)]
    seen: list[FitEpoch] = []
    fit = fit_crf(start(), examples, epochs=2, progress=seen.append)
    assert seen == fit.history and capsys.readouterr() == ("", "")
    import_module = builtins.__import__

    def without_tqdm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tqdm":
            raise ImportError(name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    fit_crf(start(), examples, epochs=2, validation=examples, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[2].startswith("epoch 2/2: objective -") and "validation" in lines[2]


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    fit_crf(start(), [drawing(0, 10, 12)], epochs=2, progress=True)
    err = capsys.readouterr().err
    assert "3/3" in err and "objective" in err


def test_voc_photos(voc_photos: list[tuple[Path, Path]]) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    examples = []
    for number, (path, annotation) in enumerate(voc_photos[:4]):
        image = np.ascontiguousarray(np.array(pillow.open(path).convert("RGB"))[::5, ::5]).transpose(2, 0, 1)
        truth = torch.from_numpy(np.array(pillow.open(annotation))[::5, ::5].astype(np.int64))
        labels = torch.where(truth == 255, 255, (truth > 0).long())
        examples.append((coarse(labels.clamp(max=1), 2, number), torch.from_numpy(image.copy()), labels))
    crf = DenseCRF(2, [Gaussian(1, 1), Bilateral(20, 30, 1)], iterations=5)
    fit = fit_crf(crf, examples[:2], objective="soft_iou", epochs=12, learning_rate=0.15)
    ious = [evaluate_crf(c, examples[2:], objective="soft_iou") for c in (DenseCRF(2), crf, fit.crf)]
    assert ious[0] < ious[1] < ious[2] - 0.01


def test_bad_input() -> None:
    unary, image, labels = drawing(0, 10, 12)
    example = (unary, image, labels)
    settings: list[tuple[dict[str, Any], str]] = [
        ({"objective": "dice"}, "objective must be 'log_likelihood' or 'soft_iou', got 'dice'"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"learning_rate": 0}, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"trainable": "sxy"}, "trainable must be .*, got 'sxy'"),
        ({"trainable": ()}, "trainable must name at least one of .*, got none"),
        ({"examples": []}, "examples must have at least one labelled pixel, got 0 images"),
        ({"validation": [(unary, image, labels * 0 + 255)]}, "validation must have .*, got 1 images without any"),
        (
            {"examples": [example, (unary, image, labels + 1)]},
            r"number 1 of examples: labels must be in 0..2 or 255, got 3",
        ),
        ({"examples": [(unary, image, labels.T)]}, r"labels must have the shape of .*, \(10, 12\), got \(12, 10\)"),
        (
            {"examples": [(unary, image.mT, labels)]},
            "number 0 of examples: image must .* width and height look swapped",
        ),
        ({"examples": [(unary[:2], image, labels)]}, r"unary must be \[B, 3, \*spatial\]"),
        ({"crf": DenseCRF(1, [Gaussian(3)])}, "crf must have at least 2 classes, got 1"),
        ({"crf": DenseCRF(3)}, "crf must have kernels and at least one iteration, .* 0 kernels and 10 iterations"),
        ({"crf": start(iterations=0)}, "crf must have kernels .*, got 2 kernels and 0 iterations"),
    ]
    for setting, message in settings:
        with pytest.raises(ValueError, match=message):
            fit_crf(**{"crf": start(), "examples": [example], "epochs": 1} | setting)
    with pytest.raises(TypeError, match=r"labels must be integers, got torch\.float32"):
        fit_crf(start(), [(unary, image, labels.float())])
    with pytest.raises(TypeError, match=r"examples must be triples \(unary, image, labels\), got tuple as number 0"):
        fit_crf(start(), [(unary, labels)])
    for run in (fit_crf, evaluate_crf):
        with pytest.raises(TypeError, match="crf must be a DenseCRF, got Linear"):
            run(nn.Linear(2, 2), [example])
    forbidden = unary.clone()
    forbidden.scatter_(0, labels[None], torch.inf)
    with pytest.raises(ValueError, match=r"objective must be finite, got -inf after 0 epochs: a unary of .infinity"):
        fit_crf(start(), [(forbidden, image, labels)])
