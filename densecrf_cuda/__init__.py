"""Dense CRFs and atrous separable convolutions for PyTorch, as operators that are differentiable in everything."""

from ._library import HAS_EXTENSION
from ._version import __version__
from ._waiting import no_sync
from .crf import DenseCRF
from .crf_rnn import CRFRNN
from .dense import dense_attention_filter, dense_filter
from .fit import FitEpoch, FitResult, evaluate_crf, fit_crf
from .fuse import fuse
from .graph import GraphedCRF
from .large import memory_plans
from .lattice import Lattice, permutohedral_filter
from .lattice_cache import clear_lattice_cache
from .loss import CRFLoss, crf_loss
from .memory import MemoryPlan
from .potentials import Bilateral, Features, Gaussian
from .separable_conv import AtrousSeparableConv2d
from .separable_conv_ops import atrous_separable_conv2d, separable_conv_decompositions
from .steps import InferenceStep
from .unary import unary_from_labels, unary_from_logits, unary_from_probabilities, unary_from_scribbles

__all__ = [
    "CRFRNN",
    "HAS_EXTENSION",
    "AtrousSeparableConv2d",
    "Bilateral",
    "CRFLoss",
    "DenseCRF",
    "Features",
    "FitEpoch",
    "FitResult",
    "Gaussian",
    "GraphedCRF",
    "InferenceStep",
    "Lattice",
    "MemoryPlan",
    "__version__",
    "atrous_separable_conv2d",
    "clear_lattice_cache",
    "crf_loss",
    "dense_attention_filter",
    "dense_filter",
    "evaluate_crf",
    "fit_crf",
    "fuse",
    "memory_plans",
    "no_sync",
    "permutohedral_filter",
    "separable_conv_decompositions",
    "unary_from_labels",
    "unary_from_logits",
    "unary_from_probabilities",
    "unary_from_scribbles",
]
