"""The kinds of inference by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .convergent import ConvergentMeanField
from .frank_wolfe import FrankWolfe
from .inference import MeanField
from .iteration import Method, Term
from .settings import FrankWolfeSettings

__all__ = ["make_method"]


def make_method(
    inference: str, start: Tensor, terms: Sequence[Term], damping: float, frank_wolfe: FrankWolfeSettings
) -> Method:
    """One of the kinds, for -U [B, N, C] and the pairwise terms; `parse_inference` has seen that its settings fit."""
    if inference == "convergent":
        return ConvergentMeanField(start, terms)
    if inference == "frank_wolfe":
        return FrankWolfe(start, terms, frank_wolfe)
    return MeanField(start, terms, damping)
