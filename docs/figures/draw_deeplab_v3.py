"""Draw the networks of docs/deeplab_v3.md and docs/deeplab_v3plus.md: their parts, maps and dilations.

    python docs/figures/draw_deeplab_v3.py                 # writes deeplab_v3*.svg beside this file

Channels, sizes and dilations are read from the modules, so the figures show what the factories build.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

import deeplab
from densecrf_cuda import AtrousSeparableConv2d

BACKBONE, HEAD, PLAIN = "#dbe6f3", "#f5e8c8", "#ececec"
STYLE = {"font.size": 8, "svg.hashsalt": "densecrf_cuda", "svg.fonttype": "path"}
SIZE = 513
WIDTH, HEIGHT = 1.24, 0.78
Place = tuple[float, float]


class Network:
    """A model without memory that has seen one image: what its modules gave."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(self._note(name))
        model(torch.zeros(1, 3, SIZE, SIZE, device="meta"))

    def _note(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, arguments: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                self.shapes[name] = tuple(output.shape)

        return note

    def map(self, name: str) -> str:
        """Channels and size of what a module gave."""
        _, channels, height, width = self.shapes[name]
        return f"{channels} × {height}²" if height == width else f"{channels} × {height} × {width}"

    def dilations(self, name: str) -> str:
        """Those of the 3×3 convolutions of a part, each once."""
        part = self.model.get_submodule(name)
        found = [m.dilation[0] for m in part.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        unique = list(dict.fromkeys(found))
        return ("dilations " if len(unique) > 1 else "dilation ") + ", ".join(map(str, unique))

    def separable(self, name: str) -> str:
        """Whether a convolution is separable, in words."""
        return "separable 3×3" if isinstance(self.model.get_submodule(name), AtrousSeparableConv2d) else "3×3"


def box(axes: Axes, place: Place, text: str, colour: str, height: float = HEIGHT) -> Place:
    """A part of the network, its middle at a place, which is returned."""
    x, y = place
    axes.add_patch(
        FancyBboxPatch(
            (x - WIDTH / 2, y - height / 2), WIDTH, height, boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=colour, edgecolor="#555555", linewidth=0.8,
        )
    )  # fmt: skip
    axes.text(x, y, text, ha="center", va="center", fontsize=7)
    return place


def arrow(axes: Axes, start: Place, end: Place, vertical: bool = False) -> None:
    """From the right of one box to the left of another, or from below one to above another."""
    (x, y), (u, v) = start, end
    if vertical:
        tail, head = (x, y - HEIGHT / 2), (u, v + HEIGHT / 2)
    else:
        tail, head = (x + WIDTH / 2, y), (u - WIDTH / 2, v)
    axes.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 0.9})


def chain(axes: Axes, boxes: Sequence[tuple[str, str]], start: Place, step: float) -> list[Place]:
    """Boxes from left to right with arrows between them; where they stand."""
    places = [box(axes, (start[0] + step * i, start[1]), text, colour) for i, (text, colour) in enumerate(boxes)]
    for before, after in pairwise(places):
        arrow(axes, before, after)
    return places


def pyramid(axes: Axes, network: Network, name: str, source: Place, x: float) -> Place:
    """The branches of the pyramid above one another, and its projection."""
    branches = list(network.model.get_submodule(f"{name}.convs").named_children())
    project = (x + 1.75, source[1])
    for index, (key, _) in enumerate(branches):
        if index == 0:
            text = "1×1"
        elif index == len(branches) - 1:
            text = "image pooling\n1×1, resized"
        else:
            text = f"{network.separable(f'{name}.convs.{key}')}\n{network.dilations(f'{name}.convs.{key}')}"
        place = box(axes, (x, source[1] + 0.62 * ((len(branches) - 1) / 2 - index)), text, HEAD, 0.5)
        arrow(axes, source, place)
        arrow(axes, place, project)
    return box(axes, project, f"concatenated\n1×1\n{network.map(f'{name}.project')}", HEAD)


def canvas(width: float, height: float, right: float, low: float, high: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(-0.75, right)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def build(factory: Callable[..., nn.Module], **settings: object) -> Network:
    with torch.device("meta"):
        return Network(factory(**settings))


def draw_v3() -> Figure:
    """The pyramid of v3 on ResNet-101, and the cascade below it."""
    figure, axes = canvas(11, 4.6, 13.3, -3.9, 1.75)
    network = build(deeplab.deeplabv3, backbone="resnet101_beta")

    def stages(network: Network, count: int) -> list[tuple[str, str]]:
        boxes = [(f"image\n3 × {SIZE}²", PLAIN), (f"three 3×3, pool\n{network.map('backbone.maxpool')}", BACKBONE)]
        for stage in range(1, count + 1):
            name = f"backbone.layer{stage}"
            units = list(network.model.get_submodule(name).children())
            last = f"{name}.{len(units) - 1}"
            boxes.append((f"block {stage}\n{network.map(last)}\n{network.dilations(name)}", BACKBONE))
        return boxes

    places = chain(axes, stages(network, 4), (0, 0), 1.55)
    project = pyramid(axes, network, "classifier.0", places[-1], 9.45)
    logits = box(axes, (12.6, 0.45), f"1×1\n{network.map('classifier')}", HEAD)
    out = box(axes, (12.6, -0.75), f"resized\n21 × {SIZE}²", PLAIN)
    arrow(axes, project, (logits[0], logits[1]))
    arrow(axes, logits, out, vertical=True)
    axes.text(-0.6, 1.4, "pyramid, output stride 16", fontsize=9, weight="bold")

    cascade = build(deeplab.deeplabv3, backbone="resnet101_beta", cascade=7, multi_grid=(1, 2, 1))
    axes.text(-0.6, -2.2, "cascade, multi-grid 1, 2, 1", fontsize=9, weight="bold")
    head = [(f"1×1\n{cascade.map('classifier')}", HEAD)]
    chain(axes, stages(cascade, 7) + head, (0, -3.1), 1.4)
    return figure


def draw_v3plus() -> Figure:
    """v3+ on Xception-65: the low-level map leaves the entry flow, the decoder brings the pyramid to its size."""
    figure, axes = canvas(11, 4.3, 13.3, -3.3, 1.75)
    network = build(deeplab.deeplabv3plus)
    backbone = [
        (f"image\n3 × {SIZE}²", PLAIN),
        (f"two 3×3\n{network.map('backbone.stem')}", BACKBONE),
        (f"entry block 1\n{network.map('backbone.entry.0.conv3')}", BACKBONE),
        (f"entry block 2\n{network.map('backbone.entry.1.conv3')}", BACKBONE),
        (f"entry block 3\n{network.map('backbone.entry.2.conv3')}", BACKBONE),
        (f"16 middle blocks\n{network.map('backbone.middle')}\n{network.dilations('backbone.middle')}", BACKBONE),
        (f"2 exit blocks\n{network.map('backbone.exit')}\n{network.dilations('backbone.exit')}", BACKBONE),
    ]
    places = chain(axes, backbone, (0, 0), 1.42)
    project = pyramid(axes, network, "classifier.aspp", places[-1], 10.75)
    low, tap = (places[2][0], -2.4), network.map("backbone.entry.1.conv2")
    box(axes, low, f"1×1\n{network.map('classifier.project')}", HEAD)
    arrow(axes, places[3], low, vertical=True)
    axes.text(low[0] + 1.0, -1.2, f"low-level map\n{tap}", ha="left", va="center", fontsize=7)
    context = box(axes, (project[0], -2.4), "resized to the\nlow-level map", HEAD)
    arrow(axes, project, context, vertical=True)
    joined, first, second, logits, out = (low[0] + 1.42 * step for step in range(1, 6))
    convs = f"{network.separable('classifier.convs.0')}\n"
    row = [
        ("concatenated", joined),
        (f"{convs}{network.map('classifier.convs.0')}", first),
        (f"{convs}{network.map('classifier.convs.1')}", second),
        (f"1×1\n{network.map('classifier.logits')}", logits),
    ]
    spots = [box(axes, (x, -2.4), text, HEAD) for text, x in row]
    for before, after in zip([low, *spots], spots):
        arrow(axes, before, after)
    arrow(axes, spots[-1], box(axes, (out, -2.4), f"resized\n21 × {SIZE}²", PLAIN))
    axes.annotate(
        "", (joined, -2.4 - HEIGHT / 2), (context[0], context[1] - HEIGHT / 2),
        arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 0.9, "connectionstyle": "bar,fraction=-0.06"},
    )  # fmt: skip
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder, default: beside this file")
    folder = parser.parse_args(arguments).output
    with matplotlib.rc_context(STYLE):
        for name, draw in (("deeplab_v3.svg", draw_v3), ("deeplab_v3plus.svg", draw_v3plus)):
            draw().savefig(folder / name, metadata={"Date": None})


if __name__ == "__main__":
    main()
