"""The separable convolution under torch's transforms: opcheck, compile, export, ONNX, autocast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import LAYOUTS, make_case, same
from helpers import noise, ops
from torch import Tensor, nn

from densecrf_cuda import atrous_separable_conv2d, separable_conv_decompositions

SETTINGS: dict[str, Any] = {
    "dilation": 2,
    "pre_activation": "relu",
    "depthwise_activation": "relu6",
    "activation": "relu",
}


def floats(device: torch.device, *shape: int, seed: int = 1, grad: bool = True) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float32).to(device).requires_grad_(grad)


def channels_last(image: Tensor) -> Tensor:
    return image.detach().to(memory_format=torch.channels_last).requires_grad_()


ONES = ([1, 2], [2, 2, 2, 2], [2, 2])
SAMPLES: dict[str, Callable[[torch.device], tuple[Any, ...]]] = {
    "atrous_separable_conv2d": lambda on: (
        *(floats(on, 2, 3, 5, 4), floats(on, 3, 1, 3, 3), floats(on, 4, 3), *ONES, "relu", floats(on, 3)),
        *(floats(on, 3), "relu6", floats(on, 4), floats(on, 4), "relu", floats(on, 2, 4, 5, 2)),
    ),
    "_depthwise_conv2d": lambda on: (
        *(channels_last(floats(on, 2, 3, 5, 4)), floats(on, 3, 1, 3, 3), *ONES, "relu"),
        *(floats(on, 3), None, "relu6"),
    ),
    "_depthwise_conv2d_input_gradient": lambda on: (floats(on, 2, 3, 5, 2), floats(on, 3, 1, 3, 3), [5, 4], *ONES),
    "_depthwise_conv2d_weight_gradient": lambda on: (
        *(floats(on, 2, 3, 5, 2), floats(on, 2, 3, 5, 4), [3, 3], *ONES, "relu"),
    ),
    "_depthwise_conv2d_moments": lambda on: (floats(on, 2, 3, 5, 4), floats(on, 3, 1, 3, 3), *ONES, "relu"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(rung: str, device: torch.device, name: str) -> None:
    torch.library.opcheck(getattr(ops, name).default, SAMPLES[name](device))


def test_opcheck_of_the_overload_that_writes(rung: str, device: torch.device) -> None:
    given = (
        floats(device, 2, 3, 5, 4, grad=False),
        floats(device, 3, 1, 3, 3, grad=False),
        floats(device, 4, 3, grad=False),
    )
    out = torch.empty(2, 4, 3, 2, device=device)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.atrous_separable_conv2d.out, given, {"out": out}, test_utils=checks)


def test_fakes_have_the_layout_of_results() -> None:
    for layout in LAYOUTS.values():
        for size in ((5, 4), (1, 1)):
            x = noise(2, 3, *size, dtype=torch.float32).contiguous(memory_format=layout)
            given = x, noise(3, 1, 3, 3).float(), noise(4, 3).float()
            y, fake = (atrous_separable_conv2d(*(t.to(where) for t in given)) for where in ("cpu", "meta"))
            assert (fake.shape, fake.stride(), fake.dtype) == (y.shape, y.stride(), y.dtype)


class Layer(nn.Module):
    """A convolution with every option, as a network would hold it."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in make_case(same(3), (5, 4), 2, 3, 4).items():
            if name not in ("input", "residual"):
                self.register_parameter(name, nn.Parameter(tensor.float()))

    def forward(self, x: Tensor) -> Tensor:
        return atrous_separable_conv2d(x, **dict(self.named_parameters()), **SETTINGS)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(rung: str, device: torch.device, dynamic: bool) -> None:
    layer = Layer().to(device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in ((5, 4), (6, 7)):
        x = floats(device, 2, 3, *size)
        got, expected = compiled(x), layer(x)
        torch.testing.assert_close(got, expected)
        wanted = (x, *layer.parameters())
        for a, b in zip(torch.autograd.grad(got.sum(), wanted), torch.autograd.grad(expected.sum(), wanted)):
            torch.testing.assert_close(a, b)


def test_compiled_autocast() -> None:
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = floats(torch.device("cpu"), 2, 3, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = compiled(x), layer(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected)


def test_compiled_out() -> None:
    """A compiled program may write into a slice of a tensor that it has made."""
    x = floats(torch.device("cpu"), 2, 3, 5, 4, grad=False)
    weights = noise(3, 1, 3, 3).float(), noise(4, 3).float()

    def run(x: Tensor) -> Tensor:
        buffer = torch.zeros(2, 9, 5, 4)
        atrous_separable_conv2d(x, *weights, out=buffer[:, 2:6])
        return buffer + 1

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(x), run(x))


def exported(layer: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    height, width = torch.export.Dim("height", min=3, max=64), torch.export.Dim("width", min=3, max=64)
    return torch.export.export(layer, (x,), dynamic_shapes=({2: height, 3: width},))


def test_export_keeps_the_operator() -> None:
    layer, x = Layer().eval(), floats(torch.device("cpu"), 2, 3, 5, 4, grad=False)
    program = exported(layer, x)
    assert [n for n in program.graph.nodes if n.target is ops.atrous_separable_conv2d.default]
    other = floats(torch.device("cpu"), 2, 3, 7, 9, seed=2, grad=False)
    torch.testing.assert_close(program.module()(other), layer(other))


# torch, when it copies an exported program, meets a class of its own that it has deprecated
copies_programs = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


@copies_programs
def test_export_to_standard_convolutions() -> None:
    layer, x = Layer().eval(), floats(torch.device("cpu"), 2, 3, 5, 4, grad=False)
    program = exported(layer, x).run_decompositions(separable_conv_decompositions())
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if "densecrf_cuda" in target]
    assert sum("conv" in target for target in targets) == 2
    other = floats(torch.device("cpu"), 2, 3, 7, 9, seed=2, grad=False)
    torch.testing.assert_close(program.module()(other), layer(other))


@copies_programs
def test_onnx_holds_standard_convolutions(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch writes ONNX by means of onnxscript")
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    layer, x = Layer().eval(), floats(torch.device("cpu"), 2, 3, 5, 4, grad=False)
    program = exported(layer, x).run_decompositions(separable_conv_decompositions())
    path = tmp_path / "layer.onnx"
    torch.onnx.export(program, (x,), str(path), dynamo=True, verbose=False)
    model = onnx.load(str(path))
    assert [node.op_type for node in model.graph.node].count("Conv") == 2
    assert {node.domain for node in model.graph.node} == {""}
    (got,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), layer(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_lowers_what_conv2d_lowers(rung: str, device: torch.device, dtype: torch.dtype) -> None:
    given = make_case(same(3), (5, 4), 2, 3, 4)
    tensors = {name: x.float().to(device).requires_grad_() for name, x in given.items()}
    with torch.autocast(device.type, dtype):
        got = atrous_separable_conv2d(**tensors)
        assert F.conv2d(tensors["input"], tensors["depthwise_weight"], groups=3).dtype == dtype == got.dtype
        got.float().sum().backward()
    # as if the images and weights, but not the vectors, had been given in the lower precision
    lowered = {name: x.detach().to(dtype) if x.dim() > 1 else x.detach() for name, x in tensors.items()}
    assert torch.equal(got, atrous_separable_conv2d(**lowered))
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in tensors.values())
    with torch.autocast(device.type, dtype):
        doubles = {name: x.detach().double() for name, x in tensors.items()}
        assert atrous_separable_conv2d(**doubles).dtype == torch.float64


def test_backward_under_autocast_keeps_its_precision(rung: str, device: torch.device) -> None:
    tensors = {name: x.float().to(device).requires_grad_() for name, x in make_case(same(3), (5, 4), 2, 3, 4).items()}
    y = atrous_separable_conv2d(**tensors)
    plain = torch.autograd.grad(y.sum(), tuple(tensors.values()), retain_graph=True)
    with torch.autocast(device.type, torch.bfloat16):
        cast = torch.autograd.grad(y.sum(), tuple(tensors.values()))
    assert all(torch.equal(a, b) for a, b in zip(plain, cast))
