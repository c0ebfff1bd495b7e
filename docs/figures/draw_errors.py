"""Draw the figure of docs/accuracy.md: where the lattice differs from the Gaussian, and for which bandwidths.

    python docs/figures/draw_errors.py                  # writes lattice_errors.png beside this file; half a minute

The photo comes with scikit-image and is averaged down to 60 × 80 pixels, as in benchmarks/lattice_error.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import skimage.data
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from densecrf_cuda import dense_filter, permutohedral_filter

SXY = 80.0
SRGB = (3.0, 6.0, 13.0, 30.0, 80.0)
SHOWN = 13.0
NORMALIZATIONS = {"symmetric": "-", "after": "--"}


def filtered(photo: Tensor, srgb: float, values: Tensor, normalization: str) -> tuple[Tensor, Tensor]:
    """Values filtered by the lattice and exactly: [C, H, W] each."""
    y, x = torch.meshgrid(*(torch.arange(size).float() for size in photo.shape[1:]), indexing="ij")
    features = torch.cat([torch.stack([x, y]) / SXY, photo / srgb])
    lattice = permutohedral_filter(values, features, normalization=normalization)
    return lattice, dense_filter(values, features, normalization=normalization)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder, default: beside this file")
    parser.add_argument("--height", type=int, default=60)
    parser.add_argument("--width", type=int, default=80)
    options = parser.parse_args(arguments)
    full = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float()
    photo = interpolate(full, (options.height, options.width), mode="area")[0]
    grey = photo.mean(0, keepdim=True)
    mask, ones = (grey > grey.median()).float(), torch.ones_like(grey)

    figure = Figure(figsize=(11, 2.6), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=[1, 1.15, 1.15, 1.3])
    panels[0].imshow((photo / 255).permute(1, 2, 0).numpy())
    panels[0].set_title("photo", fontsize=9)
    lattice, exact = filtered(photo, SHOWN, ones, "none")
    drawn = panels[1].imshow((lattice / exact)[0].numpy(), cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=panels[1], shrink=0.8)
    panels[1].set_title("row sums, share of the exact ones", fontsize=9)
    lattice, exact = filtered(photo, SHOWN, mask, "symmetric")
    drawn = panels[2].imshow((lattice - exact)[0].numpy(), cmap="RdBu", vmin=-0.1, vmax=0.1)
    figure.colorbar(drawn, ax=panels[2], shrink=0.8)
    panels[2].set_title("error of a filtered mask, symmetric", fontsize=9)
    for axes in panels[:3]:
        axes.set(xticks=[], yticks=[])
    for normalization, style in NORMALIZATIONS.items():
        pairs = [filtered(photo, srgb, mask, normalization) for srgb in SRGB]
        errors = [(lattice - exact).abs().mean().item() for lattice, exact in pairs]
        panels[3].plot(SRGB, errors, style, marker=".", label=normalization)
    panels[3].set(xscale="log", xlabel="srgb", ylim=(0, None))
    panels[3].set_title("mean error of a filtered mask", fontsize=9)
    panels[3].set_xticks(SRGB, [f"{srgb:g}" for srgb in SRGB], fontsize=7)
    panels[3].minorticks_off()
    panels[3].legend(fontsize=7)
    figure.savefig(options.output / "lattice_errors.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
