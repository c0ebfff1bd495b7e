"""Which file belongs to which photo, and files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import UsageError

__all__ = ["Job", "Output", "Target", "atomic_write", "companion", "list_photos", "select_jobs"]

PHOTOS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
STEM = "{stem}"


@dataclass(frozen=True)
class Output:
    """A file to be written; kind is "labels", "probabilities" or "overlay"."""

    kind: str
    path: Path


@dataclass(frozen=True)
class Job:
    """A photo, the file of what is known of its labels, and what is to be written."""

    photo: Path
    evidence: Path
    outputs: tuple[Output, ...]


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content appears at the path when the block ends, and leaves nothing there if it fails.

    It is written to a hidden file in the same folder, which then takes the name; an existing file is replaced, and
    stays as it was until then. Folders are made where missing, links are followed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "file"
        >>> with atomic_write(path) as stream:
        ...     _ = stream.write(b"whole")
        >>> path.read_bytes(), len(list(path.parent.iterdir()))
        (b'whole', 1)
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def list_photos(arguments: Sequence[Path]) -> tuple[list[Path], bool]:
    """The photos among files and folders, and whether outputs go to a folder: several arguments, or a folder."""
    photos: list[Path] = []
    for argument in arguments:
        if argument.is_dir():
            found = sorted(p for p in argument.iterdir() if p.suffix.lower() in PHOTOS and not p.name.startswith("."))
            if not found:
                raise UsageError(f"the folder {argument} has no photo ({', '.join(sorted(PHOTOS))})")
            photos += found
        else:
            photos.append(argument)
    return photos, len(arguments) > 1 or arguments[0].is_dir()


def companion(option: str, spec: Path, photo: Path, suffixes: set[str], many: bool) -> Path:
    """The file that belongs to a photo: the one named, the one of a pattern with {stem}, or that stem in a folder.

    Raises:
        UsageError: one file for several photos.
        ValueError: a folder that has none of that stem, or several.
    """
    if STEM in str(spec):
        return Path(str(spec).replace(STEM, photo.stem))
    if not spec.exists():
        raise UsageError(f"{option} {spec} does not exist")
    if not spec.is_dir():
        if many:
            raise UsageError(f"several photos need a folder or a pattern with {STEM} for {option}, got {spec}")
        return spec
    found = sorted(spec / (photo.stem + suffix) for suffix in suffixes if (spec / (photo.stem + suffix)).is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or f"no {photo.stem} with {', '.join(sorted(suffixes))}"
        raise ValueError(f"the folder {spec} must have one file of that name, it has {names}")
    return found[0]


def is_folder(spec: str) -> bool:
    """Whether a path for outputs means a folder: one without suffix, or with a slash at its end, or that is one."""
    path = Path(spec)
    return STEM not in spec and (path.is_dir() or spec.endswith(("/", os.sep)) or not path.suffix)


def beside(spec: str) -> str:
    """Where overlays go that no path is named for: next to the outputs, as NAME_overlay.png.

    Example:
        >>> beside("out/cat.png"), beside("out/")
        ('out/cat_overlay.png', 'out/{stem}_overlay.png')
    """
    if is_folder(spec):
        return str(Path(spec) / f"{STEM}_overlay.png")
    return str(Path(spec).with_suffix("")) + "_overlay.png"


class Target:
    """Where outputs of one option go: a file, a folder (made where missing), or a pattern with {stem}.

    Args:
        option: its name, for errors.
        spec: what was given: a path whose suffix is among `kinds` is a file, one without suffix, or with a slash at
            its end, or that exists as one, is a folder.
        kinds: what each suffix holds.
        suffix: of the files in a folder.
        many: there are several photos.
    """

    def __init__(self, option: str, spec: str, kinds: dict[str, str], suffix: str, many: bool) -> None:
        path = Path(spec)
        self._is_folder = is_folder(spec)
        self._spec, self._suffix = spec, suffix
        own = suffix if self._is_folder else path.suffix.lower()
        if own not in kinds:
            hint = "; a folder ends with /" if not self._is_folder else ""
            raise UsageError(f"{option} must end in {', '.join(kinds)}, got {spec}{hint}")
        if many and not self._is_folder and STEM not in spec:
            raise UsageError(f"several photos need a folder or a pattern with {STEM} for {option}, got {spec}")
        self._kind = kinds[own]

    def output(self, photo: Path) -> Output:
        """The output for a photo."""
        if self._is_folder:
            return Output(self._kind, Path(self._spec) / (photo.stem + self._suffix))
        return Output(self._kind, Path(self._spec.replace(STEM, photo.stem)))


def select_jobs(jobs: Sequence[Job], overwrite: bool, skip_existing: bool) -> list[Job]:
    """The jobs to run, after a look at their outputs.

    Raises:
        UsageError: two outputs of one name, an output that is an input, one that exists where neither overwriting nor
            skipping is allowed.
    """
    inputs = {os.path.realpath(path) for job in jobs for path in (job.photo, job.evidence)}
    seen: dict[str, Job] = {}
    for job in jobs:
        for output in job.outputs:
            path = os.path.realpath(output.path)
            if path in inputs:
                raise UsageError(f"{output.path} is an input, it is not overwritten")
            if path in seen:
                raise UsageError(f"{output.path} would be written twice, for {seen[path].photo} and {job.photo}")
            seen[path] = job
    if skip_existing:
        return [job for job in jobs if not all(output.path.exists() for output in job.outputs)]
    if overwrite:
        return list(jobs)
    existing = [output.path for job in jobs for output in job.outputs if output.path.exists()]
    if existing:
        more = f", and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(f"{existing[0]} exists{more}, and --no-overwrite forbids to replace it")
    return list(jobs)
