"""Unary energies U = -log p from probabilities, logits, labels and scribbles; tensors and numpy arrays alike.

The axes of a result are [..., C, *spatial]; `spatial_dims` says how many are spatial, 2 unless told otherwise.
"""

import math

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


def unary_from_probabilities(probabilities: Array, clip: float = 1e-5) -> Tensor:
    """Energies of given probabilities: U = -log(max(p, clip)).

    Args:
        probabilities: any shape, floating point, in [0, 1]; [..., C, *spatial] where it goes on to the CRF.
        clip: the least probability, in [0, 1); with 0 a label of probability 0 is forbidden (energy +inf).

    Returns:
        the shape and dtype of probabilities, differentiable.

    Raises:
        ValueError: NaN or a probability outside [0, 1]; clip outside [0, 1).
        TypeError: probabilities that are not floating point.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, eq. 1.

    Example:
        >>> unary_from_probabilities(torch.tensor([1.0, 0.5, 0.0]))
        tensor([-0.0000,  0.6931, 11.5129])
    """
    p = _floating(probabilities, "probabilities")
    if not 0 <= clip < 1:
        raise ValueError(f"clip must be in [0, 1), got {clip}")
    if p.device.type == "cpu":  # a GPU is not asked: NaN stays NaN
        margin = 4 * torch.finfo(p.dtype).eps  # a softmax may round to a little more than 1
        bad = ~((p >= -margin) & (p <= 1 + margin))
        if bad.any():
            raise ValueError(f"probabilities must be in [0, 1], got {p[bad][0].item()}")
    # In float32 at least: 1e-5 is a subnormal number in half.
    exact = p.to(torch.promote_types(p.dtype, torch.float32))
    return -exact.clamp(clip, 1).log().to(p.dtype)


def unary_from_logits(logits: Array, *, spatial_dims: int = 2) -> Tensor:
    """Energies of the softmax of a network's scores: U = -log softmax(logits), over the channels.

    Args:
        logits: [..., C, *spatial], floating point; -inf forbids a label.
        spatial_dims: how many axes are spatial.

    Returns:
        the shape and dtype of logits, differentiable.

    Raises:
        ValueError: no channel axis; NaN or +inf.
        TypeError: logits that are not floating point.

    Zheng et al., "Conditional random fields as recurrent neural networks", 2015, section 4.1 (there U = -logits: the
    same distribution).

    Example:
        >>> unary_from_logits(torch.zeros(2, 1, 1)).flatten()
        tensor([0.6931, 0.6931])
    """
    x = _floating(logits, "logits")
    _check_spatial_dims(spatial_dims)
    if x.dim() < spatial_dims + 1:
        raise ValueError(f"logits must be [..., C, *spatial] with {spatial_dims} spatial axes, got {tuple(x.shape)}")
    if x.device.type == "cpu":
        bad = x.isnan() | x.isposinf()
        if bad.any():
            raise ValueError(f"logits must be neither NaN nor +inf, got {x[bad][0].item()}")
    return -x.log_softmax(-spatial_dims - 1)


def unary_from_labels(
    labels: Array, num_labels: int, confidence: float, unsure_label: int | None = None, *, spatial_dims: int = 2
) -> Tensor:
    """Energies of a labelling that is right with a given probability: U = -log g at the label, else -log((1-g)/(C-1)).

    Args:
        labels: [..., *spatial] integers in 0..C-1, or unsure_label.
        num_labels: C >= 1.
        confidence: g in (0, 1], the probability that a label is right; 1 forbids every other label.
        unsure_label: pixels of this label, outside 0..C-1, get the energy log C for every label.
        spatial_dims: how many axes of labels are spatial.

    Returns:
        [..., C, *spatial] float32.

    Raises:
        ValueError: a label outside 0..C-1; num_labels, confidence or unsure_label out of range.
        TypeError: labels that are not integers.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, eq. 1.

    Example:
        >>> unary_from_labels(torch.tensor([[0, 255]]), 2, 0.9, unsure_label=255)
        tensor([[[0.1054, 0.6931]],
        <BLANKLINE>
                [[2.3026, 0.6931]]])
    """
    x = _integers(labels)
    _check_spatial_dims(spatial_dims)
    if num_labels < 1:
        raise ValueError(f"num_labels must be at least 1, got {num_labels}")
    if not 0 < confidence <= 1:
        raise ValueError(f"confidence must be in (0, 1], got {confidence}")
    if unsure_label is not None and 0 <= unsure_label < num_labels:
        raise ValueError(f"unsure_label must be outside 0..{num_labels - 1}, the labels themselves, got {unsure_label}")
    if x.dim() < spatial_dims:
        raise ValueError(f"labels must have {spatial_dims} spatial axes, got shape {tuple(x.shape)}")

    unsure = torch.zeros_like(x, dtype=torch.bool) if unsure_label is None else x == unsure_label
    valid = ((x >= 0) & (x < num_labels)) | unsure
    if x.device.type == "cpu" and not valid.all():
        allowed = f"0..{num_labels - 1}" + ("" if unsure_label is None else f" or {unsure_label}")
        raise ValueError(f"labels must be in {allowed}, got {x[~valid][0].item()}")

    right = -math.log(confidence)
    wrong = -math.log((1 - confidence) / (num_labels - 1)) if confidence < 1 and num_labels > 1 else math.inf
    channel = torch.arange(num_labels, device=x.device).reshape(-1, *[1] * spatial_dims)
    axis = -spatial_dims - 1
    energy = torch.where(x.unsqueeze(axis) == channel, right, wrong)
    energy = torch.where(unsure.unsqueeze(axis), math.log(num_labels), energy)
    # A GPU is not asked whether a label is out of range: its pixel turns into NaN there.
    return torch.where(valid.unsqueeze(axis), energy, math.nan).to(torch.float32)


def unary_from_scribbles(labels: Array, num_labels: int, confidence: float, *, spatial_dims: int = 2) -> Tensor:
    """Energies of scribbles: as `unary_from_labels` for labels 1..C, which become channels 0..C-1; 0 is unlabelled.

    U = -log g at the label of a scribble, -log((1-g)/(C-1)) at its other labels, log C where there is no scribble.

    Args:
        labels: [..., *spatial] integers in 0..C; 0 where nothing is drawn.
        num_labels: C >= 1, without the unlabelled.
        confidence: g in (0, 1], the probability that a scribble is right.
        spatial_dims: how many axes of labels are spatial.

    Returns:
        [..., C, *spatial] float32.

    Raises:
        ValueError: a label outside 0..C; num_labels or confidence out of range.
        TypeError: labels that are not integers.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, eq. 1.

    Example:
        >>> unary_from_scribbles(np.array([[0, 2]]), 2, 0.9)
        tensor([[[0.6931, 2.3026]],
        <BLANKLINE>
                [[0.6931, 0.1054]]])
    """
    x = _integers(labels)
    if x.device.type == "cpu":
        bad = (x < 0) | (x > num_labels)
        if bad.any():
            raise ValueError(f"labels must be in 0..{num_labels} (0: unlabelled), got {x[bad][0].item()}")
    return unary_from_labels(x - 1, num_labels, confidence, unsure_label=-1, spatial_dims=spatial_dims)


def _floating(array: Array, name: str) -> Tensor:
    tensor = _tensor(array, name)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    return tensor


def _integers(labels: Array) -> Tensor:
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "bu":
        labels = labels.astype(np.int64)  # torch computes little with unsigned integers wider than a byte
    tensor = _tensor(labels, "labels")
    if tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"labels must be integers, got {tensor.dtype}")
    return tensor.long()


def _tensor(array: Array, name: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        return torch.from_numpy(array.copy(order="C"))  # a copy: torch takes no read-only or reversed arrays
    raise TypeError(f"{name} must be a tensor or a numpy array, got {type(array).__name__}")


def _check_spatial_dims(spatial_dims: int) -> None:
    if spatial_dims < 1:
        raise ValueError(f"spatial_dims must be at least 1, got {spatial_dims}")
