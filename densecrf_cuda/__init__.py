"""Dense CRFs for PyTorch: the permutohedral lattice and mean field as operators, differentiable in everything."""

from ._library import HAS_EXTENSION
from ._version import __version__
from .crf import DenseCRF
from .dense import dense_attention_filter, dense_filter
from .lattice import Lattice, permutohedral_filter
from .potentials import Bilateral, Features, Gaussian
from .unary import unary_from_labels, unary_from_logits, unary_from_probabilities, unary_from_scribbles

__all__ = [
    "HAS_EXTENSION",
    "Bilateral",
    "DenseCRF",
    "Features",
    "Gaussian",
    "Lattice",
    "__version__",
    "dense_attention_filter",
    "dense_filter",
    "permutohedral_filter",
    "unary_from_labels",
    "unary_from_logits",
    "unary_from_probabilities",
    "unary_from_scribbles",
]
