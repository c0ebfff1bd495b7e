"""The dense CRF inside a network: it refines the network's scores by the image, in training too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densecrf_cuda import CRFRNN, DenseCRF
from densecrf_cuda.bandwidths import Numbers
from densecrf_cuda.settings import check_choice, whole_number
from densecrf_cuda.terms import PairwiseTerm

from .normalization import Normalization, parse_normalization

__all__ = ["WithCRF", "with_crf"]

WHEN = ("both", "training", "evaluation")


class WithCRF(nn.Module):
    """A network and the CRF that refines its scores; `with_crf` makes it.

    Attributes:
        model: the network.
        crf: the CRF.
        scale: of the image that the CRF works on.
        when: "both", "training" or "evaluation".
        iterations: in training.
        eval_iterations: in evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        crf: DenseCRF | CRFRNN,
        normalization: Normalization,
        scale: float,
        when: str,
        iterations: tuple[int, int],
    ) -> None:
        super().__init__()
        self.model, self.crf = model, crf
        self.scale, self.when = scale, when
        self.iterations, self.eval_iterations = iterations
        self.normalization = normalization

    @property
    def refines(self) -> bool:
        """Whether the CRF runs in the present mode."""
        return self.when == "both" or self.when == ("training" if self.training else "evaluation")

    def forward(self, input: Tensor) -> Any:
        """Classify every pixel and refine.

        Args:
            input: [B, G, H, W], normalised for the network.

        Returns:
            log-probabilities [B, C, H, W], float32 at least; they can go wherever logits go. Where the network gives a
            dict, that dict, in which they are "out". In training always a dict, in which the network's own scores are
            "logits". Where the CRF does not run in this mode: what the network gives.

        Raises:
            ValueError: a dict without "out"; another number of channels than the normalization has; what the CRF
                refuses.
        """
        output = self.model(input)
        if not self.refines:
            return output
        if isinstance(output, Mapping) and "out" not in output:
            raise ValueError(f"model must give a tensor or a dict with 'out', got {', '.join(output)}")
        outputs = dict(output) if isinstance(output, Mapping) else {"out": output}
        logits = outputs["out"]
        refined = self.refine(logits, self.guide(input))
        if self.training:
            return {**outputs, "out": refined, "logits": logits}
        return {**outputs, "out": refined} if isinstance(output, Mapping) else refined

    def guide(self, input: Tensor) -> Tensor:
        """The image on 0 to 255, red first, that an input of the network was made of; [B, G, H, W], not clipped."""
        return self.normalization.denormalize(input)

    def refine(self, logits: Tensor, image: Tensor) -> Tensor:
        """The CRF alone.

        Args:
            logits: [B, C, H', W'] of any resolution.
            image: [B, G, H, W] on 0 to 255.

        Returns:
            log-probabilities [B, C, H, W].
        """
        full = tuple(image.shape[-2:])
        size = tuple(max(round(self.scale * side), 1) for side in full)
        # energies lose too much in half precision, log-probabilities as well
        logits = _resized(logits.to(torch.promote_types(logits.dtype, torch.float32)), size)
        # every pixel counts in the smaller image, and its noise averages out
        image = _resized(image, size, antialias=True)
        iterations = self.iterations if self.training else self.eval_iterations
        if isinstance(self.crf, CRFRNN):
            refined = self.crf(logits, image, iterations=iterations)
        else:
            unary = -logits.log_softmax(1)
            refined = self.crf(unary, image, iterations=iterations, output="log_probabilities")
        return refined if size == full else _resized(refined, full).log_softmax(1)

    def extra_repr(self) -> str:
        counts = f"iterations={self.iterations}, eval_iterations={self.eval_iterations}"
        return f"scale={self.scale}, when={self.when!r}, {counts}"


def with_crf(
    model: nn.Module,
    crf: DenseCRF | CRFRNN,
    *,
    scale: float = 1.0,
    normalization: str | Normalization | Sequence[Sequence[float]] = "imagenet",
    when: str = "both",
    iterations: int | None = None,
    eval_iterations: int | None = None,
) -> WithCRF:
    """Put a CRF behind a network, so that both are trained together.

    The unary is -log softmax of the network's logits; what `Bilateral` compares are the colours of the input, brought
    back to 0 to 255 whatever the normalisation of the network. Gradients reach the network through the unary and the
    CRF's parameters where it has some (`trainable=`).

    Args:
        model: from images [B, G, H, W] to logits [B, C, H', W'] of any resolution, or to a dict with them as "out".
        crf: becomes the submodule `crf`. Its bandwidths are in pixels of the input at any scale: the spacing of its
            kernels is set to 1 / scale of what it was.
        scale: of the sides of the image that the CRF works on, in (0, 1]; its result is enlarged bilinearly.
        normalization: of the network's input: "imagenet" (torchvision), "tf" (-1 to 1: Xception, MobileNet),
            "tf_resnet", "caffe", "unit" (0 to 1), "none" (0 to 255), a `Normalization`, or (mean, std) in units of 0
            to 255.
        when: the CRF runs in "training", in "evaluation" or in "both".
        iterations: of the CRF in training. None: 5, or those of a `CRFRNN`.
        eval_iterations: of the CRF in evaluation. None: 10, or those of a `CRFRNN`.

    Returns:
        a module whose submodules are `model` and `crf`.

    Raises:
        ValueError: a scale outside (0, 1], or another argument out of its range.
        TypeError: another CRF.

    Zheng et al., "Conditional random fields as recurrent neural networks", 2015, section 6.

    Example:
        >>> import deeplab
        >>> from densecrf_cuda import CRFRNN
        >>> network = deeplab.deeplabv1(num_classes=3)
        >>> model = deeplab.with_crf(network, CRFRNN(3), scale=0.5)
        >>> outputs = model(torch.zeros(1, 3, 33, 33))
        >>> sorted(outputs)
        ['logits', 'out']
        >>> labels = torch.zeros(1, 33, 33, dtype=torch.long)
        >>> deeplab.output_loss(outputs, labels, {"out": 1.0, "logits": 0.5}).backward()
        >>> model.eval()(torch.zeros(1, 3, 33, 33)).exp().sum(1).allclose(torch.ones(1, 33, 33))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    if not isinstance(crf, (DenseCRF, CRFRNN)):
        raise TypeError(f"crf must be a DenseCRF or a CRFRNN, got {type(crf).__name__}")
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], got {scale}")
    own = (crf.iterations, crf.eval_iterations) if isinstance(crf, CRFRNN) else (5, 10)
    counts = [
        default if given is None else whole_number(name, given, 0)
        for name, given, default in zip(("iterations", "eval_iterations"), (iterations, eval_iterations), own)
    ]
    check_choice("when", when, WHEN)
    parsed = parse_normalization(normalization)
    for term in crf.modules():
        if isinstance(term, PairwiseTerm):
            term.spacing = _divided(term.spacing, scale)
    return WithCRF(model, crf, parsed, float(scale), when, (counts[0], counts[1]))


def _divided(spacing: Numbers, scale: float) -> Numbers:
    return tuple(number / scale for number in spacing) if isinstance(spacing, tuple) else spacing / scale


def _resized(map_: Tensor, size: tuple[int, ...], *, antialias: bool = False) -> Tensor:
    if tuple(map_.shape[-2:]) == size:
        return map_
    return F.interpolate(map_, size, mode="bilinear", align_corners=False, antialias=antialias)
