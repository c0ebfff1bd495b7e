"""What a network costs, counted: parameters, multiply-adds, shapes and receptive fields, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .receptive_field import Field, after

__all__ = ["Layer", "ModelCounts", "count"]


@dataclass
class Layer:
    """One call of a module that calls no others.

    Attributes:
        name: of the module within the model.
        kind: its class.
        shape: of what it returned; of its first tensor where that was several.
        parameters: those that no earlier layer has.
        multiply_adds: of its convolutions and matrix products, exactly.
        field: its receptive field; None where it does not depend on the image.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0
    field: Field | None = None


@dataclass
class ModelCounts:
    """The layers of a model in the order of execution, and its totals.

    Attributes:
        layers: see `Layer`.
        shapes: of what the model returned, by name; one tensor is called "out".
        parameters: of the whole model, used for this input or not.
        trainable: those of them that need gradients.
        buffers: entries of its buffers, counters of batches included.
    """

    layers: list[Layer]
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    trainable: int
    buffers: int
    fields: dict[str, Field] = field(default_factory=dict)

    @property
    def multiply_adds(self) -> int:
        """Of all layers."""
        return sum(layer.multiply_adds for layer in self.layers)

    def __getitem__(self, name: str) -> Layer:
        """The first call of the layer of that name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer is called {name!r}")


def count(model: nn.Module, size: int | Sequence[int] = 513, *, channels: int = 3, batch: int = 1) -> ModelCounts:
    """Count what a model does to one image, in evaluation mode; nothing is computed, and the model is left as it is.

    A multiply-add is counted for every weight that goes into a value of a convolution or a matrix product, including
    those that meet padding: Σ numel(output) · weights per output. Normalisations, activations, biases, poolings,
    interpolations and the CRF are not counted, as in the figures that torchvision publishes.

    Args:
        model: takes [B, channels, H, W], returns a tensor or a mapping of tensors; on any device, also "meta".
        size: of the image, a number or (height, width).
        channels: of the image.
        batch: B.

    Raises:
        ValueError: a size, channels or batch below 1.

    Example:
        >>> counts = count(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()), 17)
        >>> counts.parameters, counts.multiply_adds, counts.shapes["out"]
        (224, 17496, (1, 8, 9, 9))
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width, channels, batch) < 1:
        raise ValueError(f"size, channels and batch must be at least 1, got {size}, {channels} and {batch}")
    # Stand-ins without memory take the places of the tensors during the call, so shared ones stay shared.
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    standins: dict[str, Tensor] = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    image = torch.empty(batch, channels, height, width, dtype=dtype, device="meta")
    counter = _Counter(image)
    with _evaluating(model), torch.no_grad(), counter.watching(model), counter:
        output = torch.func.functional_call(model, standins, (image,))
    outputs = _by_name(output)
    return ModelCounts(
        counter.layers,
        {name: tuple(tensor.shape) for name, tensor in outputs.items()},
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        sum(buffer.numel() for buffer in model.buffers()),
        {name: counter.fields[tensor] for name, tensor in outputs.items() if tensor in counter.fields},
    )


class _Call:
    """A module being called."""

    def __init__(self, layer: Layer, module: nn.Module) -> None:
        self.layer, self._module = layer, module
        self.calls_others = False

    @property
    def parameters(self) -> Iterator[Tensor]:
        """Those that no module called by this one can have."""
        return self._module.parameters(recurse=not self.calls_others)


class _Counter(TorchDispatchMode):
    """Sees every operator that runs, and knows by hooks in which module."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.fields = WeakTensorKeyDictionary()
        self.fields[image] = Field()
        self._stack: list[_Call] = []
        self._counted: set[int] = set()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follow the calls of the modules of a model."""
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.enter_context(_removed(module.register_forward_pre_hook(self._entering(name))))
                hooks.enter_context(_removed(module.register_forward_hook(self._left)))
            yield

    def _entering(self, name: str) -> Any:
        def enter(module: nn.Module, arguments: Any) -> None:
            if self._stack:
                self._stack[-1].calls_others = True
            layer = Layer(name, type(module).__name__)
            self._stack.append(_Call(layer, module))
            self.layers.append(layer)

        return enter

    def _left(self, module: nn.Module, arguments: Any, output: Any) -> None:
        call = self._stack.pop()
        for parameter in call.parameters:
            if id(parameter) not in self._counted:
                self._counted.add(id(parameter))
                call.layer.parameters += parameter.numel()
        # of a module that calls others only what it computes or holds itself is a layer
        if call.calls_others and not (call.layer.multiply_adds or call.layer.parameters):
            self.layers = [layer for layer in self.layers if layer is not call.layer]
            return
        first = next(iter(_by_name(output).values()), None)
        if first is not None:
            call.layer.shape = tuple(first.shape)
            call.layer.field = self.fields.get(first)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        arguments = {argument.name: argument.default_value for argument in func._schema.arguments}
        arguments |= dict(zip(arguments, args)) | kwargs
        results = list(_tensors(output))
        known = [self.fields[tensor] for tensor in _tensors(list(arguments.values())) if tensor in self.fields]
        # what is made of weights alone is not done for each image
        if results and known and self._stack:
            name = func._schema.name
            self._stack[-1].layer.multiply_adds += _multiply_adds(name, arguments, results[0])
            for result in results:
                self.fields[result] = after(name, arguments, known, result)
        return output


def _multiply_adds(name: str, arguments: Mapping[str, Any], output: Tensor) -> int:
    """Of one operator."""
    if name == "aten::convolution":
        weight = arguments["weight"]
        # transposed, every value of the input goes into as many products as there are weights behind it
        values = arguments["input"].numel() if arguments["transposed"] else output.numel()
        return values * weight[0].numel()
    if name in ("aten::mm", "aten::bmm"):
        return output.numel() * arguments["self"].shape[-1]
    if name == "aten::addmm":
        return output.numel() * arguments["mat1"].shape[-1]
    if name == "aten::baddbmm":
        return output.numel() * arguments["batch1"].shape[-1]
    if name == "densecrf_cuda::atrous_separable_conv2d":
        taps = arguments["depthwise_weight"][0].numel()
        pixels = output.numel() // max(output.shape[1], 1)
        return arguments["input"].shape[1] * pixels * taps + output.numel() * arguments["input"].shape[1]
    if name == "densecrf_cuda::_depthwise_conv2d":
        return output.numel() * arguments["weight"][0].numel()
    return 0


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _by_name(output: Any) -> dict[str, Tensor]:
    """The tensors that a module returned."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items() if isinstance(value, Tensor)}
    tensors = list(_tensors(output))
    return {"out": tensors[0]} if len(tensors) == 1 else {str(i): tensor for i, tensor in enumerate(tensors)}


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
