"""Draw the architectures of docs/deeplab_v1.md and docs/deeplab_v2.md; sizes are those that `deeplab.count` finds.

python docs/figures/draw_deeplab_v1_v2.py           # writes deeplab_v1.svg and deeplab_v2.svg beside this file
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import deeplab

PLAIN, DILATED, HEAD, FUSION = "#dbe4f0", "#f1dfb2", "#cfe3d4", "#e6d3e3"
STYLE = {"font.size": 8, "svg.hashsalt": "densecrf_cuda", "svg.fonttype": "path"}
SIZE = 513


class Drawing:
    """Boxes on a canvas in units of a box's width."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.axes: Axes = self.figure.subplots()
        self.axes.set_axis_off()
        self.axes.set_aspect("equal")

    def box(
        self, x: float, y: float, title: str, below: str, colour: str, side: float = 65, width: float = 0.8
    ) -> None:
        """A box as high as the logarithm of the map's side, centred at (x, y)."""
        height = 0.45 * math.log2(max(side, 8)) - 0.9
        frame = FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02", fc=colour, ec="#444444", lw=0.8
        )
        self.axes.add_patch(frame)
        self.axes.text(x, y, title, ha="center", va="center")
        self.axes.text(x, y - height / 2 - 0.12, below, ha="center", va="top", fontsize=6.5, color="#444444")

    def arrow(self, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
        style = {"arrowstyle": "-|>", "color": "#444444", "lw": 0.8, "connectionstyle": f"arc3,rad={bend}"}
        self.axes.annotate("", xy=end, xytext=start, arrowprops=style)

    def finish(self, width: float, bottom: float, top: float) -> Figure:
        self.axes.set(xlim=(-0.6, width), ylim=(bottom, top))
        return self.figure


def counted(name: str, **options: object) -> deeplab.counting.ModelCounts:
    with torch.device("meta"):
        return deeplab.count(deeplab.create_model(name, **options), SIZE)


def shape(counts: deeplab.counting.ModelCounts, layer: str) -> tuple[int, int]:
    """Channels and side of the map of a layer."""
    _, channels, side, _ = counts[layer].shape
    return channels, side


def draw_v1() -> Figure:
    """LargeFOV with the side branches of MSc."""
    counts = counted("deeplabv1_largefov_msc")
    stages = [("conv1", 2, 4), ("conv2", 7, 9), ("conv3", 14, 16), ("conv4", 21, 23), ("conv5", 28, 30)]
    drawing = Drawing(9.2, 3.6)
    drawing.box(0, 0, "image", f"3\n{SIZE}", PLAIN, SIZE)
    for x, (title, conv, pool) in enumerate(stages, 1):
        channels, _ = shape(counts, f"backbone.features.{conv}")
        _, side = shape(counts, f"backbone.features.{pool}")
        dilated = x == 5
        text = f"{title}\npool{x}" + ("\nrate 2" if dilated else "")
        drawing.box(x, 0, text, f"{channels}\n{side}", DILATED if dilated else PLAIN, side * 1.6)
        drawing.arrow((x - 0.58, 0), (x - 0.42, 0))
    for x, name in ((6, "fc6"), (7, "fc7"), (8, "fc8")):
        channels, side = shape(counts, f"classifier.main.{name}")
        text = f"{name}\n3×3\nrate 12" if name == "fc6" else f"{name}\n1×1"
        drawing.box(x, 0, text, f"{channels}\n{side}", DILATED if name == "fc6" else HEAD, side * 1.6)
        drawing.arrow((x - 0.58, 0), (x - 0.42, 0))
    drawing.box(9, 0, "× 8", f"21\n{SIZE}", FUSION, SIZE)
    drawing.arrow((8.42, 0), (8.58, 0))
    drawing.box(10, 0, "dense\nCRF", f"21\n{SIZE}", FUSION, SIZE)
    drawing.arrow((9.42, 0), (9.58, 0))
    for x in range(5):
        start = 1.75 if x == 0 else 1.35
        drawing.axes.plot([x, x, 7.5], [start, 2.5, 2.5], ls="--", color="#444444", lw=0.8, zorder=0)
        drawing.box(x + 0.5, 2.5, "3×3\n1×1", "", HEAD, 24, 0.6)
    drawing.axes.plot([7.5, 7.5], [2.5, 0.25], ls="--", color="#444444", lw=0.8, zorder=0)
    drawing.arrow((7.5, 0.5), (7.5, 0.05))
    drawing.axes.text(6.2, 2.7, "MSc: 5 × 128 channels beside those of fc7", ha="center", fontsize=6.5)
    return drawing.finish(10.6, -2.5, 3.3)


def draw_v2() -> Figure:
    """ResNet-101 with the large pyramid, at three scales."""
    counts = counted("deeplabv2_resnet101_l")
    stages = [
        ("conv1\npool", "backbone.maxpool"),
        ("layer1", "backbone.layer1.2.relu"),
        ("layer2", "backbone.layer2.3.relu"),
        ("layer3\nrate 2", "backbone.layer3.22.relu"),
        ("layer4\nrate 4", "backbone.layer4.2.relu"),
    ]
    drawing = Drawing(9.2, 3.9)
    drawing.box(0, 0, "image", f"3\n{SIZE}", PLAIN, SIZE)
    for x, (title, layer) in enumerate(stages, 1):
        channels = counts[layer].shape[1] if x == 1 else 64 * 2**x
        side = counts[layer].shape[2]
        drawing.box(x, 0, title, f"{channels}\n{side}", DILATED if x > 3 else PLAIN, side * 1.6)
        drawing.arrow((x - 0.58, 0), (x - 0.42, 0))
    for i, rate in enumerate((6, 12, 18, 24)):
        y = 1.95 - 1.3 * i
        drawing.box(6.35, y, f"3×3, rate {rate}", "", HEAD, 16, 1.1)
        drawing.arrow((5.42, 0), (5.78, y))
        drawing.arrow((6.92, y), (7.3, 0))
    channels, side = shape(counts, "classifier.0.conv")
    drawing.box(7.6, 0, "sum", f"{channels}\n{side}", FUSION, 30, 0.5)
    drawing.box(8.6, 0, "max over\nscales\n0.5, 0.75, 1", f"{channels}\n{side}", FUSION, side * 1.6, 1.0)
    drawing.arrow((7.88, 0), (8.08, 0))
    drawing.box(9.7, 0, "× 8", f"21\n{SIZE}", FUSION, SIZE)
    drawing.arrow((9.12, 0), (9.28, 0))
    drawing.box(10.7, 0, "dense\nCRF", f"21\n{SIZE}", FUSION, SIZE)
    drawing.arrow((10.12, 0), (10.28, 0))
    return drawing.finish(11.3, -2.9, 2.7)


FIGURES = {"deeplab_v1.svg": draw_v1, "deeplab_v2.svg": draw_v2}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder, default: beside this file")
    folder = parser.parse_args(arguments).output
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            draw().savefig(folder / name, metadata={"Date": None})


if __name__ == "__main__":
    main()
