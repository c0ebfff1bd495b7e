"""The atrous depthwise-separable convolution on a GPU, beside PyTorch's and the least time that the card allows.

    python benchmarks/gpu/bench_separable_conv_gpu.py
    python benchmarks/gpu/bench_separable_conv_gpu.py --batch 16 --dtypes bfloat16 --only aspp
    python benchmarks/gpu/bench_separable_conv_gpu.py --device cpu --small

Every separable convolution of DeepLabv3+ (Xception-65) and MobileNetV2 for pictures of 513 x 513 points at output
strides 16 and 8, each with a frozen batch norm and a ReLU after either part. PyTorch three ways: eager in NCHW, eager
in channels_last, and channels_last with the norms folded into the weights, compiled by torch.compile(max-autotune) and
replayed as a CUDA graph. Ours is replayed as a graph too. float32 may use TF32 on all sides.

The least time is that of one kernel: the longest of moving input, weights and output once, the pointwise product at the
rate of a large matrix product, and the depthwise part on the ordinary cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
import gpu_common
from separable_cases import CASES, KERNEL, SMALL, Case, Rates, least_seconds

from densecrf_cuda import _C, atrous_separable_conv2d

EPSILON = 1e-5
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def measure_rates(dtype: torch.dtype, card: gpu_common.Rates, device: str) -> Rates:
    side = 8192 if device == "cuda" else 256
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = min(gpu_common.elapsed_seconds(lambda: left @ right, device) for _ in range(10))
    # 128 multiply-adds a clock and multiprocessor, which moves as many bytes from its first cache
    return Rates(card.dram, 2 * side**3 / seconds, 2 * card.l1)


# --- sides ------------------------------------------------------------------------------------------------------------


class Operands(NamedTuple):
    """Input, weights, and the two norms as mean, variance, weight and bias."""

    input: Tensor
    depthwise: Tensor
    pointwise: Tensor
    norms: list[list[Tensor]]

    @classmethod
    def of(cls, case: Case, batch: int, dtype: torch.dtype, device: str) -> Operands:
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)

        def norm(channels: int) -> list[Tensor]:
            return [noise(channels), noise(channels).abs() + 0.5, noise(channels), noise(channels)]

        return cls(
            noise(batch, case.channels, case.size, case.size),
            noise(case.channels, 1, KERNEL, KERNEL, scale=1 / KERNEL),
            noise(case.out_channels, case.channels, 1, 1, scale=case.channels**-0.5),
            [norm(case.channels), norm(case.out_channels)],
        )

    def channels_last(self) -> Operands:
        images = (tensor.contiguous(memory_format=torch.channels_last) for tensor in self[:3])
        return Operands(*images, self.norms)

    def affine(self, number: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of a norm, float32."""
        mean, variance, weight, bias = (vector.float() for vector in self.norms[number])
        scale = weight * (variance + EPSILON).rsqrt()
        return scale, bias - scale * mean


def eager(case: Case, operands: Operands, input: Tensor) -> Tensor:
    for weight, (mean, variance, gain, bias), depthwise in zip(operands[1:3], operands.norms, (True, False)):
        place = {"stride": case.stride, "dilation": case.dilation, "padding": case.dilation, "groups": case.channels}
        input = F.conv2d(input, weight, **(place if depthwise else {}))
        input = F.relu(F.batch_norm(input, mean, variance, gain, bias, eps=EPSILON))
    return input


def folded(case: Case, operands: Operands) -> Callable[[Tensor], Tensor]:
    """Two convolutions with a bias, as inference engines leave them."""
    dtype = operands.input.dtype
    (scale, shift), (out_scale, out_shift) = operands.affine(0), operands.affine(1)
    depthwise = (operands.depthwise.float() * scale[:, None, None, None]).to(dtype)
    pointwise = (operands.pointwise.float() * out_scale[:, None, None, None]).to(dtype)
    shift, out_shift = shift.to(dtype), out_shift.to(dtype)

    def run(input: Tensor) -> Tensor:
        middle = F.conv2d(input, depthwise, shift, case.stride, case.dilation, case.dilation, case.channels)
        return F.relu(F.conv2d(F.relu(middle), pointwise, out_shift))

    return run


def ours(case: Case, operands: Operands) -> Callable[[Tensor], Tensor]:
    (scale, shift), (out_scale, out_shift) = operands.affine(0), operands.affine(1)

    def run(input: Tensor) -> Tensor:
        return atrous_separable_conv2d(
            input,
            operands.depthwise,
            operands.pointwise,
            stride=case.stride,
            dilation=case.dilation,
            depthwise_scale=scale,
            depthwise_shift=shift,
            depthwise_activation="relu",
            scale=out_scale,
            shift=out_shift,
            activation="relu",
        )

    return run


def works_of(case: Case, operands: Operands, device: str) -> dict[str, Callable[[int], object]]:
    last, fused = operands.channels_last(), ours(case, operands)
    works: dict[str, Callable[[int], object]] = {
        "ours": lambda _: fused(last.input),
        "NCHW": lambda _: eager(case, operands, operands.input),
        "channels_last": lambda _: eager(case, last, last.input),
    }
    if device == "cuda":
        torch.compiler.reset()
        compiled = torch.compile(folded(case, last), mode="max-autotune-no-cudagraphs")
        for name, step in {"ours": fused, "compiled": compiled}.items():
            replay = gpu_common.in_graph(lambda step=step: step(last.input))  # type: ignore[misc]
            works[name] = lambda _, replay=replay: replay()  # type: ignore[misc]
    return works


def check_equal(case: Case, operands: Operands) -> float:
    """The largest difference from eager PyTorch, relative; ends the run where rounding does not explain it.

    The norms of a half type round what lies between the two convolutions once more, and TF32 both factors.
    """
    expected = eager(case, operands, operands.input).float()
    got = ours(case, operands)(operands.channels_last().input).float()
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference < (0.05 if operands.input.dtype == torch.bfloat16 else 0.01):
        sys.exit(f"{case.title()} does not agree with PyTorch: {difference:.1e}")
    return difference


# --- the run ----------------------------------------------------------------------------------------------------------


def path_of(case: Case, batch: int, dtype: str, device: str) -> str:
    if device == "cpu":
        return ""
    return _C.separable_conv_path(
        batch=batch,
        channels=case.channels,
        out_channels=case.out_channels,
        size=(case.size, case.size),
        out_size=(case.out_size, case.out_size),
        kernel_size=KERNEL,
        dtype=dtype,
        allow_tf32=True,
        capability=torch.cuda.get_device_capability(),
    )


@torch.inference_mode()
def measure(case: Case, dtype: str, rates: Rates, options: argparse.Namespace) -> dict[str, Any]:
    operands = Operands.of(case, options.batch, TYPES[dtype], options.device)
    difference = check_equal(case, operands)
    times = gpu_common.time_in_turns(works_of(case, operands, options.device), options.repeat, options.device)
    floor = least_seconds(case, options.batch, TYPES[dtype].itemsize, rates)
    result = {
        **case._asdict(),
        "dtype": dtype,
        "path": path_of(case, options.batch, dtype, options.device),
        "difference": difference,
        "seconds": times,
        "roofline_seconds": floor,
    }
    print(f"{dtype:9} {case.title():44} {' | '.join(cells_of(result))}", flush=True)
    return result


HEAD = ["least", "ours", "ours / least", "NCHW", "channels_last", "compiled", "best of PyTorch / ours", "path"]


def cells_of(result: dict[str, Any]) -> list[str]:
    seconds = {name: timing["median"] for name, timing in result["seconds"].items()}
    mine, floor = seconds.pop("ours"), result["roofline_seconds"]
    others = [f"{1e6 * seconds[name]:.1f}" if name in seconds else "" for name in ("NCHW", "channels_last", "compiled")]
    ratio = f"{min(seconds.values()) / mine:.2f}"
    return [f"{1e6 * floor:.1f}", f"{1e6 * mine:.1f}", f"{mine / floor:.2f}", *others, ratio, result["path"]]


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=TYPES, default=list(TYPES), help="default: both")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    options = gpu_common.parse_arguments(__doc__, parser)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    results, rows, card = [], [], gpu_common.measure_rates(options.device)
    for dtype in options.dtypes:
        rates = measure_rates(TYPES[dtype], card, options.device)
        print(f"{dtype}: {rates.memory / 1e12:.2f} TB/s, product {rates.product / 1e12:.0f} TFLOP/s")
        for network, cases in (SMALL if options.small else CASES).items():
            for case in (case for case in cases if options.only in case.name):
                results.append({"network": network, **measure(case, dtype, rates, options)})
                rows.append([f"{dtype}, {network}, {case.title()}", *cells_of(results[-1])])
    table = gpu_common.markdown([f"µs, batch {options.batch}", *HEAD], rows)
    gpu_common.write_results("separable_conv_gpu", options, {"batch": options.batch, "cases": results}, table)


if __name__ == "__main__":
    main()
