"""Draw the figures of docs/lattice.md: the lattice of the plane, its filter step by step, and the kernel that results.

    python docs/figures/draw_lattice.py                 # writes lattice_*.svg beside this file

Everything is computed by `densecrf_cuda.reference`, so the figures show what the operators do.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from torch import Tensor

from densecrf_cuda.reference import lattice_build, lattice_features
from densecrf_cuda.reference.filter import Plan, blur, make_plan, slice_gain, splat
from densecrf_cuda.reference.geometry import elevate, enclose, key_coordinate

COLOURS = ("#2f5d94", "#a67c1a", "#3b7d4f")  # of vertices with remainder 0, 1, 2; of their weights
STYLE = {"font.size": 9, "svg.hashsalt": "densecrf_cuda", "svg.fonttype": "path", "axes.titlesize": 9}
DOUBLE = torch.float64


class Plane:
    """The lattice of a picture's coordinates alone, with where its vertices lie, in units of the bandwidth."""

    def __init__(self, size: int, sxy: float) -> None:
        self.size, self.grid = size, (size, size)
        bandwidth = torch.full((2,), sxy, dtype=DOUBLE)
        guide = torch.zeros(1, 0, size * size)
        self.features = lattice_features(guide, bandwidth, self.grid, True)  # [1, 2, N]
        self.plan: Plan = make_plan(lattice_build(guide, bandwidth, self.grid, True, 3 * size * size), self.grid)
        simplex = enclose(self.features)
        corners = [key_coordinate(simplex.remainder[0, i], simplex.rank[0, i], 2) for i in range(2)]
        self.keys = torch.zeros(self.plan.neighbours.shape[1], 2, dtype=torch.int64)
        self.keys[self.plan.vertex[0].flatten()] = torch.stack(corners, -1).flatten(0, 1)
        self.vertices = place(self.keys)

    def impulse(self, point: int) -> Tensor:
        values = torch.zeros(1, self.size**2, 1, dtype=DOUBLE)
        values[0, point] = 1
        return splat(self.plan, values)

    def slice(self, vertices: Tensor) -> Tensor:
        return (self.plan.weights[0] * vertices[self.plan.vertex[0], 0]).sum(1) * slice_gain(2)


def place(keys: Tensor) -> np.ndarray:
    """Where vertices [M, 2] (the last coordinate is implied) lie in the plane of the features, [M, 2]."""
    full = torch.cat([keys, -keys.sum(1, keepdim=True)], dim=1).to(DOUBLE)
    elevation = elevate(torch.eye(2, dtype=DOUBLE)[None])[0]  # [3, 2]: features to the hyperplane
    return (full @ torch.linalg.pinv(elevation).T).numpy()


def draw_net(axes: Axes, plane: Plane, width: float = 0.6) -> None:
    """The edges of the lattice: every vertex to its neighbour along each of the three axes."""
    back = plane.plan.neighbours[:, :, 0]
    there = back < len(plane.vertices)
    ends = plane.vertices[np.stack([there.nonzero()[:, 1], back[there]])]  # [2, edges, 2]
    gaps = np.full_like(ends[:1], np.nan)
    axes.plot(*np.concatenate([ends, gaps]).transpose(1, 0, 2).reshape(-1, 2).T, color="#c4ccd6", lw=width, zorder=0)


def frame(axes: Axes, centre: Sequence[float], radius: float) -> None:
    axes.set(xlim=(centre[0] - radius, centre[0] + radius), ylim=(centre[1] + radius, centre[1] - radius))
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])


def draw_simplices() -> Figure:
    """The lattice over the pixels, and the weights of one of them."""
    plane = Plane(size=16, sxy=3.0)
    figure = Figure(figsize=(8.4, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    centre = plane.features[0].mean(1).tolist()
    uneven = (plane.plan.weights[0].sort(1).values - torch.tensor([0.2, 0.3, 0.5])).abs().sum(1)
    point = int(uneven[96:160].argmin()) + 96
    draw_net(left, plane)
    left.scatter(*plane.features[0].numpy(), s=4, color="#333333", label="pixels")
    for remainder, colour in enumerate(COLOURS):
        some = plane.vertices[(plane.keys[:, 0] % 3 == remainder).numpy()]
        left.scatter(*some.T, s=44, color=colour, zorder=3, label=f"vertices, remainder {remainder}")
    frame(left, centre, 2.45)
    left.set_title("pixels of a picture, sxy = 3, and the lattice around them")
    left.legend(loc="lower left", fontsize=7, framealpha=1)

    x = plane.features[0, :, point].numpy()
    corners = plane.vertices[plane.plan.vertex[0, point]]
    draw_net(right, plane, width=1.0)
    for k, weight in enumerate(plane.plan.weights[0, point].tolist()):
        others = np.delete(corners, k, axis=0)
        right.add_patch(Polygon(np.vstack([others, x]), closed=True, color=COLOURS[k], alpha=0.45, lw=0))
        right.scatter(*corners[k], s=130, color=COLOURS[k], zorder=3)
        outward = corners[k] + 0.55 * (corners[k] - corners.mean(0))
        key = ", ".join(map(str, plane.keys[plane.plan.vertex[0, point, k]].tolist()))
        right.text(*outward, f"b = {weight:.2f}\nkey ({key})", ha="center", va="center", color=COLOURS[k])
    right.scatter(*x, s=30, color="black", zorder=4)
    frame(right, corners.mean(0).tolist(), 1.25)
    right.set_title("weight of a vertex = area of the opposite triangle")
    return figure


def draw_steps() -> Figure:
    """One pixel of value 1 through splat, the three passes of the blur, and slice."""
    plane = Plane(size=40, sxy=3.0)
    point = 20 * 40 + 21
    values = plane.impulse(point)
    stages = [("splat", values)]
    for axis in range(3):
        only = plane.plan._replace(neighbours=plane.plan.neighbours[axis : axis + 1])
        values = blur(only, values, False)
        stages.append((f"blur along axis {axis}", values))
    figure = Figure(figsize=(10.5, 2.5), layout="constrained")
    panels = figure.subplots(1, 5)
    centre, radius = plane.features[0, :, point].tolist(), 3.4
    for axes, (title, state) in zip(panels, stages):
        draw_net(axes, plane)
        weight = state[:, 0].numpy()
        axes.scatter(*plane.vertices[weight > 0].T, s=220 * weight[weight > 0], color=COLOURS[0], zorder=3)
        for where, number in zip(plane.vertices, weight):
            if number > 0.1:
                axes.text(where[0], where[1] + 0.46, f"{number:.2f}", fontsize=6, ha="center", va="center")
        axes.scatter(*centre, s=7, color="#c03020", zorder=4)
        frame(axes, centre, radius)
        axes.set_title(f"{title} (sum {weight.sum():.2f})")
    result = plane.slice(values).reshape(plane.grid).numpy()
    edge = [-0.5 / 3, (40 - 0.5) / 3]
    panels[4].imshow(result, cmap="Blues", extent=(*edge, *edge[::-1]), interpolation="nearest")
    frame(panels[4], centre, radius)
    panels[4].set_title(f"slice (largest {result.max():.2f})")
    return figure


def draw_kernel() -> Figure:
    """What a pixel gives to the pixels around it, beside the Gaussian."""
    size, sxy = 97, 12.0
    plane = Plane(size, sxy)
    features = plane.features[0].numpy()
    middle = [y * size + x for y in range(42, 56) for x in range(42, 56)]
    best = plane.plan.weights[0].amax(1)
    on_vertex, between = max(middle, key=lambda n: best[n]), min(middle, key=lambda n: best[n])

    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.35])
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    x, y = (axis.reshape(plane.grid) for axis in features)

    def response(point: int) -> np.ndarray:
        return plane.slice(blur(plane.plan, plane.impulse(point), False)).numpy()

    def distance(point: int) -> np.ndarray:
        return np.linalg.norm(features - features[:, point : point + 1], axis=0)

    exact = np.exp(-(distance(between) ** 2) / 2)
    for axes, title, kernel, point in (
        (panels[0], "Gaussian", exact, between),
        (panels[1], "lattice, pixel on a vertex", response(on_vertex), on_vertex),
        (panels[2], "lattice, pixel amid a triangle", response(between), between),
    ):
        drawn = axes.contour(x, y, kernel.reshape(plane.grid), levels, cmap="viridis", linewidths=1.2)
        axes.clabel(drawn, fontsize=6)
        frame(axes, features[:, point].tolist(), 2.6)
        axes.set_title(title)

    edges = np.linspace(0, 3.2, 65)
    responses = np.concatenate([response(point) for point in middle[::5]])
    distances = np.concatenate([distance(point) for point in middle[::5]])
    bins = [responses[(distances >= low) & (distances < high)] for low, high in pairwise(edges)]
    centres = [(low + high) / 2 for low, high, found in zip(edges, edges[1:], bins) if found.size]
    bins = [found for found in bins if found.size]
    profile = panels[3]
    low, high, mean = ([f(found) for found in bins] for f in (np.min, np.max, np.mean))
    profile.fill_between(centres, low, high, color=COLOURS[0], alpha=0.25, label="lattice, from least to most")
    profile.plot(centres, mean, color=COLOURS[0], label="lattice, mean")
    profile.plot(edges, np.exp(-(edges**2) / 2), color="#c03020", ls="--", label="exp(−r² / 2)")
    profile.set(xlabel="distance r, in bandwidths", ylim=(0, 1.05), xlim=(0, 3.2))
    profile.legend(fontsize=7)
    return figure


FIGURES = {
    "lattice_simplices.svg": draw_simplices,
    "lattice_steps.svg": draw_steps,
    "lattice_kernel.svg": draw_kernel,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder, default: beside this file")
    folder = parser.parse_args(arguments).output
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            draw().savefig(folder / name, metadata={"Date": None})


if __name__ == "__main__":
    main()
