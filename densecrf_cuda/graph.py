"""A whole inference as one CUDA graph: launched at once, it takes the time of its kernels and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._faults import Report, watch
from ._status import DeviceStatus
from .lattice_cache import hold

if TYPE_CHECKING:
    from .crf import DenseCRF

__all__ = ["GraphedCRF"]

# The first run allocates, fills the cache of lattices and lets libraries set themselves up; torch advises three.
WARM_UP_RUNS = 3


class GraphedCRF:
    """A `DenseCRF` captured for inputs of given shapes and dtypes; `DenseCRF.compile_graph` makes it.

    A call copies its inputs to where the graph reads them, builds the lattices of the image and infers, all on the
    current stream and without waiting. Calls share that memory: on several streams they have to wait for each other.

    What is captured is one inference without gradients, with the settings and the untrained bandwidths that the CRF
    had. Parameters and buffers count as they are at each call if they are changed in place, as optimizers and
    `load_state_dict` do; those that are not on the device are copied there at every call.

    Args:
        crf: what to capture.
        unary, image: examples on a GPU; their values do not matter.
        output, iterations: as for `DenseCRF.forward`.

    Raises:
        ValueError, TypeError: inputs that are not on a GPU, or that the CRF refuses.

    Example, on a GPU::

        crf = DenseCRF(21, [Gaussian(sxy=3, compat=3), Bilateral(sxy=80, srgb=13, compat=10)]).cuda()
        graphed = crf.compile_graph(unary, image)
        for unary, image in batches:
            q = graphed(unary, image)
        graphed.check()
    """

    def __init__(
        self,
        crf: DenseCRF,
        unary: Tensor,
        image: Tensor | None = None,
        *,
        output: str | None = None,
        iterations: int | None = None,
    ) -> None:
        given = {"unary": unary} if image is None else {"unary": unary, "image": image}
        for name, tensor in given.items():
            _require_gpu(name, tensor)
        module = _WithReports(crf, output, iterations)
        # In inference mode they would become tensors that nobody can write to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = {
                name: torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor)
                for name, tensor in given.items()
            }
            originals = dict(chain(module.named_parameters(), module.named_buffers()))
            # Aliases: the graph reads this memory wherever the module is moved to.
            state = {name: tensor.detach().to(unary.device) for name, tensor in originals.items()}
            self._elsewhere = [(state[name], t) for name, t in originals.items() if t.device != unary.device]

            def run() -> tuple[Tensor, list[Report]]:
                result: tuple[Tensor, list[Report]] = torch.func.functional_call(module, state, (), self._inputs)
                return result

            with hold() as lattices:
                self._graph = _Graph(run, unary.device)
        self._result, self._reports = self._graph.result
        self._read = [
            *self._inputs.values(),
            *state.values(),
            *chain(*((*kept.tensors, kept.norm) for kept in lattices)),
        ]
        self._status = DeviceStatus()

    def __call__(self, unary: Tensor, image: Tensor | None = None, *, copy: bool = True) -> Tensor:
        """Infer.

        Args:
            unary, image: of the shapes and dtypes that were captured, any strides, on the device or on the CPU (which
                does not wait for the copy of a tensor in pinned memory).
            copy: False: not a copy of the result but the memory that the next call writes to.

        Returns:
            as `DenseCRF.forward`, without gradients.

        Raises:
            ValueError: other shapes or dtypes; what the device is known to have found wrong in an earlier call.
        """
        self._status.raise_if_known()
        given = {"unary": unary} if image is None else {"unary": unary, "image": image}
        if given.keys() != self._inputs.keys():
            raise ValueError(f"the graph was captured for {' and '.join(self._inputs)}, got {' and '.join(given)}")
        for name, tensor in given.items():
            own = self._inputs[name]
            if tensor.shape != own.shape or tensor.dtype != own.dtype:
                raise ValueError(
                    f"{name} must be of shape {tuple(own.shape)} and dtype {own.dtype}, for which the graph was "
                    f"captured, got {tuple(tensor.shape)} and {tensor.dtype}"
                )
        with torch.no_grad():
            for own, other in chain(self._elsewhere, ((self._inputs[name], given[name]) for name in given)):
                own.copy_(other, non_blocking=True)
            self._graph.replay(self._read)
            watch(self._status, self._reports)
            return self._result.clone() if copy else self._result

    def check(self) -> None:
        """Wait for the device and raise what it found wrong in earlier calls.

        Raises:
            ValueError: as `DenseCRF.check`.
        """
        self._status.check()

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={tuple(tensor.shape)}" for name, tensor in self._inputs.items())
        return f"GraphedCRF({shapes}, device={self._result.device})"


class _Graph:
    """What `run` does, captured on a device, and what it returned."""

    def __init__(self, run: Callable[[], Any], device: torch.device) -> None:
        self.device = device
        self._streams: set[torch.cuda.Stream] = set()
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_RUNS):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may go on allocating and asking for events.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.result = run()

    def replay(self, reads: Iterable[Tensor]) -> None:
        """Do it again, on the current stream; `reads` is memory from outside of the graph."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if stream not in self._streams:
                for tensor in reads:  # or it could be given away while the stream reads it, once all this is dropped
                    tensor.record_stream(stream)
                self._streams.add(stream)
            self.graph.replay()


class _WithReports(nn.Module):
    """A CRF whose result comes with what the device reports."""

    def __init__(self, crf: DenseCRF, output: str | None, iterations: int | None) -> None:
        super().__init__()
        self.crf = crf
        self.options: dict[str, Any] = {"output": output, "iterations": iterations}

    def forward(self, unary: Tensor, image: Tensor | None = None) -> tuple[Tensor, list[Report]]:
        return self.crf.infer(unary, image, **self.options)


def _require_gpu(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.device.type != "cuda":
        raise ValueError(f"CUDA graphs need inputs on a GPU, got {name} on {tensor.device}")
