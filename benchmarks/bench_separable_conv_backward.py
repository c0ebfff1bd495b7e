"""Training of atrous separable convolutions against PyTorch: time of the backward pass, memory kept for it.

    python benchmarks/bench_separable_conv_backward.py
    python benchmarks/bench_separable_conv_backward.py --quick

1. The gradients of a dilated depthwise convolution by input and weight, against `aten.convolution_backward` on the same
   tensors in the same layout, and against the better one of PyTorch's two layouts.
2. Forward and backward of the middle flow of Xception-65 at output stride 8 (ReLU, depthwise, pointwise, each with a
   frozen BatchNorm), against PyTorch's operators with the BatchNorms folded into the weights.
3. The bytes that a stack of such convolutions in training, BatchNorm and all, keeps from forward for backward: the
   storages that autograd saves, each counted once, without parameters.

Gradients are compared before anything is timed.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common

from densecrf_cuda import AtrousSeparableConv2d, atrous_separable_conv2d

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
TOLERANCE = 1e-4  # of a gradient, relative to its largest entry: float32 sums of up to 4225 products
OPS = torch.ops.densecrf_cuda


class Case(NamedTuple):
    channels: int
    size: int
    dilation: int


# Middle flow at output stride 8 and 16, ASPP; dilation 1 for comparison.
CASES = [Case(728, 65, 2), Case(728, 33, 2), Case(2048, 33, 6), Case(2048, 33, 12), Case(2048, 33, 18)]
CASES += [Case(728, 33, 1)]
QUICK = [Case(40, 17, 2)]
MIDDLE = Case(728, 65, 2)
STACK = [(256, 728, 2), (728, 728, 2), (728, 728, 2)]  # C, O, dilation: the last block of the entry flow


def check_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Ends the run where two sides differ by more than rounding."""
    for a, b in zip(ours, theirs, strict=True):
        difference = ((a - b).abs().max() / b.abs().max()).item()
        if not difference <= TOLERANCE:
            sys.exit(f"the two sides do not agree: a gradient differs by {difference:.1e} of its largest entry")


# --- the depthwise convolution ----------------------------------------------------------------------------------------


def depthwise_works(case: Case, layout: torch.memory_format) -> dict[str, Callable[[int], list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, case.channels, case.size, case.size)
    grad, image = (torch.randn(shape, generator=generator).contiguous(memory_format=layout) for _ in range(2))
    weight = torch.randn(case.channels, 1, 3, 3, generator=generator)
    stride, dilation = [1, 1], [case.dilation] * 2
    sides = dilation * 2

    def ours(_: int) -> list[Tensor]:
        return [
            OPS._depthwise_conv2d_input_gradient(grad, weight, shape[2:], stride, sides, dilation),
            OPS._depthwise_conv2d_weight_gradient(grad, image, [3, 3], stride, sides, dilation, "none"),
        ]

    def theirs(_: int) -> list[Tensor]:
        settings = (stride, dilation, dilation, False, [0, 0], case.channels, [True, True, False])
        return list(torch.ops.aten.convolution_backward(grad, image, weight, None, *settings)[:2])

    return {"ours": ours, "pytorch": theirs}


def measure_depthwise(case: Case, repeat: int) -> dict[str, Any]:
    works = {}
    for name, layout in LAYOUTS.items():
        sides = depthwise_works(case, layout)
        check_close(sides["ours"](0), sides["pytorch"](0))
        works |= {f"{side}, {name}": work for side, work in sides.items()}
    times = common.time_paired(works, repeat)
    median = {name: timing["median"] for name, timing in times.items()}
    best = min(median[f"pytorch, {name}"] for name in LAYOUTS)
    speedup = {}
    for name in LAYOUTS:
        ours, theirs = (f"{side}, {name}" for side in ("ours", "pytorch"))
        speedup[name] = {"same layout": median[theirs] / median[ours], "best layout": best / median[ours]}
        print(
            f"depthwise {case.channels:4} at {case.size} x {case.size}, dilation {case.dilation:2}, {name:13}: "
            f"ours {common.in_ms(times[ours])}, PyTorch {common.in_ms(times[theirs])}, "
            f"{speedup[name]['same layout']:.1f} x ({speedup[name]['best layout']:.1f} x its better layout)"
        )
    return {**case._asdict(), "threads": torch.get_num_threads(), "seconds": times, "speedup": speedup}


# --- the whole operator -----------------------------------------------------------------------------------------------


def middle_works(case: Case, layout: torch.memory_format) -> dict[str, Callable[[int], list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    c = case.channels
    image, grad = (
        torch.randn(1, c, case.size, case.size, generator=generator).contiguous(memory_format=layout) for _ in range(2)
    )
    weights = [torch.randn(c, 1, 3, 3, generator=generator) / 3, torch.randn(c, c, 1, 1, generator=generator) / c**0.5]
    scale, shift = torch.rand(c, generator=generator) + 0.5, torch.randn(c, generator=generator) / 10
    leaves = [leaf.requires_grad_() for leaf in (image, *weights)]

    def ours(_: int) -> list[Tensor]:
        y = atrous_separable_conv2d(
            image,
            *weights,
            dilation=case.dilation,
            pre_activation="relu",
            depthwise_scale=scale,
            depthwise_shift=shift,
            scale=scale,
            shift=shift,
        )
        return list(torch.autograd.grad(y, leaves, grad))

    def theirs(_: int) -> list[Tensor]:
        depthwise, pointwise = (scale[:, None, None, None] * weight for weight in weights)
        v = F.conv2d(F.relu(image), depthwise, shift, 1, case.dilation, case.dilation, c)
        y = F.conv2d(v, pointwise, shift)
        return list(torch.autograd.grad(y, leaves, grad))

    return {"ours": ours, "pytorch": theirs}


def measure_middle(case: Case, repeat: int) -> dict[str, Any]:
    works = {}
    for name, layout in LAYOUTS.items():
        sides = middle_works(case, layout)
        check_close(sides["ours"](0), sides["pytorch"](0))
        works |= {f"{side}, {name}": work for side, work in sides.items()}
    times = common.time_paired(works, repeat)
    median = {name: timing["median"] for name, timing in times.items()}
    best = {side: min(median[f"{side}, {name}"] for name in LAYOUTS) for side in ("ours", "pytorch")}
    speedup = {name: median[f"pytorch, {name}"] / median[f"ours, {name}"] for name in LAYOUTS}
    speedup["best layouts"] = best["pytorch"] / best["ours"]
    for name in LAYOUTS:
        print(
            f"forward + backward {case.channels} at {case.size} x {case.size}, dilation {case.dilation}, {name:13}: "
            f"ours {common.in_ms(times[f'ours, {name}'])}, PyTorch {common.in_ms(times[f'pytorch, {name}'])}, "
            f"{speedup[name]:.2f} x"
        )
    print(f"  better layout of each: {speedup['best layouts']:.2f} x")
    return {**case._asdict(), "threads": torch.get_num_threads(), "seconds": times, "speedup": speedup}


# --- memory -----------------------------------------------------------------------------------------------------------


class EagerSeparableConv(nn.Sequential):
    """The usual modules in the usual order."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )


def kept_bytes(model: nn.Module, image: Tensor) -> int:
    """Bytes of the storages that a forward pass leaves for the backward pass, without parameters and the input."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), image)}
    kept: dict[int, int] = {}
    held = []  # alive until all are counted, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(image)
    return sum(kept.values())


def measure_memory(stack: list[tuple[int, int, int]], size: int) -> dict[str, Any]:
    """The input is kept by both sides alike and not counted."""
    separable = partial(AtrousSeparableConv2d, pre_activation="relu", depthwise_activation="none", activation="none")
    models = {
        "ours": nn.Sequential(*(separable(c, o, dilation=d) for c, o, d in stack)),
        "eager": nn.Sequential(*(EagerSeparableConv(c, o, d) for c, o, d in stack)),
    }
    image = torch.randn(1, stack[0][0], size, size, requires_grad=True)
    kept = {name: kept_bytes(model.train(), image) for name, model in models.items()}
    ratio = kept["ours"] / kept["eager"]
    print(
        f"kept for backward by {len(stack)} convolutions at {size} x {size}: ours {kept['ours'] / 2**20:.1f} MiB, "
        f"eager {kept['eager'] / 2**20:.1f} MiB, {ratio:.2f} of it"
    )
    return {"stack": stack, "size": size, "bytes": kept, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    options = common.parse_arguments(__doc__, parser)
    depthwise, middle = [], []
    for threads in options.threads:
        common.use_threads(threads)
        print(common.threads_text(threads))
        depthwise += [measure_depthwise(case, options.repeat) for case in (QUICK if options.quick else CASES)]
        middle.append(measure_middle(QUICK[0] if options.quick else MIDDLE, options.repeat))
    stack = [(8, 16, 2), (16, 16, 2)] if options.quick else STACK
    memory = measure_memory(stack, 17 if options.quick else 65)
    common.write_results(
        "separable_conv_backward", options, {"depthwise": depthwise, "forward_and_backward": middle, "memory": memory}
    )


if __name__ == "__main__":
    main()
