"""Objectives of learning a CRF, over labelled images of any sizes, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .crf import DenseCRF
from .inputs import read_problem
from .unary import Array, _integers, _tensor

__all__ = ["Example", "LabelledImage", "Objective", "gradient", "objective_named", "read_examples", "total"]

Example = tuple[Array, Array | None, Array]


class Objective(NamedTuple):
    """A function of sums over pixels, so that images can come one at a time; the larger the better."""

    statistics: Callable[[Tensor, Tensor, Tensor], Tensor]  # of log Q [B, C, N], labels and which count, both [B, N]
    value: Callable[[Tensor], Tensor]  # of the sum of the statistics of all images


def _log_likelihood_sums(log_q: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    chosen = log_q.gather(1, labels[:, None])[:, 0]
    return torch.stack([torch.where(counts, chosen, 0).double().sum(), counts.double().sum()])


def _iou_sums(log_q: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """[3, C]: expected pixels right, expected pixels said, pixels true."""
    truth = nn.functional.one_hot(labels, log_q.shape[1]).mT * counts[:, None]
    q = log_q.exp().double() * counts[:, None]
    return torch.stack([(q * truth).sum((0, 2)), q.sum((0, 2)), truth.double().sum((0, 2))])


def _soft_iou(sums: Tensor) -> Tensor:
    right, said, true = sums[:, sums[2] > 0]
    return (right / (said + true - right)).mean()


_OBJECTIVES = {
    "log_likelihood": Objective(_log_likelihood_sums, lambda sums: sums[0] / sums[1]),
    "soft_iou": Objective(_iou_sums, _soft_iou),
}


def objective_named(name: str) -> Objective:
    """The objective of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in _OBJECTIVES:
        raise ValueError(f"objective must be {' or '.join(map(repr, _OBJECTIVES))}, got {name!r}")
    return _OBJECTIVES[name]


class LabelledImage(NamedTuple):
    """One example, checked. `labels` and `counts` are [B, N]; where a pixel does not count its label is 0."""

    unary: Tensor
    image: Tensor | None
    labels: Tensor
    counts: Tensor

    def sums(self, crf: DenseCRF, objective: Objective) -> Tensor:
        """The statistics of what the CRF infers for it."""
        log_q = crf(self.unary, self.image, output="log_probabilities")
        return objective.statistics(log_q.reshape(len(self.labels), crf.num_classes, -1), self.labels, self.counts)


def read_examples(what: str, examples: Iterable[Example], crf: DenseCRF, ignore_index: int) -> list[LabelledImage]:
    """Examples as `fit_crf` takes them, checked; `what` is their name in errors."""
    read = []
    for number, example in enumerate(examples):
        try:
            unary, image, labels = example
        except (TypeError, ValueError):
            raise TypeError(
                f"{what} must be triples (unary, image, labels), got {type(example).__name__} as number {number}"
            ) from None
        try:
            read.append(_read_one(unary, image, labels, crf, ignore_index))
        except (TypeError, ValueError) as error:
            raise type(error)(f"number {number} of {what}: {error}") from error
    if not any(bool(one.counts.any()) for one in read):
        raise ValueError(f"{what} must have at least one labelled pixel, got {len(read)} images without any")
    return read


def _read_one(unary: Array, image: Array | None, labels: Array, crf: DenseCRF, ignore_index: int) -> LabelledImage:
    energies, truth = _tensor(unary, "unary").detach(), _integers(labels)
    guide = None if image is None else _tensor(image, "image").detach()
    problem = read_problem(energies, guide, crf.num_classes, crf.pairwise_terms, crf.spatial_dims)
    wanted = (*problem.batch_shape, *problem.grid)
    if tuple(truth.shape) != wanted:
        raise ValueError(f"labels must have the shape of unary without its classes, {wanted}, got {tuple(truth.shape)}")
    truth = truth.to(energies.device).reshape(problem.unary.shape[0], problem.unary.shape[2])
    counts = truth != ignore_index
    bad = counts & ((truth < 0) | (truth >= crf.num_classes))
    if bad.any():
        raise ValueError(f"labels must be in 0..{crf.num_classes - 1} or {ignore_index}, got {truth[bad][0].item()}")
    return LabelledImage(energies, guide, torch.where(counts, truth, 0), counts)


def total(crf: DenseCRF, examples: Sequence[LabelledImage], objective: Objective) -> Tensor:
    """The statistics of all examples, added on the CPU."""
    with torch.no_grad():
        return torch.stack([example.sums(crf, objective).cpu() for example in examples]).sum(0)


def gradient(
    crf: DenseCRF,
    examples: Sequence[LabelledImage],
    objective: Objective,
    parameters: Sequence[Tensor],
    sums: Tensor,
) -> list[Tensor]:
    """The gradient of the objective, in the memory of one example.

    It is the slope of the objective in the statistics, times the gradient of what each example adds to them.

    Args:
        crf, examples, objective: as above.
        parameters: of the CRF, to take the gradient with respect to.
        sums: what `total` returns for them.

    Returns:
        one tensor per parameter.
    """
    at = sums.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective.value(at), at)
    result = [torch.zeros_like(parameter) for parameter in parameters]
    for example in examples:
        added = (example.sums(crf, objective) * slope.to(example.unary.device)).sum()
        for whole, own in zip(result, torch.autograd.grad(added, parameters)):
            whole += own
    return result
