"""Plain PyTorch twins of every operator in schemas.def: same names, arguments, results and errors.

They are what the compiled operators are tested against, and what runs where no compiled library exists. Everything
is differentiable by plain autograd with respect to values, scales and (inside a simplex) features.

- `geometry`: features, the simplex that encloses a point, barycentric weights (Adams et al. 2010, section 3)
- `build`: `lattice_build`, from features to vertices, tile lists and blur neighbours
- `filter`: `lattice_filter`, its normalisation, and the derivative with respect to features
- `rows`: the ends of the filter by themselves, and the keys of vertices
- `inference`: `mean_field` (Krähenbühl & Koltun 2011, algorithm 1); `checks`: what it refuses
- `separable_conv`: `atrous_separable_conv2d` and its parts; `separable_checks`: what they refuse
"""

from .build import LatticeTensors, lattice_build
from .filter import _lattice_feature_grad, lattice_filter, normalization_scale
from .geometry import lattice_features
from .inference import _mean_field_unrolled, _mean_field_unrolled_backward, mean_field
from .rows import _lattice_keys, _lattice_slice, _lattice_splat
from .separable_conv import (
    _depthwise_conv2d,
    _depthwise_conv2d_input_gradient,
    _depthwise_conv2d_moments,
    _depthwise_conv2d_weight_gradient,
    atrous_separable_conv2d,
)

__all__ = [
    "LatticeTensors",
    "_depthwise_conv2d",
    "_depthwise_conv2d_input_gradient",
    "_depthwise_conv2d_moments",
    "_depthwise_conv2d_weight_gradient",
    "_lattice_feature_grad",
    "_lattice_keys",
    "_lattice_slice",
    "_lattice_splat",
    "_mean_field_unrolled",
    "_mean_field_unrolled_backward",
    "atrous_separable_conv2d",
    "lattice_build",
    "lattice_features",
    "lattice_filter",
    "mean_field",
    "normalization_scale",
]
