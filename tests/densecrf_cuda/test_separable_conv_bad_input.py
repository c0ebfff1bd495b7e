"""What the separable convolution refuses: the rule and the value, on every device and in the reference."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convolutions import make_case, same
from helpers import noise, ops
from torch import Tensor

from densecrf_cuda import atrous_separable_conv2d, reference


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise(*shape, dtype=dtype)


def arguments() -> dict[str, Any]:
    return {name: x.float() for name, x in make_case(same(3), (5, 4), 2, 3, 4).items()}


# What is changed of valid arguments, the error, and its message.
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "input without batch": ({"input": image(3, 5, 4)}, ValueError, r"input must be \[B, C, H, W\], got \[3, 5, 4\]"),
    "integers": ({"input": torch.ones(2, 3, 5, 4, dtype=torch.int32)}, TypeError, "input must be float, double, half"),
    "no channels": (
        {"input": image(2, 0, 5, 4), "depthwise_weight": image(0, 1, 3, 3)},
        ValueError,
        "at least one channel, got 0",
    ),
    "channels": (
        {"depthwise_weight": image(4, 1, 3, 3)},
        ValueError,
        r"depthwise_weight must be \[C, 1, k, k\] with the C = 3 channels of input, got \[4, 1, 3, 3\]",
    ),
    "groups": ({"depthwise_weight": image(3, 3, 3, 3)}, ValueError, r"depthwise_weight must be .* got \[3, 3, 3, 3\]"),
    "not square": ({"depthwise_weight": image(3, 1, 3, 5)}, ValueError, r"depthwise_weight must be .* \[3, 1, 3, 5\]"),
    "even kernel": ({"depthwise_weight": image(3, 1, 2, 2)}, ValueError, "kernel must be 1, 3, 5 or 7 wide, got 2"),
    "large kernel": ({"depthwise_weight": image(3, 1, 9, 9)}, ValueError, "kernel must be 1, 3, 5 or 7 wide, got 9"),
    "flat depthwise weight": ({"depthwise_weight": image(3, 3, 3)}, ValueError, r"depthwise_weight must be"),
    "pointwise channels": ({"pointwise_weight": image(4, 5)}, ValueError, r"pointwise_weight must be .* got \[4, 5\]"),
    "pointwise kernel": (
        {"pointwise_weight": image(4, 3, 3, 3)},
        ValueError,
        r"pointwise_weight must be \[O, C\] or \[O, C, 1, 1\] with the C = 3 channels of input, got \[4, 3, 3, 3\]",
    ),
    "depthwise dtype": (
        {"depthwise_weight": image(3, 1, 3, 3, dtype=torch.float64)},
        TypeError,
        "depthwise_weight must have the dtype of input",
    ),
    "pointwise dtype": (
        {"pointwise_weight": image(4, 3, dtype=torch.float16)},
        TypeError,
        "pointwise_weight must have the dtype of input",
    ),
    "residual dtype": (
        {"residual": image(2, 4, 5, 4, dtype=torch.float64)},
        TypeError,
        "residual must have the dtype of input",
    ),
    "residual shape": (
        {"residual": image(2, 4, 4, 4)},
        ValueError,
        r"residual must be \[2, 4, 5, 4\], got \[2, 4, 4, 4\]",
    ),
    "depthwise scale": ({"depthwise_scale": image(4)}, ValueError, r"depthwise_scale must be \[3\], got \[4\]"),
    "depthwise shift": ({"depthwise_shift": image(3, 1)}, ValueError, r"depthwise_shift must be \[3\], got \[3, 1\]"),
    "scale": ({"scale": image(3)}, ValueError, r"scale must be \[4\], got \[3\]"),
    "shift": ({"shift": torch.ones(())}, ValueError, r"shift must be \[4\], got \[\]"),
    "integer shift": ({"shift": torch.ones(4, dtype=torch.int64)}, TypeError, "shift must have a floating dtype, got"),
    "stride 0": ({"stride": 0}, ValueError, r"stride must be two numbers, each 1 or 2, got \[0, 0\]"),
    "stride 3": ({"stride": (1, 3)}, ValueError, r"stride must be two numbers, each 1 or 2, got \[1, 3\]"),
    "dilation 0": ({"dilation": 0}, ValueError, r"dilation must be two numbers from 1 to 2147483647, got \[0, 0\]"),
    "dilation -1": ({"dilation": (1, -1)}, ValueError, r"dilation must be two numbers from 1 .* got \[1, -1\]"),
    "dilation 2^40": ({"dilation": 2**40}, ValueError, r"dilation must be two numbers from 1 to 2147483647"),
    "padding -1": ({"padding": (0, 0, -1, 0)}, ValueError, r"padding must be from 0 .* got \[0, 0, -1, 0\]"),
    "too small": (
        {"padding": 0, "dilation": (1, 3)},
        ValueError,
        "the padded image must be at least as large as the dilated kernel, 3 x 7, got 5 x 4",
    ),
    "pre_activation": ({"pre_activation": "gelu"}, ValueError, "pre_activation must be none, relu or relu6, got gelu"),
    "depthwise_activation": (
        {"depthwise_activation": ""},
        ValueError,
        "depthwise_activation must be none, relu or relu6",
    ),
    "activation": ({"activation": "ReLU"}, ValueError, "activation must be none, relu or relu6, got ReLU"),
    "out shape": ({"out": image(2, 4, 5, 5)}, ValueError, r"out must be \[2, 4, 5, 4\], got \[2, 4, 5, 5\]"),
    "out dtype": ({"out": image(2, 4, 5, 4, dtype=torch.float64)}, TypeError, "out must have the dtype of input"),
    "out expanded": ({"out": image(2, 1, 5, 4).expand(2, 4, 5, 4)}, ValueError, "out must not be an expanded tensor"),
}


def on(device: torch.device, values: dict[str, Any]) -> dict[str, Any]:
    return {name: x.to(device) if isinstance(x, Tensor) and name != "out" else x for name, x in values.items()}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(rung: str, device: torch.device, case: str) -> None:
    changes, error, message = REFUSED[case]
    out = (
        {"out": changes["out"].to(device)}
        if device.type == "cuda" and case != "out expanded" and "out" in changes
        else {}
    )
    with pytest.raises(error, match=message):
        atrous_separable_conv2d(**on(device, arguments() | changes) | out)


def test_arguments_are_valid_but_for_what_is_changed(rung: str, device: torch.device) -> None:
    assert atrous_separable_conv2d(**on(device, arguments())).shape == (2, 4, 5, 4)


def test_settings_that_are_no_numbers() -> None:
    for name, value, error in (
        ("stride", 1.5, TypeError),
        ("stride", (1, 1, 1), ValueError),
        ("dilation", "2", TypeError),
        ("dilation", (1, None), TypeError),
        ("padding", "valid", TypeError),
        ("padding", (1, 1, 1), ValueError),
        ("padding", 0.5, TypeError),
    ):
        with pytest.raises(error, match=f"{name} must be .*, got {re.escape(repr(value))}"):
            atrous_separable_conv2d(**arguments() | {name: value})


def test_out_may_not_share_memory(rung: str, device: torch.device) -> None:
    given = on(device, {name: arguments()[name] for name in ("depthwise_weight",)})
    for layout in (torch.contiguous_format, torch.channels_last):
        buffer = image(2, 8, 5, 4).to(device).contiguous(memory_format=layout)
        square = image(3, 3).to(device)
        for x, out in (
            (buffer[:, :3], buffer[:, :3]),
            (buffer[:, :3], buffer[:, 2:5]),
            (buffer[:, 2:5], buffer[:, :3]),
            (buffer[:, 5:8], buffer[:, 3:6]),
        ):
            with pytest.raises(ValueError, match="out must not share memory with an argument, got one of shape"):
                atrous_separable_conv2d(x, given["depthwise_weight"], square, out=out)
        x = image(2, 3, 5, 4).to(device)
        residual = buffer[:, 1:4]
        with pytest.raises(ValueError, match="out must not share memory"):
            atrous_separable_conv2d(x, given["depthwise_weight"], square, residual=residual, out=buffer[:, 3:6])


def test_out_records_no_gradients() -> None:
    given = arguments()
    out = torch.empty(2, 4, 5, 4)
    for name in ("input", "shift", "residual"):
        changed = given | {name: given[name].clone().requires_grad_()}
        with pytest.raises(ValueError, match="out= must not be used where gradients are recorded"):
            atrous_separable_conv2d(**changed, out=out)
        with torch.no_grad():
            assert atrous_separable_conv2d(**changed, out=out) is out


def test_devices() -> None:
    for name in ("depthwise_weight", "pointwise_weight", "depthwise_scale", "shift", "residual"):
        given = arguments()
        given[name] = given[name].to("meta")
        with pytest.raises(ValueError) as error:
            reference.atrous_separable_conv2d(**given, padding=[1, 1, 1, 1])
        assert str(error.value) == f"{name} must be on the device of input, cpu, got meta"


@pytest.mark.cuda
def test_devices_of_a_gpu() -> None:
    for name in ("depthwise_weight", "pointwise_weight", "depthwise_scale", "shift", "residual"):
        given = arguments()
        given[name] = given[name].to("cuda")
        with pytest.raises(ValueError, match=f"{name} must be on the device of input, cpu, got cuda:0|input"):
            atrous_separable_conv2d(**given)


ONES = ([1, 1], [1, 1, 1, 1], [1, 1])
PARTS: dict[str, tuple[str, tuple[Any, ...], type[Exception], str]] = {
    "depthwise scale": (
        "_depthwise_conv2d",
        (image(1, 2, 4, 4), image(2, 1, 3, 3), *ONES, "none", image(3), None, "none"),
        ValueError,
        r"^scale must be \[2\], got \[3\]",
    ),
    "padding of two": (
        "_depthwise_conv2d",
        (image(1, 2, 4, 4), image(2, 1, 3, 3), [1, 1], [1, 1], [1, 1], "none", None, None, "none"),
        ValueError,
        r"padding must be \(left, right, top, bottom\), got \[1, 1\]",
    ),
    "size of the gradient": (
        "_depthwise_conv2d_input_gradient",
        (image(1, 2, 4, 4), image(2, 1, 3, 3), [5, 4], *ONES),
        ValueError,
        r"grad must be \[1, 2, 5, 4\], got \[1, 2, 4, 4\]",
    ),
    "negative size": (
        "_depthwise_conv2d_input_gradient",
        (image(1, 2, 4, 4), image(2, 1, 3, 3), [-1, 4], *ONES),
        ValueError,
        r"input_size must be two numbers, not negative, got \[-1, 4\]",
    ),
    "weight of other channels": (
        "_depthwise_conv2d_input_gradient",
        (image(1, 2, 4, 4), image(3, 1, 3, 3), [4, 4], *ONES),
        ValueError,
        "weight must be .* with the C = 2 channels of grad",
    ),
    "batch of the gradient": (
        "_depthwise_conv2d_weight_gradient",
        (image(2, 2, 4, 4), image(1, 2, 4, 4), [3, 3], *ONES, "none"),
        ValueError,
        r"grad must be \[1, 2, 4, 4\], got \[2, 2, 4, 4\]",
    ),
    "kernel that is not square": (
        "_depthwise_conv2d_weight_gradient",
        (image(1, 2, 4, 4), image(1, 2, 4, 4), [3, 5], *ONES, "none"),
        ValueError,
        r"kernel_size must be two equal numbers, got \[3, 5\]",
    ),
    "moments of nothing": (
        "_depthwise_conv2d_moments",
        (image(0, 2, 4, 4), image(2, 1, 3, 3), *ONES, "none"),
        ValueError,
        "at least one image to take moments of, got",
    ),
    "moments of an unknown activation": (
        "_depthwise_conv2d_moments",
        (image(1, 2, 4, 4), image(2, 1, 3, 3), *ONES, "tanh"),
        ValueError,
        "pre_activation must be none, relu or relu6, got tanh",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_refused_by_the_parts(rung: str, device: torch.device, case: str) -> None:
    name, given, error, message = PARTS[case]
    on_device = [x.to(device) if isinstance(x, Tensor) else x for x in given]
    with pytest.raises(error, match=message):
        getattr(ops, name)(*on_device)


@pytest.mark.parametrize("case", PARTS)
def test_refused_by_the_reference(case: str) -> None:
    name, given, error, message = PARTS[case]
    with pytest.raises(error, match=message):
        getattr(reference, name)(*given)


@pytest.mark.parametrize("case", REFUSED)
def test_reference_refuses_in_the_same_words(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, error, message = REFUSED[case]

    def through_reference(call: Callable[..., Tensor]) -> None:
        with pytest.raises(error, match=message):
            call(**arguments() | changes)

    monkeypatch.setattr("densecrf_cuda.separable_conv_ops._call", _call_reference)
    through_reference(atrous_separable_conv2d)


def _call_reference(given: tuple[Any, ...], out: Tensor | None) -> Tensor:
    return reference.atrous_separable_conv2d(*given, out=out)
