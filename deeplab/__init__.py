"""DeepLab for PyTorch: v1, v2, v3 and v3+ on the operators of densecrf_cuda."""

from .deeplabv3 import deeplabv3
from .deeplabv3plus import deeplabv3plus
from .groups import parameter_groups
from .segmentation import DeepLab
from .xception import xception

__all__ = [
    "DeepLab",
    "deeplabv3",
    "deeplabv3plus",
    "parameter_groups",
    "xception",
]
