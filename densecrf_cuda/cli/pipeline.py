"""Photos through the CRF: files are read ahead and written behind in threads, and those of one shape go in batches."""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from densecrf_cuda import DenseCRF, unary_from_labels, unary_from_logits, unary_from_probabilities

from .errors import one_line
from .files import Job, atomic_write
from .labels import LabelStyle
from .options import Model
from .pictures import overlay

__all__ = ["Example", "Overlay", "Refiner", "run_jobs", "unary_of"]

# Decoding and encoding release the interpreter lock, and two threads of each keep pace with the CRF.
THREADS = 2


@dataclass(frozen=True)
class Example:
    """One photo with what is known of its labels.

    Attributes:
        photo: [H, W, 3] on 0 to 255.
        kind: "labels", "probs" or "logits".
        evidence: classes [H, W] (-1: unsure), or scores [C, H, W].
        style: of its C labels.
    """

    photo: np.ndarray
    kind: str
    evidence: np.ndarray
    style: LabelStyle

    def __post_init__(self) -> None:
        size, own = self.photo.shape[:2], self.evidence.shape[-2:]
        if own != size:
            hint = (
                ": width and height look swapped, is it the EXIF orientation (--no-exif)?" if own == size[::-1] else ""
            )
            raise ValueError(f"labels must have the size of the photo, {_by(size)}, got {_by(own)}{hint}")

    def shape(self) -> tuple[object, ...]:
        """What the examples of a batch have in common."""
        return self.photo.shape, self.photo.dtype, self.evidence.shape, self.style.num_classes


@dataclass(frozen=True)
class Overlay:
    """How overlays are drawn."""

    opacity: float = 0.5
    boundaries: bool = True


def unary_of(kind: str, evidence: Tensor, num_classes: int, confidence: float) -> Tensor:
    """The energies [..., C, H, W] of labels, probabilities or logits."""
    if kind == "labels":
        return unary_from_labels(evidence, num_classes, confidence, unsure_label=-1)
    return unary_from_probabilities(evidence) if kind == "probs" else unary_from_logits(evidence)


class Refiner:
    """Runs the CRF on batches of examples; one module for each number of classes.

    Args:
        model: what the command line describes.
        device: where it is computed.
        confidence: probability that a label is right.
        output: "labels" or "probabilities".
    """

    def __init__(self, model: Model, device: torch.device, confidence: float, output: str) -> None:
        self.model, self.device, self.confidence, self.output = model, device, confidence, output
        self._crfs: dict[int, DenseCRF] = {}

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example]) -> np.ndarray:
        """Labels [B, H, W] or probabilities [B, C, H, W] of examples of one shape."""
        first, num_classes = examples[0], examples[0].style.num_classes
        if num_classes not in self._crfs:
            self._crfs[num_classes] = self.model.crf(num_classes).to(self.device)
        crf = self._crfs[num_classes]
        images = self._stack([example.photo for example in examples]).permute(0, 3, 1, 2)
        evidence = self._stack([example.evidence for example in examples])
        unary = unary_of(first.kind, evidence, num_classes, self.confidence)
        result = crf(unary, images, output=self.output).cpu()
        crf.check()
        return result.numpy()

    def _stack(self, arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device)


def run_jobs(
    jobs: Sequence[Job],
    read: Callable[[Job], Example],
    refine: Callable[[Sequence[Example]], np.ndarray],
    drawing: Overlay,
    *,
    batch: int,
    quiet: bool,
    debug: bool,
) -> int:
    """Read, refine and write; what fails is reported by the name of its photo, and the others go on.

    Args:
        jobs: in any number.
        read: the example of a job.
        refine: labels or probabilities of examples of one shape.
        drawing: how overlays are drawn.
        batch: the most examples that are refined at once.
        quiet: no progress bar.
        debug: tracebacks of what fails.

    Returns:
        how many failed.
    """
    # tqdm: None is on at a terminal only
    progress = tqdm(total=len(jobs), unit="photo", disable=True if quiet else None, file=sys.stderr)
    report = _Report(progress, debug)
    with progress, ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers:
        writing: dict[Future[None], Job] = {}
        for group in _batches(_read_ahead(readers, jobs, read, 2 * batch, report), batch):
            for job, example, result in _refine(refine, group, report):
                writing[writers.submit(_write, job, example, result, drawing)] = job
            while len(writing) > 2 * batch:
                _collect(writing, report)
        while writing:
            _collect(writing, report)
    return report.failures


class _Report:
    """Counts what is done, and says what fails."""

    def __init__(self, progress: tqdm, debug: bool) -> None:
        self.progress, self.debug, self.failures = progress, debug, 0

    def done(self, job: Job, error: BaseException | None) -> None:
        self.progress.update()
        if error is None:
            return
        self.failures += 1
        with tqdm.external_write_mode(file=sys.stderr):
            if self.debug:
                traceback.print_exception(error)
            print(f"densecrf: {job.photo}: {one_line(error)}", file=sys.stderr)


def _read_ahead(
    readers: ThreadPoolExecutor, jobs: Sequence[Job], read: Callable[[Job], Example], depth: int, report: _Report
) -> Iterator[tuple[Job, Example]]:
    """The examples in the order of the jobs; `depth` of them are being read at a time."""
    reading: deque[tuple[Job, Future[Example]]] = deque()
    remaining = iter(jobs)
    while True:
        while len(reading) < depth and (job := next(remaining, None)) is not None:
            reading.append((job, readers.submit(read, job)))
        if not reading:
            return
        job, future = reading.popleft()
        if (error := future.exception()) is not None:
            report.done(job, error)
        else:
            yield job, future.result()


def _batches(examples: Iterator[tuple[Job, Example]], batch: int) -> Iterator[list[tuple[Job, Example]]]:
    """Groups of one shape; at most 4 · batch examples wait for others of theirs."""
    waiting: dict[tuple[object, ...], list[tuple[Job, Example]]] = {}
    for job, example in examples:
        group = waiting.setdefault(example.shape(), [])
        group.append((job, example))
        if len(group) == batch:
            yield waiting.pop(example.shape())
        elif sum(map(len, waiting.values())) >= 4 * batch:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _refine(
    refine: Callable[[Sequence[Example]], np.ndarray], group: list[tuple[Job, Example]], report: _Report
) -> Iterator[tuple[Job, Example, np.ndarray]]:
    """The results of a group; if it fails as a whole, those of its members one by one."""
    try:
        results = refine([example for _, example in group])
    except Exception as error:
        if len(group) == 1:
            report.done(group[0][0], error)
            return
    else:
        yield from ((job, example, result) for (job, example), result in zip(group, results))
        return
    for member in group:
        yield from _refine(refine, [member], report)


def _write(job: Job, example: Example, result: np.ndarray, drawing: Overlay) -> None:
    is_labels = result.ndim == 2
    classes = result if is_labels else result.argmax(0)
    for output in job.outputs:
        with atomic_write(output.path) as file:
            if output.kind == "labels":
                example.style.save(classes, file)
            elif output.kind == "overlay":
                picture = overlay(
                    example.photo,
                    classes,
                    example.style.colours(),
                    opacity=drawing.opacity,
                    boundaries=drawing.boundaries,
                )
                Image.fromarray(picture).save(file, format=Image.registered_extensions()[output.path.suffix.lower()])
            elif output.path.suffix.lower() == ".npy":
                np.save(file, result)
            else:
                np.savez_compressed(file, probabilities=result, labels=example.style.labels())


def _collect(writing: dict[Future[None], Job], report: _Report) -> None:
    """Wait until some are written."""
    done, _ = wait(writing, return_when=FIRST_COMPLETED)
    for future in done:
        report.done(writing.pop(future), future.exception())


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
