"""DeepLab for PyTorch: v1, v2, v3 and v3+ on the operators of densecrf_cuda, with the dense CRF as a layer."""

from .counting import count
from .crf import WithCRF, with_crf
from .deeplabv1 import deeplabv1
from .deeplabv2 import deeplabv2
from .deeplabv3 import deeplabv3
from .deeplabv3plus import deeplabv3plus
from .groups import parameter_groups
from .loss import output_loss
from .multi_scale import MultiScale
from .normalization import NORMALIZATIONS, Normalization
from .registry import create_model, list_models
from .segmentation import DeepLab
from .xception import xception

__all__ = [
    "NORMALIZATIONS",
    "DeepLab",
    "MultiScale",
    "Normalization",
    "WithCRF",
    "count",
    "create_model",
    "deeplabv1",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3plus",
    "list_models",
    "output_loss",
    "parameter_groups",
    "with_crf",
    "xception",
]
