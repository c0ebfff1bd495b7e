"""CRFRNN: mean field as a recurrent layer, with the parameters of the CRF-as-RNN paper and of its trained models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._faults import Report, watch
from ._status import DeviceStatus
from .bandwidths import Bandwidth, moved, parse_bandwidth
from .compatibility import parse_compat
from .crf_rnn_weights import learned_matrices
from .inference import fused_mean_field, unrolled_mean_field, wants_gradients
from .inputs import Problem, read_problem
from .potentials import Bilateral, Gaussian, Potential
from .settings import check_choice, parse_trainable, whole_number
from .terms import PairwiseTerm

__all__ = ["CRFRNN"]


class CRFRNN(nn.Module):
    """The CRF-RNN layer: from the scores of a network and its input image to log-probabilities of refined labels.

    With x_0 the scores, K_s and K_b the two kernels divided by their row sums, W_s and W_b weights and M the
    compatibility matrix, none of them made symmetric, every iteration computes

        q = softmax(x_t),    x_{t+1} = x_0 - M (W_s K_s q + W_b K_b q)

    and log_softmax(x_T) is the output: the same distribution as the scores x_T that the paper's layer returns, finite
    where the probabilities underflow. At first M = -1 and W = weight · 1, so that neighbours of a label attract it.

    Args:
        num_classes: C, number of labels, ≥ 2: with the background, if there is one.
        alpha: θ_α, standard deviation of the bilateral kernel in pixels; one number, or one per axis in the order x, y.
        beta: θ_β, standard deviation of the bilateral kernel in units of the image (0 to 255); one, or one per channel.
        gamma: θ_γ, standard deviation of the spatial kernel in pixels.
        bilateral_weight: at the start; a number, or one per class.
        spatial_weight: the same for the spatial kernel.
        iterations: T while the module is in training mode.
        eval_iterations: T in evaluation mode.
        weights: "matrix" [C, C], as in the published layers, or "diagonal", one per class, as in the paper.
        trainable: names of what is a parameter: "weights", "compatibility", "bandwidths" (as logarithms).
        filter: "lattice" (linear in N) or "dense" (exact, quadratic in N).
        checkpoint: recompute each iteration in the backward pass instead of keeping it.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.

    Zheng et al., "Conditional random fields as recurrent neural networks", 2015, algorithm 1 and section 4.

    Example:
        >>> layer = CRFRNN(21, iterations=2)
        >>> logits, image = torch.randn(2, 21, 16, 16), 255 * torch.rand(2, 3, 16, 16)
        >>> loss = torch.nn.functional.nll_loss(layer(logits, image), torch.zeros(2, 16, 16, dtype=torch.long))
        >>> loss.backward()
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: Bandwidth = 160.0,
        beta: Bandwidth = 3.0,
        gamma: Bandwidth = 3.0,
        bilateral_weight: float | Sequence[float] | Tensor = 5.0,
        spatial_weight: float | Sequence[float] | Tensor = 3.0,
        iterations: int = 5,
        eval_iterations: int = 10,
        weights: str = "matrix",
        trainable: bool | Iterable[str] = ("weights", "compatibility"),
        filter: str = "lattice",
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = whole_number("num_classes", num_classes, 1)
        if num_classes == 1:
            raise ValueError(
                "num_classes must be at least 2, got 1: a softmax over one label is 1 everywhere; give the background "
                "a channel of its own, with score 0"
            )
        self.iterations = whole_number("iterations", iterations, 0)
        self.eval_iterations = whole_number("eval_iterations", eval_iterations, 0)
        check_choice("weights", weights, ("matrix", "diagonal"))
        self.filter = check_choice("filter", filter, ("lattice", "dense"))
        self.checkpoint = checkpoint
        names = parse_trainable(trainable)
        form = (num_classes, weights == "matrix", names)
        gamma, alpha, beta = (parse_bandwidth(*pair) for pair in (("gamma", gamma), ("alpha", alpha), ("beta", beta)))
        self.spatial = _Message(Gaussian(gamma), _weights("spatial_weight", spatial_weight, num_classes), *form)
        self.bilateral = _Message(
            Bilateral(alpha, beta), _weights("bilateral_weight", bilateral_weight, num_classes), *form
        )
        compatibility = -torch.eye(num_classes, dtype=torch.float64)
        if "compatibility" in names:
            self.compatibility = nn.Parameter(compatibility.to(torch.get_default_dtype()))
        else:
            self.register_buffer("compatibility", compatibility)
        self._status = DeviceStatus()

    def forward(self, logits: Tensor, image: Tensor, *, iterations: int | None = None) -> Tensor:
        """Refine the scores of a network.

        Args:
            logits: [B, C, H, W] or [C, H, W] floating, any scale that a softmax makes probabilities of; -infinity
                forbids a label. Half and bfloat16 are computed in float32. Volumes are [B, C, D, H, W].
            image: [B, G, H, W] or [G, H, W], uint8 or floating, in the units of `beta`.
            iterations: overrides those of the module.

        Returns:
            log-probabilities in the shape and dtype of logits. Differentiable with respect to logits, image and
            parameters.

        Raises:
            ValueError: shapes, batches or devices that do not fit; NaN or +infinity; a bandwidth too small for the
                image. What only the data shows a GPU finds out later: the result is then NaN, and the error is raised
                by the next call once it is known, or by `check`.
            TypeError: integer logits, an image that is neither uint8 nor floating.
        """
        self._status.raise_if_known()
        if iterations is None:
            iterations = self.iterations if self.training else self.eval_iterations
        iterations = whole_number("iterations", iterations, 0)
        problem = read_problem(logits, image, self.num_classes, self._messages(), None, name="logits")
        _check_logits(logits)
        problem.unary = -problem.unary
        with problem.full_precision():
            result, reports = self._infer(problem, iterations)
        watch(self._status, reports)
        return result.reshape(logits.shape)

    def check(self) -> None:
        """Wait for the device and raise what it found wrong in earlier calls; on the CPU they have raised it.

        Raises:
            ValueError: as `forward`.

        Example:
            >>> layer = CRFRNN(2)
            >>> log_q = layer(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4))
            >>> layer.check()
        """
        self._status.check()

    def load_crfasrnn_pytorch(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what a layer of crfasrnn_pytorch has learned; it adds the pairwise term, so its M is turned.

        Args:
            state_dict: of the layer or of a network that has one: entries whose names end in `spatial_ker_weights`,
                `bilateral_ker_weights` and `compatibility_matrix`, tensors or arrays [C, C]. Bandwidths are not in it:
                they are those that this module was made with.

        Raises:
            ValueError: an entry is missing, ambiguous, of another shape, or not finite; a matrix that is not diagonal
                where this module has weights="diagonal".

        Example:
            >>> eye = torch.eye(3)
            >>> peer = {"spatial_ker_weights": 3 * eye, "bilateral_ker_weights": 5 * eye, "compatibility_matrix": eye}
            >>> layer = CRFRNN(3)
            >>> layer.load_crfasrnn_pytorch(peer)
            >>> layer.compatibility.diagonal().tolist()
            [-1.0, -1.0, -1.0]
        """
        spatial, bilateral, compatibility = learned_matrices(state_dict)
        self._load(spatial, bilateral, -compatibility)

    def load_crfasrnn_keras(self, weights: Mapping[str, Any] | Sequence[Any]) -> None:
        """Take over what a layer of crfasrnn_keras has learned; it subtracts the pairwise term, as here.

        Args:
            weights: what its `get_weights()` returns, three arrays [C, C] in the order spatial kernel weights,
                bilateral kernel weights, compatibility matrix; or a mapping from their names.

        Raises:
            ValueError: as `load_crfasrnn_pytorch`.
        """
        self._load(*learned_matrices(weights))

    @classmethod
    def from_crfasrnn_pytorch(cls, state_dict: Mapping[str, Any], **settings: Any) -> CRFRNN:
        """A layer with what one of crfasrnn_pytorch has learned; see `load_crfasrnn_pytorch`.

        Args:
            state_dict: as there.
            settings: of the new layer, for instance the bandwidths if they were not 160, 3 and 3.

        Raises:
            ValueError: as there.
        """
        layer = cls(len(learned_matrices(state_dict)[0]), **settings)
        layer.load_crfasrnn_pytorch(state_dict)
        return layer

    @classmethod
    def from_crfasrnn_keras(cls, weights: Mapping[str, Any] | Sequence[Any], **settings: Any) -> CRFRNN:
        """A layer with what one of crfasrnn_keras has learned; see `load_crfasrnn_keras`.

        Args:
            weights: as there.
            settings: of the new layer.

        Raises:
            ValueError: as there.

        Example:
            >>> layer = CRFRNN.from_crfasrnn_keras([torch.eye(4), torch.eye(4), -torch.eye(4)], alpha=80)
            >>> layer.num_classes
            4
        """
        layer = cls(len(learned_matrices(weights)[0]), **settings)
        layer.load_crfasrnn_keras(weights)
        return layer

    def _load(self, spatial: Tensor, bilateral: Tensor, compatibility: Tensor) -> None:
        loaded = []
        for target, matrix in zip(self._learned(), (spatial, bilateral, compatibility)):
            if len(matrix) != self.num_classes:
                raise ValueError(
                    f"the matrices must be [{self.num_classes}, {self.num_classes}] for {self.num_classes} classes, "
                    f"got {tuple(matrix.shape)}"
                )
            if target.dim() == 1 and not torch.equal(matrix, matrix.diagonal().diag()):
                raise ValueError("weights='diagonal' takes diagonal kernel weights only, got a full matrix")
            loaded.append(matrix.diagonal() if target.dim() == 1 else matrix)
        with torch.no_grad():
            for target, values in zip(self._learned(), loaded):
                target.copy_(values)

    def _learned(self) -> list[Tensor]:
        return [self.spatial.weight, self.bilateral.weight, self.compatibility]

    def _messages(self) -> list[_Message]:
        return [self.spatial, self.bilateral]

    def _infer(self, problem: Problem, iterations: int) -> tuple[Tensor, list[Report]]:
        compatibility = moved(self.compatibility, problem.dtype, problem.device)
        lattice = self.filter == "lattice"
        terms: list[Any] = [m.lattice_term(problem) if lattice else m.dense_term(problem) for m in self._messages()]
        for term in terms:
            term.compat = compatibility @ term.compat
        reports = [report for term in terms for report in term.reports]
        options: dict[str, Any] = {"output": "log_probabilities", "report": reports.append}
        if lattice and not wants_gradients(problem.unary, terms):
            result = fused_mean_field(problem.unary, terms, problem.grid, iterations, **options)
        else:
            checkpoint = self.checkpoint and torch.is_grad_enabled()
            result = unrolled_mean_field(problem.unary, terms, iterations, checkpoint=checkpoint, **options)
        return result, reports

    def extra_repr(self) -> str:
        counts = f"iterations={self.iterations}, eval_iterations={self.eval_iterations}"
        return f"num_classes={self.num_classes}, {counts}, filter={self.filter!r}"


class _Message(PairwiseTerm):
    """A kernel divided by its row sums, then mixed by weights of its own: W [C, C], or its diagonal [C]."""

    def __init__(
        self, kernel: Potential, weight: Tensor, num_classes: int, matrix: bool, trainable: tuple[str, ...]
    ) -> None:
        super().__init__(kernel, num_classes, "after", tuple(name for name in trainable if name == "bandwidths"))
        del self.weight, self.compat
        self._hold("weight", weight.diag() if matrix else weight, "weights" in trainable)

    def energy_scale(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """W [C, C], as it is: without the compatibility matrix."""
        weight = moved(self.weight, dtype, device)
        return weight if weight.dim() == 2 else weight.diag()


def _weights(name: str, weight: float | Sequence[float] | Tensor, num_classes: int) -> Tensor:
    """A weight per class, [C]."""
    try:
        tensor = parse_compat(weight, num_classes)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("compat", name, 1)) from None
    if tensor.dim() == 2:
        raise ValueError(f"{name} must be a number or {num_classes}, one per class, got shape {tuple(tensor.shape)}")
    return tensor.expand(num_classes).clone()


def _check_logits(logits: Tensor) -> None:
    """Refuse scores that no distribution follows from; a GPU is not asked, it reports."""
    if torch.compiler.is_compiling() or logits.device.type != "cpu":
        return
    bad = logits.isnan() | logits.isposinf()
    if bad.any():
        raise ValueError(f"logits must be neither NaN nor +infinity, got {logits[bad][0].item()}")
