"""Learn the weights, compatibilities and bandwidths of a CRF from a few labelled images, by gradient descent."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .crf import DenseCRF
from .objectives import Example, Objective, gradient, objective_named, read_examples, total
from .settings import TRAINABLE, parse_trainable, whole_number
from .terms import PairwiseTerm

__all__ = ["FitEpoch", "FitResult", "evaluate_crf", "fit_crf"]

Progress = bool | Callable[["FitEpoch"], None] | None


@dataclass(frozen=True)
class FitEpoch:
    """Where a fit stood after so many steps; epoch 0 are the initial values.

    Attributes:
        epoch: steps done.
        objective: over the examples; the larger the better.
        validation: the same over the validation examples, or None.
        parameters: what is learned, by the number of the kernel and its name there: "0.weight", "1.srgb", ...
    """

    epoch: int
    objective: float
    validation: float | None
    parameters: dict[str, Any]

    @property
    def score(self) -> float:
        """What the best epoch has most of: the validation where there is any, else the objective."""
        return self.objective if self.validation is None else self.validation

    @property
    def loss(self) -> float:
        """What is descended: minus the objective."""
        return -self.objective


@dataclass(frozen=True)
class FitResult:
    """What `fit_crf` returns.

    Attributes:
        crf: a copy of the CRF with the values of the best epoch; trainable is what was trainable before.
        history: one `FitEpoch` for the initial values and for every step.
        best: the best epoch: by validation where there is any, else by the objective.
    """

    crf: DenseCRF
    history: list[FitEpoch]
    best: int

    @property
    def parameters(self) -> dict[str, Any]:
        """Learned values of the best epoch, as in `FitEpoch`."""
        return self.history[self.best].parameters


def fit_crf(
    crf: DenseCRF,
    examples: Iterable[Example],
    *,
    objective: str = "log_likelihood",
    epochs: int = 30,
    learning_rate: float = 0.05,
    trainable: bool | Iterable[str] = TRAINABLE,
    validation: Iterable[Example] | None = None,
    ignore_index: int = 255,
    progress: Progress = None,
) -> FitResult:
    """Learn a CRF from labelled images: one step of Adam per epoch, along the gradient over all of them.

    Every step sees all examples, one at a time, so that it needs the memory of one; nothing is drawn at random. Learned
    are the numbers of the kernels that the CRF has: a compatibility keeps its form, so give the CRF a matrix to learn
    one. Of a Potts number and the weight that multiplies it only the weight is learned where both are named.

    Args:
        crf: with kernels, trainable or not, and at the values to start from. It is not changed.
        examples: (unary, image, labels) each, tensors or arrays: unary and image as for the CRF, of any size; labels
            [H, W] (or [B, H, W] beside a batch) integers in 0..C-1, or ignore_index.
        objective: "log_likelihood", the mean of log Q(label) over the labelled pixels, in nats; or "soft_iou", the
            mean over the labels that occur of expected intersection over expected union, in [0, 1].
        epochs: number of steps.
        learning_rate: of Adam, > 0: about how much a weight, an entry of a compatibility or the logarithm of a
            bandwidth changes in a step.
        trainable: names of what is learned: "weights", "compatibility", "bandwidths"; True is all three.
        validation: examples that no gradient is taken of, to choose the best epoch by.
        ignore_index: label of pixels that do not count.
        progress: a function that is called with each `FitEpoch`; True shows a bar, or lines where tqdm is missing.

    Returns:
        the fitted CRF, with the values of its best epoch, and the history.

    Raises:
        ValueError: no examples, no kernels, one class, no labelled pixel; shapes and labels that do not fit; an
            objective that is not finite: a unary of +infinity at the true label, or a learning rate too large.
        TypeError: a CRF or labels of another type.

    Krähenbühl & Koltun, "Parameter learning and convergent inference for dense random fields", 2013; mean field is
    unrolled as in Zheng et al., "Conditional random fields as recurrent neural networks", 2015.

    Example:
        >>> from densecrf_cuda import Gaussian
        >>> labels = torch.arange(64).reshape(8, 8) // 32
        >>> unary = -torch.nn.functional.one_hot(labels).permute(2, 0, 1) + torch.eye(8)[None]
        >>> fit = fit_crf(DenseCRF(2, [Gaussian(1.0)], iterations=2), [(unary, None, labels)], epochs=5)
        >>> fit.history[fit.best].objective > fit.history[0].objective
        True
    """
    wanted, names, steps = objective_named(objective), parse_trainable(trainable), whole_number("epochs", epochs, 0)
    if not names:
        raise ValueError(f"trainable must name at least one of {', '.join(TRAINABLE)}, got none")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    _check_crf(crf)
    labelled = read_examples("examples", examples, crf, ignore_index)
    held_out = None if validation is None else read_examples("validation", validation, crf, ignore_index)

    fitted = copy.deepcopy(crf)
    terms = fitted.pairwise_terms
    trainable_before = [term.trainable for term in terms]
    for term in terms:
        # a Potts number is a second factor of the weight
        twice = "weights" in names and term.compat.dim() == 0
        term.set_trainable(tuple(name for name in names if not (twice and name == "compatibility")))
    parameters = [parameter for term in terms for parameter in term.trained()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)

    def state(epoch: int) -> tuple[FitEpoch, Tensor]:
        sums = total(fitted, labelled, wanted)
        checked = None if held_out is None else _value(wanted, total(fitted, held_out, wanted), epoch)
        return FitEpoch(epoch, _value(wanted, sums, epoch), checked, _learned(terms)), sums

    with _reporter(progress, steps) as report:
        now, sums = state(0)
        history, best, best_values = [now], now, _copies(parameters)
        report(now)
        for epoch in range(1, steps + 1):
            for parameter, ascent in zip(parameters, gradient(fitted, labelled, wanted, parameters, sums)):
                parameter.grad = -ascent
            optimizer.step()
            now, sums = state(epoch)
            history.append(now)
            if now.score > best.score:
                best, best_values = now, _copies(parameters)
            report(now)
    with torch.no_grad():
        for parameter, value in zip(parameters, best_values):
            parameter.copy_(value)
    for term, own in zip(terms, trainable_before):
        term.set_trainable(own)
    return FitResult(fitted, history, best.epoch)


def evaluate_crf(
    crf: DenseCRF, examples: Iterable[Example], *, objective: str = "log_likelihood", ignore_index: int = 255
) -> float:
    """The objective of `fit_crf` for a CRF as it is: to compare settings on images that it was not fitted to.

    Args:
        crf, examples, objective, ignore_index: as for `fit_crf`.

    Returns:
        mean log-likelihood of a labelled pixel in nats, or mean soft IoU; the larger the better.

    Raises:
        ValueError, TypeError: as `fit_crf`.

    Example:
        >>> evaluate_crf(DenseCRF(2), [(torch.zeros(2, 4, 4), None, torch.zeros(4, 4, dtype=torch.long))])
        -0.693...
    """
    wanted = objective_named(objective)
    if not isinstance(crf, DenseCRF):
        raise TypeError(f"crf must be a DenseCRF, got {type(crf).__name__}")
    return _value(wanted, total(crf, read_examples("examples", examples, crf, ignore_index), wanted), 0)


def _check_crf(crf: Any) -> None:
    if not isinstance(crf, DenseCRF):
        raise TypeError(f"crf must be a DenseCRF, got {type(crf).__name__}")
    if crf.num_classes < 2:
        raise ValueError("crf must have at least 2 classes, got 1, whose probability is 1 whatever the parameters")
    if crf.iterations < 1 or not crf.pairwise_terms:
        raise ValueError(
            f"crf must have kernels and at least one iteration, for anything to depend on its parameters, got "
            f"{len(crf.pairwise_terms)} kernels and {crf.iterations} iterations"
        )


def _value(objective: Objective, sums: Tensor, epoch: int) -> float:
    value = float(objective.value(sums))
    if not math.isfinite(value):
        raise ValueError(
            f"the objective must be finite, got {value} after {epoch} epochs: a unary of +infinity forbids a true "
            "label, or the learning rate is too large"
        )
    return value


def _learned(terms: Sequence[PairwiseTerm]) -> dict[str, Any]:
    held = {"weight": "weights", "compat": "compatibility"}
    return {
        f"{number}.{name}": value
        for number, term in enumerate(terms)
        for name, value in term.values().items()
        if held.get(name, "bandwidths") in term.trainable
    }


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@contextmanager
def _reporter(progress: Progress, steps: int) -> Iterator[Callable[[FitEpoch], object]]:
    """What is called with every epoch."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda epoch: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda epoch: print(f"epoch {epoch.epoch}/{steps}: {_summary(epoch)}", file=sys.stderr)
        return
    with tqdm(total=steps + 1, unit="epoch") as bar:

        def advance(epoch: FitEpoch) -> None:
            bar.set_postfix_str(_summary(epoch))
            bar.update()

        yield advance


def _summary(epoch: FitEpoch) -> str:
    tail = "" if epoch.validation is None else f", validation {epoch.validation:.4f}"
    return f"objective {epoch.objective:.4f}{tail}"
