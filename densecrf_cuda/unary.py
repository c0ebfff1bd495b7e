"""Unary energies U = -log p from probabilities, logits, labels and scribbles; tensors and numpy arrays alike.

The axes of a result are [..., C, *spatial]; `spatial_dims` says how many are spatial, 2 unless told otherwise.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .bandwidths import filled
from .settings import integer, whole_number

Array = Tensor | np.ndarray
Confidence = float | Sequence[float] | Array


def unary_from_probabilities(
    probabilities: Array, clip: float = 1e-5, *, scale: float = 1.0, spatial_dims: int = 2
) -> Tensor:
    """Energies of given probabilities: U = -log(max(scale · p + (1 - scale) / C, clip)).

    Args:
        probabilities: any shape, floating point, in [0, 1]; [..., C, *spatial] where it goes on to the CRF, and for a
            scale other than 1.
        clip: the least probability, in [0, 1); with 0 a label of probability 0 is forbidden (energy +inf).
        scale: how far to believe them, in (0, 1], where a network is too sure of itself; the rest is 1 / C.
        spatial_dims: how many axes are spatial, which a scale other than 1 needs to find C.

    Returns:
        the shape and dtype of probabilities, differentiable.

    Raises:
        ValueError: NaN or a probability outside [0, 1]; clip outside [0, 1); scale outside (0, 1]; no channel axis.
        TypeError: probabilities that are not floating point.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, eq. 1.

    Example:
        >>> unary_from_probabilities(torch.tensor([1.0, 0.5, 0.0]))
        tensor([-0.0000,  0.6931, 11.5129])
    """
    p = _floating(probabilities, "probabilities")
    if not 0 <= clip < 1:
        raise ValueError(f"clip must be in [0, 1), got {clip}")
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], got {scale}")
    if p.device.type == "cpu":  # a GPU is not asked: NaN stays NaN
        margin = 4 * torch.finfo(p.dtype).eps  # a softmax may round to a little more than 1
        bad = ~((p >= -margin) & (p <= 1 + margin))
        if bad.any():
            raise ValueError(f"probabilities must be in [0, 1], got {p[bad][0].item()}")
    # In float32 at least: 1e-5 is a subnormal number in half.
    exact = p.to(torch.promote_types(p.dtype, torch.float32))
    if scale != 1:
        exact = scale * exact + (1 - scale) / p.shape[_channel_axis("probabilities", p, spatial_dims)]
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
    axis = _channel_axis("logits", x, spatial_dims)
    if x.device.type == "cpu":
        bad = x.isnan() | x.isposinf()
        if bad.any():
            raise ValueError(f"logits must be neither NaN nor +inf, got {x[bad][0].item()}")
    return -x.log_softmax(axis)


def unary_from_labels(
    labels: Array,
    num_labels: int,
    confidence: Confidence,
    unsure_label: int | Sequence[int] | None = None,
    *,
    spatial_dims: int = 2,
) -> Tensor:
    """Energies of a labelling that is right with a given probability: U = -log g at the label, else -log((1-g)/(C-1)).

    Args:
        labels: [..., *spatial] integers in 0..C-1, or unsure_label.
        num_labels: C >= 1.
        confidence: g in (0, 1], the probability that a label is right: a number; a list or tuple of C numbers, one for
            each label that may be given; or a tensor or array [..., *spatial] or [*spatial], one for each pixel. 1
            forbids every other label, 1/C says nothing.
        unsure_label: pixels of this label, or of these, outside 0..C-1, get the energy log C for every label.
        spatial_dims: how many axes of labels are spatial.

    Returns:
        [..., C, *spatial] float32, differentiable with respect to a confidence that is a tensor.

    Raises:
        ValueError: a label outside 0..C-1; num_labels, confidence or unsure_label out of range or of another shape.
        TypeError: labels that are not integers; arguments of other types.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, eq. 1.

    Example:
        >>> unary_from_labels(torch.tensor([[0, 255]]), 2, 0.9, unsure_label=255)
        tensor([[[0.1054, 0.6931]],
        <BLANKLINE>
                [[2.3026, 0.6931]]])
    """
    x = _integers(labels)
    num_labels = whole_number("num_labels", num_labels, 1)
    axis = -whole_number("spatial_dims", spatial_dims, 1) - 1
    if x.dim() < spatial_dims:
        raise ValueError(f"labels must have {spatial_dims} spatial axes, got shape {tuple(x.shape)}")
    unsure_labels = _unsure(unsure_label, num_labels)
    unsure = torch.zeros_like(x, dtype=torch.bool)
    for value in unsure_labels:
        unsure = unsure | (x == value)
    valid = ((x >= 0) & (x < num_labels)) | unsure
    if x.device.type == "cpu" and not valid.all():
        allowed = " or ".join([f"0..{num_labels - 1}", *map(str, unsure_labels)])
        raise ValueError(f"labels must be in {allowed}, got {x[~valid][0].item()}")

    g = _confidence(confidence, x, num_labels, spatial_dims)
    right = -g.log().to(torch.float32)
    # a single label leaves none that could be the right one instead
    wrong = -((1 - g) / (num_labels - 1)).log().to(torch.float32) if num_labels > 1 else right
    channel = torch.arange(num_labels, device=x.device).reshape(-1, *[1] * spatial_dims)
    energy = torch.where(x.unsqueeze(axis) == channel, right.unsqueeze(axis), wrong.unsqueeze(axis))
    energy = torch.where(unsure.unsqueeze(axis), math.log(num_labels), energy)
    # A GPU is not asked whether a label is out of range: its pixel turns into NaN there.
    return torch.where(valid.unsqueeze(axis), energy, math.nan)


def unary_from_scribbles(labels: Array, num_labels: int, confidence: Confidence, *, spatial_dims: int = 2) -> Tensor:
    """Energies of scribbles: as `unary_from_labels` for labels 1..C, which become channels 0..C-1; 0 is unlabelled.

    U = -log g at the label of a scribble, -log((1-g)/(C-1)) at its other labels, log C where there is no scribble.

    Args:
        labels: [..., *spatial] integers in 0..C; 0 where nothing is drawn.
        num_labels: C >= 1, without the unlabelled.
        confidence: g in (0, 1], the probability that a scribble is right, as for `unary_from_labels`: a list or tuple
            has one number for each of the labels 1..C.
        spatial_dims: how many axes of labels are spatial.

    Returns:
        [..., C, *spatial] float32, differentiable with respect to a confidence that is a tensor.

    Raises:
        ValueError: a label outside 0..C; num_labels or confidence out of range or of another shape.
        TypeError: labels that are not integers; arguments of other types.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, eq. 1.

    Example:
        >>> unary_from_scribbles(np.array([[0, 2]]), 2, 0.9)
        tensor([[[0.6931, 2.3026]],
        <BLANKLINE>
                [[0.6931, 0.1054]]])
    """
    x = _integers(labels)
    num_labels = whole_number("num_labels", num_labels, 1)
    if x.device.type == "cpu":
        bad = (x < 0) | (x > num_labels)
        if bad.any():
            raise ValueError(f"labels must be in 0..{num_labels} (0: unlabelled), got {x[bad][0].item()}")
    return unary_from_labels(x - 1, num_labels, confidence, unsure_label=-1, spatial_dims=spatial_dims)


def _confidence(confidence: Confidence, labels: Tensor, num_labels: int, spatial_dims: int) -> Tensor:
    """The confidence in each label, of a shape that broadcasts with labels, in double unless it is a tensor."""
    if isinstance(confidence, (Tensor, np.ndarray)):
        g = _floating(confidence, "confidence")
        if g.device != labels.device:
            raise ValueError(f"confidence must be on the device of labels, {labels.device}, got {g.device}")
        if g.dim() and tuple(g.shape) not in (tuple(labels.shape), tuple(labels.shape[-spatial_dims:])):
            raise ValueError(
                f"confidence of each pixel must have the shape of labels, {tuple(labels.shape)}, got {tuple(g.shape)}; "
                "that of each label is a list"
            )
        g = g.to(torch.promote_types(g.dtype, torch.float32)).expand(labels.shape)
        bad = ~((g > 0) & (g <= 1))
        if g.device.type == "cpu" and bad.any():
            raise ValueError(f"confidence must be in (0, 1], got {g[bad][0].item()}")
        return g.masked_fill(bad, math.nan)  # a GPU is not asked
    try:
        numbers = [float(g) for g in confidence] if isinstance(confidence, Sequence) else [float(confidence)]
    except (TypeError, ValueError) as error:
        raise TypeError(f"confidence must be a number, numbers or a tensor, got {confidence!r}") from error
    if isinstance(confidence, Sequence) and len(numbers) != num_labels:
        raise ValueError(f"confidence of each label must be {num_labels} numbers, got {len(numbers)}")
    for number in numbers:
        if not 0 < number <= 1:
            raise ValueError(f"confidence must be in (0, 1], got {number}")
    each = filled(tuple(numbers), torch.float64, labels.device)
    return each[labels.clamp(0, num_labels - 1)] if isinstance(confidence, Sequence) else each.expand(labels.shape)


def _unsure(unsure_label: int | Sequence[int] | None, num_labels: int) -> list[int]:
    if unsure_label is None:
        return []
    several = unsure_label if isinstance(unsure_label, Sequence) else [unsure_label]
    values = [integer("unsure_label", value) for value in several]
    for value in values:
        if 0 <= value < num_labels:
            raise ValueError(f"unsure_label must be outside 0..{num_labels - 1}, the labels themselves, got {value}")
    return values


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


def _channel_axis(name: str, tensor: Tensor, spatial_dims: int) -> int:
    whole_number("spatial_dims", spatial_dims, 1)
    if tensor.dim() < spatial_dims + 1:
        raise ValueError(
            f"{name} must be [..., C, *spatial] with {spatial_dims} spatial axes, got {tuple(tensor.shape)}"
        )
    return -spatial_dims - 1
