"""`densecrf refine`: labels, probabilities or logits of photos, refined to their edges."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from . import options
from .errors import UsageError, one_line, reported
from .files import Job, Target, beside, companion, list_photos, select_jobs
from .labels import LabelStyle, parse_code, read_labels, restyled, score_style
from .options import Model
from .pictures import read_photo
from .pipeline import Example, Overlay, Refiner, run_jobs
from .scores import LAYOUTS, read_scores

__all__ = ["SAVED", "Evidence", "overlay_target", "refine", "run"]

SAVED = {".png": "labels", ".npy": "probabilities", ".npz": "probabilities"}
_LABEL_SUFFIXES = {".png", ".bmp", ".gif", ".tif", ".tiff"}


class Evidence:
    """What is known of the labels: the one of --labels, --probs and --logits that is given, and how it is read.

    Raises:
        UsageError: none of them, or several.
    """

    def __init__(
        self,
        labels: Path | None,
        probs: Path | None,
        logits: Path | None,
        *,
        unsure_label: str = "auto",
        num_classes: int | None = None,
        layout: str = "auto",
        key: str | None = None,
        palette: str = "keep",
        exif: bool = True,
    ) -> None:
        given = {name: path for name, path in (("labels", labels), ("probs", probs), ("logits", logits)) if path}
        if len(given) != 1:
            raise UsageError(f"one of --labels, --probs and --logits is needed, got {len(given)}")
        if layout not in LAYOUTS:
            raise UsageError(f"--layout must be {', '.join(LAYOUTS)}, got {layout}")
        options.check_palette(palette)
        if unsure_label not in ("auto", "none"):
            parse_code("--unsure-label", unsure_label)
        self.kind, self.path = next(iter(given.items()))
        self._labels = partial(read_labels, unsure=unsure_label, num_classes=num_classes)
        self._scores = partial(read_scores, kind=self.kind, layout=layout, key=key)
        self.palette, self.exif = palette, exif

    def of(self, photo: Path, many: bool) -> Path:
        """The file that belongs to a photo."""
        suffixes = _LABEL_SUFFIXES if self.kind == "labels" else {".npy", ".npz"}
        return companion(f"--{self.kind}", self.path, photo, suffixes, many)

    def read(self, photo_path: Path, path: Path) -> Example:
        """The photo and its labels or scores; errors name the file at fault."""
        photo = read_photo(photo_path, exif=self.exif)
        try:
            evidence, style = self._read(path, photo)
            return Example(photo, self.kind, evidence, restyled(style, self.palette))
        except Exception as error:
            raise ValueError(f"{path}: {one_line(error)}") from error

    def _read(self, path: Path, photo: np.ndarray) -> tuple[np.ndarray, LabelStyle]:
        if self.kind == "labels":
            return self._labels(path)
        scores = self._scores(path, photo.shape[:2])
        return scores, score_style(len(scores))


def refine(
    images: Annotated[list[Path], typer.Argument(exists=True, metavar="IMAGE", help="Photos, or folders of photos.")],
    out: options.Out,
    labels: options.LabelsPath = None,
    probs: options.ProbsPath = None,
    logits: options.LogitsPath = None,
    gaussian_sxy: options.GaussianSxy = "3",
    gaussian_compat: options.GaussianCompat = "3",
    bilateral_sxy: options.BilateralSxy = "80",
    bilateral_srgb: options.BilateralSrgb = "13",
    bilateral_compat: options.BilateralCompat = "10",
    normalization: options.Normalization = "symmetric",
    iterations: options.Iterations = 10,
    confidence: options.Confidence = 0.7,
    unsure_label: options.UnsureLabel = "auto",
    num_classes: options.NumClasses = None,
    layout: options.Layout = "auto",
    key: options.Key = None,
    format: Annotated[str, typer.Option(metavar="NAME", help="Of the outputs in a folder: png, npy or npz.")] = "png",
    probs_out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Also the probabilities: .npy, .npz, or a folder of .npz.")
    ] = None,
    palette: options.Palette = "keep",
    overlay: options.OverlayPath = None,
    opacity: options.Opacity = 0.5,
    boundaries: options.Boundaries = True,
    overwrite: options.Overwrite = True,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave photos whose outputs exist.")] = False,
    exif: options.Exif = True,
    device: options.Device = "auto",
    threads: options.Threads = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Photos of one size refined at once.")] = 4,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Refine labels or scores of photos to the edges in the photos.

    Files in folders belong together by their names without suffix; {stem} in a path stands for that name, as in
    --labels "masks/{stem}_mask.png". Label pictures keep their kind, palette and values. A photo that fails is named,
    the others go on, and the exit code is 1.
    """
    with reported("refine", debug):
        model = Model(
            gaussian_sxy, gaussian_compat, bilateral_sxy, bilateral_srgb, bilateral_compat, normalization, iterations
        )
        evidence = Evidence(
            labels,
            probs,
            logits,
            unsure_label=unsure_label,
            num_classes=num_classes,
            layout=layout,
            key=key,
            palette=palette,
            exif=exif,
        )
        photos, many = list_photos(images)
        if f".{format}" not in SAVED:
            raise UsageError(f"--format must be png, npy or npz, got {format}")
        targets = [Target("--out", out, SAVED, f".{format}", many)]
        if probs_out is not None:
            kinds = {suffix: kind for suffix, kind in SAVED.items() if kind == "probabilities"}
            targets.append(Target("--probs-out", probs_out, kinds, ".npz", many))
        if overlay is not None:
            targets.append(overlay_target(overlay or beside(out), many))
        jobs = _jobs(photos, evidence, targets, many)
        selected = select_jobs(jobs, overwrite, skip_existing)
        failed = run(
            selected,
            evidence.read,
            model,
            Overlay(opacity, boundaries),
            confidence=confidence,
            device=device,
            threads=threads,
            batch=batch,
            unmatched=len(photos) - len(jobs),
            skipped=len(jobs) - len(selected),
            quiet=quiet,
            debug=debug,
        )
        if failed:
            raise typer.Exit(1)


def run(
    jobs: Sequence[Job],
    read: Callable[[Path, Path], Example],
    model: Model,
    drawing: Overlay,
    *,
    confidence: float,
    device: str,
    threads: int | None,
    batch: int = 1,
    unmatched: int = 0,
    skipped: int = 0,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Run jobs, say on stderr how it went, and return how many failed, those included that had nothing to run on."""
    if not 0 < confidence <= 1:
        raise UsageError(f"--confidence must be in (0, 1], got {confidence}")
    options.use_threads(threads)
    wanted = {output.kind for job in jobs for output in job.outputs}
    output = "probabilities" if "probabilities" in wanted else "labels"
    refiner = Refiner(model, options.choose_device(device), confidence, output)
    begin = time.perf_counter()
    failed = unmatched + run_jobs(
        jobs, lambda job: read(job.photo, job.evidence), refiner, drawing, batch=batch, quiet=quiet, debug=debug
    )
    if not quiet:
        seconds = time.perf_counter() - begin
        count = len(jobs) + unmatched
        photos = "1 photo" if count == 1 else f"{count} photos"
        rest = f", {failed} failed" * bool(failed) + f", {skipped} skipped" * bool(skipped)
        typer.echo(f"densecrf: {photos} on {refiner.device} in {seconds:.2f} s{rest}", err=True)
    return failed


def overlay_target(spec: str, many: bool) -> Target:
    """Where overlays go."""
    return Target("--overlay", spec, dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), "overlay"), ".png", many)


def _jobs(photos: Sequence[Path], evidence: Evidence, targets: Sequence[Target], many: bool) -> list[Job]:
    """The jobs of the photos to which a file belongs; of the others it is said."""
    jobs = []
    for photo in photos:
        try:
            path = evidence.of(photo, many)
        except ValueError as error:
            typer.echo(f"densecrf: {photo}: {one_line(error)}", err=True)
            continue
        jobs.append(Job(photo, path, tuple(target.output(photo) for target in targets)))
    return jobs
