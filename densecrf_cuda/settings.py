"""Settings of a CRF: which values they take, and what is said where they have another."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "TRAINABLE",
    "FrankWolfeSettings",
    "check_choice",
    "integer",
    "parse_inference",
    "parse_output",
    "parse_trainable",
    "whole_number",
]

OUTPUTS = {
    "probabilities": "probabilities",
    "log_probabilities": "log_probabilities",
    "labels": "labels",
    "log-probabilities": "log_probabilities",
    "map": "labels",
}
TRAINABLE = ("weights", "compatibility", "bandwidths")
INFERENCES = ("mean_field", "convergent", "frank_wolfe")
REGULARIZATIONS = ("entropy", "l2", "none")
STEP_SIZES = ("line_search", "decreasing")


def integer(name: str, value: int) -> int:
    """An integer, of numpy too: labels.max() + 1."""
    try:
        if isinstance(value, bool):
            raise TypeError("a bool is no count")
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r}") from error


def whole_number(name: str, value: int, least: int) -> int:
    """An integer that is at least `least`."""
    value = integer(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """One of the names that a setting takes."""
    if value not in choices:
        raise ValueError(f"{name} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, got {value!r}")
    return value


def parse_output(name: str) -> str:
    """What an inference returns, by its one name."""
    if name not in OUTPUTS:
        raise ValueError(f"output must be 'probabilities', 'log_probabilities' or 'labels', got {name!r}")
    return OUTPUTS[name]


def parse_trainable(trainable: bool | Iterable[str]) -> tuple[str, ...]:
    """Names of what becomes a parameter."""
    if isinstance(trainable, bool):
        return TRAINABLE if trainable else ()
    names = (trainable,) if isinstance(trainable, str) else tuple(trainable)
    for name in names:
        if name not in TRAINABLE:
            raise ValueError(f"trainable must be True, False or names among {', '.join(TRAINABLE)}, got {name!r}")
    return names


@dataclass(frozen=True)
class FrankWolfeSettings:
    """What `inference="frank_wolfe"` minimises and how far it goes: <U, Q> + ½ Σ_k <Q, compat_k(filter_k Q)> + r(Q).

    Args:
        regularization: r is weight · Σ Q log Q ("entropy"), weight / 2 · |Q|² ("l2") or 0 ("none").
        weight: > 0.
        step_size: a number in (0, 1], "decreasing" for 2 / (t + 2), or "line_search".

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.
    """

    regularization: str = "entropy"
    weight: float = 1.0
    step_size: float | str = "line_search"

    def __post_init__(self) -> None:
        check_choice("regularization", self.regularization, REGULARIZATIONS)
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)):
            raise TypeError(f"regularization_weight must be a number, got {self.weight!r}")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"regularization_weight must be positive and finite, got {self.weight}")
        if isinstance(self.step_size, str):
            if self.step_size not in STEP_SIZES:
                raise ValueError(
                    f"step_size must be a number in (0, 1], 'decreasing' or 'line_search', got {self.step_size!r}"
                )
        elif isinstance(self.step_size, bool) or not isinstance(self.step_size, (int, float)):
            raise TypeError(f"step_size must be a number, 'decreasing' or 'line_search', got {self.step_size!r}")
        elif not 0 < self.step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], got {self.step_size}")


def parse_inference(inference: str, damping: float, frank_wolfe: FrankWolfeSettings) -> str:
    """The kind of inference, where no setting is made that only another kind reads."""
    check_choice("inference", inference, INFERENCES)
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be in [0, 1), got {damping}")
    if inference != "mean_field" and damping:
        raise ValueError(f"damping is for inference='mean_field', got {damping} with {inference!r}")
    if inference != "frank_wolfe" and frank_wolfe != FrankWolfeSettings():
        raise ValueError(
            "regularization, regularization_weight and step_size are for inference='frank_wolfe', got "
            f"{frank_wolfe.regularization!r}, {frank_wolfe.weight} and {frank_wolfe.step_size!r} with {inference!r}"
        )
    return inference
