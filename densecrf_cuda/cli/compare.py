"""`densecrf compare`: the lattice, the exact filter and pydensecrf on one photo."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from densecrf_cuda import Bilateral

from . import options
from .errors import UsageError, reported
from .options import Model
from .pipeline import Example, unary_of
from .refine import Evidence

__all__ = ["compare"]


@dataclass(frozen=True)
class Problem:
    """Energies [C, H, W] and a photo [3, H, W], on the device."""

    unary: torch.Tensor
    image: torch.Tensor

    @property
    def num_classes(self) -> int:
        """C."""
        return self.unary.shape[0]

    @property
    def pixels(self) -> int:
        """H · W."""
        return self.unary[0].numel()


def compare(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="IMAGE", help="The photo.")],
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
    reduce: Annotated[int, typer.Option(min=1, metavar="N", help="Take every Nth pixel of every Nth row.")] = 1,
    max_dense_pixels: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="The most pixels for the exact filter, whose time grows with their square."
        ),
    ] = 10000,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs of which times are medians; the exact filter runs once.")
    ] = 5,
    exif: options.Exif = True,
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare the lattice, the exact filter and pydensecrf.

    All that can run here infer Q of one photo; the exact filter if the photo is small, pydensecrf if it is installed.
    """
    with reported("compare", debug):
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
            exif=exif,
        )
        if not 0 < confidence <= 1:
            raise UsageError(f"--confidence must be in (0, 1], got {confidence}")
        options.use_threads(threads)
        chosen = options.choose_device(device)
        example = evidence.read(image, evidence.of(image, many=False))
        problem = _problem(example, reduce, confidence, chosen)
        results = _measure(problem, model, max_dense_pixels, repeats)
        report = {
            "image": str(image),
            "height": problem.unary.shape[1],
            "width": problem.unary.shape[2],
            "classes": problem.num_classes,
            "iterations": iterations,
            "device": str(chosen),
            "threads": torch.get_num_threads(),
            "methods": {
                name: {"seconds": run.seconds, "runs": run.runs, "skipped": run.skipped}
                for name, run in results.items()
            },
            "differences": _differences(results),
        }
        typer.echo(json.dumps(report, indent=2) if as_json else _table(report))


@dataclass(frozen=True)
class Run:
    """Q [C, N] of one method and its median time; None and why where it did not run."""

    q: np.ndarray | None
    seconds: float | None
    runs: int
    skipped: str | None


def _problem(example: Example, reduce: int, confidence: float, device: torch.device) -> Problem:
    evidence = torch.from_numpy(np.ascontiguousarray(example.evidence[..., ::reduce, ::reduce])).to(device)
    photo = torch.from_numpy(np.ascontiguousarray(example.photo[::reduce, ::reduce])).to(device)
    return Problem(unary_of(example.kind, evidence, example.style.num_classes, confidence), photo.permute(2, 0, 1))


def _measure(problem: Problem, model: Model, max_dense_pixels: int, repeats: int) -> dict[str, Run]:
    def ours(filter: str) -> Callable[[], np.ndarray]:
        crf = model.crf(problem.num_classes, filter).to(problem.unary.device)

        def infer() -> np.ndarray:
            with torch.no_grad():
                q = crf(problem.unary, problem.image)
            return q.flatten(1).cpu().numpy()  # .cpu() waits for the device

        return infer

    runs = {"lattice": _timed(ours("lattice"), repeats)}
    if problem.pixels > max_dense_pixels:
        why = f"{problem.pixels} pixels, more than --max-dense-pixels {max_dense_pixels}; --reduce N keeps every Nth"
        runs["dense"] = Run(None, None, 0, why)
    else:
        runs["dense"] = _timed(ours("dense"), 1)
    try:
        import pydensecrf.densecrf as peer
    except ImportError as error:
        runs["pydensecrf"] = Run(None, None, 0, f"not installed ({error})")
        return runs
    if model.normalization_name() == "homogeneous":
        runs["pydensecrf"] = Run(None, None, 0, "it has no homogeneous normalization")
    else:
        runs["pydensecrf"] = _timed(lambda: _with_pydensecrf(peer, problem, model), repeats)
    return runs


def _timed(infer: Callable[[], np.ndarray], repeats: int) -> Run:
    """The median of several runs; the first is not counted where there are several."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        begin = time.perf_counter()
        q = infer()
        times.append(time.perf_counter() - begin)
    return Run(q, statistics.median(times[repeats > 1 :]), repeats, None)


def _with_pydensecrf(peer: Any, problem: Problem, model: Model) -> np.ndarray:
    height, width = problem.unary.shape[1:]
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    colours = problem.image.cpu().numpy().reshape(3, -1)
    name = model.normalization_name()
    crf = peer.DenseCRF(problem.pixels, problem.num_classes)
    crf.setUnaryEnergy(problem.unary.flatten(1).cpu().numpy().astype(np.float32, order="C"))
    for kernel in model.kernels():
        coordinates = np.stack([x.ravel(), y.ravel()]) / np.reshape(kernel.bandwidths["sxy"], (-1, 1))
        parts = [coordinates]
        if isinstance(kernel, Bilateral):
            parts.append(colours / np.reshape(kernel.bandwidths["srgb"], (-1, 1)))
        crf.addPairwiseEnergy(
            np.concatenate(parts).astype(np.float32, order="C"),
            compat=kernel.compat if isinstance(kernel.compat, float) else np.array(kernel.compat, np.float32),
            normalization=getattr(peer, "NO_NORMALIZATION" if name == "none" else f"NORMALIZE_{name.upper()}"),
        )
    return np.array(crf.inference(model.iterations)).reshape(problem.num_classes, -1)


def _differences(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Of every two methods that ran: the largest and the mean |ΔQ|, and the pixels whose labels differ."""
    rows = []
    for (name, run), (other_name, other) in combinations(runs.items(), 2):
        if run.q is None or other.q is None:
            continue
        gap = np.abs(run.q - other.q)
        labels = int((run.q.argmax(0) != other.q.argmax(0)).sum())
        rows.append(
            {
                "methods": [name, other_name],
                "max": float(gap.max()),
                "mean": float(gap.mean()),
                "labels": labels,
                "labels_share": labels / gap.shape[1],
            }
        )
    return rows


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['width']} x {report['height']} pixels, {report['classes']} classes, {report['iterations']} "
        f"iterations on {report['device']}, threads: {report['threads']}",
        "",
        f"{'method':<12}{'time':>12}{'runs':>6}",
    ]
    for name, run in report["methods"].items():
        took = (
            f"{1e3 * run['seconds']:>9.1f} ms{run['runs']:>6}"
            if run["skipped"] is None
            else f"   left out: {run['skipped']}"
        )
        lines.append(f"{name:<12}{took}")
    lines += ["", f"{'difference':<24}{'max |dQ|':>10}{'mean |dQ|':>11}{'other labels':>20}"]
    for row in report["differences"]:
        labels = f"{row['labels']} ({row['labels_share']:.2%})"
        lines.append(f"{' - '.join(row['methods']):<24}{row['max']:>10.1e}{row['mean']:>11.1e}{labels:>20}")
    return "\n".join(lines)
