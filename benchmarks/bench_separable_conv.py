"""The atrous separable convolution against PyTorch's two convolutions, and against the product alone, layer by layer.

    python benchmarks/bench_separable_conv.py
    python benchmarks/bench_separable_conv.py --quick

Layers of DeepLabv3+ with Xception-65 and MobileNetV2 for pictures of 513 x 513 points, float32, batch 1, inference.
The sides are this operator and `F.conv2d` twice, each in both layouts, and `torch.mm` of the pointwise part: a matrix
product of the same size, which nothing that computes the layer can undercut by much. Results are compared before
anything is timed. Operations are those of both convolutions, bytes those of input, weights and output, moved once.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common

from densecrf_cuda import atrous_separable_conv2d

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
TOLERANCE = 1e-4  # relative to the largest entry: float32 sums of up to 2048 products
TAPS = 9


class Case(NamedTuple):
    name: str
    channels: int
    out_channels: int
    size: int
    dilation: int

    def operations(self) -> int:
        return 2 * self.size**2 * self.channels * (self.out_channels + TAPS)

    def bytes(self) -> int:
        pixels, weights = self.size**2, self.channels * (self.out_channels + TAPS)
        return 4 * (pixels * (self.channels + self.out_channels) + weights)


CASES = [
    Case("entry flow", 256, 256, 129, 1),
    Case("middle flow, output stride 16", 728, 728, 33, 1),
    Case("middle flow, output stride 8", 728, 728, 65, 2),
    Case("exit flow", 1536, 2048, 33, 2),
    Case("ASPP", 2048, 256, 33, 6),
    Case("ASPP", 2048, 256, 33, 12),
    Case("ASPP", 2048, 256, 33, 18),
    Case("decoder", 304, 256, 129, 1),
    Case("MobileNetV2", 960, 320, 33, 2),
]
QUICK = [Case("quick", 40, 24, 17, 6)]


def check_close(ours: Tensor, theirs: Tensor) -> None:
    """Ends the run where two sides differ by more than rounding."""
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not difference <= TOLERANCE:
        sys.exit(f"the two sides do not agree: a result differs by {difference:.1e} of the largest")


def works(case: Case) -> dict[str, Callable[[int], Tensor]]:
    """All sides by name, after a look at whether they agree."""
    generator = torch.Generator().manual_seed(0)
    c, o, n, dilation = case.channels, case.out_channels, case.size, case.dilation
    depthwise = torch.randn(c, 1, 3, 3, generator=generator) / TAPS**0.5
    pointwise = torch.randn(o, c, 1, 1, generator=generator) / c**0.5
    image = torch.randn(1, c, n, n, generator=generator)
    rows, columns = image[0].flatten(1).t().contiguous(), pointwise[:, :, 0, 0].t()

    def in_layout(layout: torch.memory_format) -> tuple[Callable[[int], Tensor], Callable[[int], Tensor]]:
        x, weight = image.contiguous(memory_format=layout), pointwise.contiguous(memory_format=layout)

        def ours(_: int) -> Tensor:
            return atrous_separable_conv2d(x, depthwise, pointwise, dilation=dilation)

        def theirs(_: int) -> Tensor:
            return F.conv2d(F.conv2d(x, depthwise, None, 1, dilation, dilation, c), weight)

        check_close(ours(0), theirs(0))
        return ours, theirs

    sides: dict[str, Callable[[int], Tensor]] = {}
    for name, layout in LAYOUTS.items():
        sides[f"ours, {name}"], sides[f"pytorch, {name}"] = in_layout(layout)
    sides["mm"] = lambda _: torch.mm(rows, columns)
    return sides


def measure(case: Case, repeat: int) -> dict[str, Any]:
    times = common.time_paired(works(case), repeat)
    median = {name: timing["median"] for name, timing in times.items()}
    best = min(median[f"pytorch, {name}"] for name in LAYOUTS)
    print(f"{case.name}: {case.channels} > {case.out_channels}, {case.size} x {case.size}, dilation {case.dilation}")
    layouts = {}
    for name in LAYOUTS:
        seconds = median[f"ours, {name}"]
        layouts[name] = {
            "gflops": case.operations() / seconds / 1e9,
            "gigabytes_per_second": case.bytes() / seconds / 1e9,
            "speedup": {"same layout": median[f"pytorch, {name}"] / seconds, "better layout": best / seconds},
            "of_product": seconds / median["mm"],
        }
        facts = layouts[name]
        print(
            f"  {name:13}: ours {common.in_ms(times[f'ours, {name}'])}, {facts['gflops']:.0f} GFLOP/s, "
            f"{facts['gigabytes_per_second']:.1f} GB/s; PyTorch {common.in_ms(times[f'pytorch, {name}'])}, "
            f"{facts['speedup']['same layout']:.2f} x ({facts['speedup']['better layout']:.2f} x its better layout); "
            f"{facts['of_product']:.2f} of torch.mm"
        )
    return {**case._asdict(), "threads": torch.get_num_threads(), "seconds": times, "layouts": layouts}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    options = common.parse_arguments(__doc__, parser)
    results = []
    for threads in options.threads:
        common.use_threads(threads)
        print(f"{common.threads_text(threads)}, {common.machine()['processor']}")
        with torch.inference_mode():
            results += [measure(case, options.repeat) for case in (QUICK if options.quick else CASES)]
    common.write_results("separable_conv", options, results)


if __name__ == "__main__":
    main()
