"""`densecrf segment`: every pixel of a photo, from a few strokes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .errors import reported
from .files import Job, Target, beside, select_jobs
from .labels import parse_code, read_scribbles, restyled
from .options import Model
from .pictures import read_photo
from .pipeline import Example, Overlay
from .refine import SAVED, overlay_target, run

__all__ = ["segment"]


def segment(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="IMAGE", help="The photo.")],
    scribbles: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="PATH",
            help="Strokes: palette or grey levels, 0 = nothing, or colours on a transparent or plain background.",
        ),
    ],
    out: options.Out,
    background: Annotated[
        str, typer.Option(metavar="COLOUR", help="Of coloured strokes: #rrggbb, or auto: the commonest colour.")
    ] = "auto",
    gaussian_sxy: options.GaussianSxy = "3",
    gaussian_compat: options.GaussianCompat = "3",
    bilateral_sxy: options.BilateralSxy = "80",
    bilateral_srgb: options.BilateralSrgb = "13",
    bilateral_compat: options.BilateralCompat = "10",
    normalization: options.Normalization = "symmetric",
    iterations: options.Iterations = 10,
    confidence: options.Confidence = 0.95,
    palette: options.Palette = "keep",
    overlay: options.OverlayPath = None,
    opacity: options.Opacity = 0.5,
    boundaries: options.Boundaries = True,
    overwrite: options.Overwrite = True,
    exif: options.Exif = True,
    device: options.Device = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Segment a photo from scribbles.

    Each colour, index or grey level of the strokes is a label, and the output has the same ones.
    """
    with reported("segment", debug):
        model = Model(
            gaussian_sxy, gaussian_compat, bilateral_sxy, bilateral_srgb, bilateral_compat, normalization, iterations
        )
        options.check_palette(palette)
        if background != "auto":
            parse_code("--background", background)
        targets = [Target("--out", out, SAVED, ".png", False)]
        if overlay is not None:
            targets.append(overlay_target(overlay or beside(out), False))
        job = Job(image, scribbles, tuple(target.output(image) for target in targets))

        def read(photo: Path, strokes: Path) -> Example:
            classes, style = read_scribbles(strokes, background)
            return Example(read_photo(photo, exif=exif), "labels", classes, restyled(style, palette))

        failed = run(
            select_jobs([job], overwrite, False),
            read,
            model,
            Overlay(opacity, boundaries),
            confidence=confidence,
            device=device,
            threads=threads,
            quiet=quiet,
            debug=debug,
        )
        if failed:
            raise typer.Exit(1)
