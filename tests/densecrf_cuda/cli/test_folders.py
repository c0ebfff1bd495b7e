"""`densecrf refine` on folders: which files belong together, batches, what fails, what is overwritten."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import coarse_classes, invoke, pixels, random_scores, refuse, save_photo, succeed
from PIL import Image

from densecrf_cuda.cli.files import Job, Output
from densecrf_cuda.cli.labels import score_style
from densecrf_cuda.cli.pipeline import Example, Overlay, run_jobs

# Two sizes and two numbers of classes, in an order that no batch can keep.
PHOTOS = {
    "a": ("astronaut", (24, 32), 2),
    "b": ("coffee", (20, 28), 2),
    "c": ("chelsea", (24, 32), 2),
    "d": ("rocket", (24, 32), 3),
    "e": ("coffee", (24, 32), 2),
    "f": ("astronaut", (20, 28), 2),
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Folders `photos` and `labels` of pictures a to f."""
    (tmp_path / "labels").mkdir()
    for stem, (name, size, num_classes) in PHOTOS.items():
        save_photo(tmp_path / "photos" / f"{stem}.png", name, size)
        Image.fromarray(coarse_classes(num_classes, size).astype(np.uint8)).save(tmp_path / "labels" / f"{stem}.png")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    (tmp_path / "photos" / "._a.png").write_text("no photo")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_batch_gives_what_its_photos_give_alone(batch: int, folders: Path) -> None:
    options = ["--labels", folders / "labels", "-o", folders / "out", "--batch", batch]
    succeed("refine", folders / "photos", *options, "--overlay", folders / "seen")
    assert names(folders / "out") == names(folders / "seen") == names(folders / "labels")
    for stem in PHOTOS:
        alone = folders / "alone.npz"
        photo, labels = (folders / kind / f"{stem}.png" for kind in ("photos", "labels"))
        succeed("refine", photo, "--labels", labels, "-o", alone)
        with np.load(alone) as saved:
            np.testing.assert_array_equal(pixels(folders / "out" / f"{stem}.png"), saved["probabilities"].argmax(0))


def test_a_broken_file_is_named_and_the_rest_goes_on(folders: Path) -> None:
    (folders / "photos" / "c.png").write_bytes((folders / "photos" / "c.png").read_bytes()[:500])
    (folders / "labels" / "e.png").write_bytes(b"no picture")
    (folders / "labels" / "f.png").unlink()
    result = invoke("refine", folders / "photos", "--labels", folders / "labels", "-o", folders / "out", "--batch", 2)
    assert result.exit_code == 1
    assert names(folders / "out") == ["a.png", "b.png", "d.png"]
    lines = {line.split(": ")[1]: line for line in result.stderr.splitlines() if "photos/" in line}
    assert sorted(Path(path).stem for path in lines) == ["c", "e", "f"]
    assert "Traceback" not in result.stderr
    assert "truncated" in lines[str(folders / "photos" / "c.png")]
    assert str(folders / "labels" / "e.png") in lines[str(folders / "photos" / "e.png")]
    assert "it has no f with" in lines[str(folders / "photos" / "f.png")]
    assert "densecrf: 6 photos on cpu in " in result.stderr
    assert result.stderr.endswith(", 3 failed\n")


def test_a_photo_that_cannot_be_refined_does_not_fail_its_batch(tmp_path: Path) -> None:
    def read(job: Job) -> Example:
        index = int(job.photo.stem)
        return Example(np.full((2, 3, 3), index, np.uint8), "labels", np.zeros((2, 3), np.int16), score_style(1))

    def refine(examples: Sequence[Example]) -> np.ndarray:
        if any(example.photo[0, 0, 0] == 2 for example in examples):
            raise RuntimeError("out of memory")
        return np.zeros((len(examples), 2, 3), np.int64)

    jobs = [Job(Path(f"{i}.png"), Path(), (Output("labels", tmp_path / f"{i}.png"),)) for i in range(5)]
    assert run_jobs(jobs, read, refine, Overlay(), batch=4, quiet=True, debug=False) == 1
    assert names(tmp_path) == ["0.png", "1.png", "3.png", "4.png"]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_sees_the_progress(quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def read(job: Job) -> Example:
        raise ValueError("broken")

    monkeypatch.setattr(sys, "stderr", Terminal())
    jobs = [Job(tmp_path / f"{i}.png", Path(), ()) for i in range(3)]
    assert run_jobs(jobs, read, len, Overlay(), batch=1, quiet=quiet, debug=False) == 3
    shown = sys.stderr.getvalue()
    assert ("3/3" in shown) != quiet
    assert shown.count("broken") == 3


def test_patterns(folders: Path) -> None:
    for path in (folders / "labels").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    succeed(
        "refine", folders / "photos", "--labels", folders / "labels" / "{stem}_mask.png",
        "-o", folders / "out" / "{stem}_refined.png", "--overlay", folders / "seen/{stem}.jpg",
    )  # fmt: skip
    assert names(folders / "out") == [f"{stem}_refined.png" for stem in PHOTOS]
    assert names(folders / "seen") == [f"{stem}.jpg" for stem in PHOTOS]


def test_scores_in_folders_and_a_format(folders: Path) -> None:
    (folders / "probs").mkdir()
    for stem, (_, size, num_classes) in PHOTOS.items():
        np.save(folders / "probs" / f"{stem}.npy", np.moveaxis(random_scores(num_classes, size), 0, 2))
    photos = [folders / "photos" / f"{stem}.png" for stem in PHOTOS]
    succeed("refine", *photos, "--logits", folders / "probs", "-o", folders / "out", "--format", "npy", "-q")
    for stem, (_, size, num_classes) in PHOTOS.items():
        assert np.load(folders / "out" / f"{stem}.npy").shape == (num_classes, *size)


def test_existing_outputs_and_inputs_are_safe(folders: Path) -> None:
    photos, labels, out = folders / "photos", folders / "labels", folders / "out"
    out.mkdir()
    (out / "c.png").write_text("mine")
    assert f"{out / 'c.png'} exists" in refuse("refine", photos, "--labels", labels, "-o", out, "--no-overwrite")
    assert names(out) == ["c.png"]

    result = succeed("refine", photos, "--labels", labels, "-o", out, "--skip-existing")
    assert "5 photos" in result.stderr
    assert "1 skipped" in result.stderr
    assert (out / "c.png").read_text() == "mine"
    assert names(out) == names(labels)

    succeed("refine", photos, "--labels", labels, "-o", out)
    assert pixels(out / "c.png").shape == (24, 32)

    for folder in (photos, labels):
        message = refuse("refine", photos, "--labels", labels, "-o", folder)
        assert "is an input, it is not overwritten" in message
    (folders / "link.png").symlink_to(photos / "a.png")
    message = refuse("refine", photos / "a.png", "--labels", labels, "-o", folders / "link.png")
    assert "is an input" in message


def test_wrong_folders(folders: Path) -> None:
    photos, labels = folders / "photos", folders / "labels"
    one = labels / "a.png"
    assert "several photos need a folder" in refuse("refine", photos, "--labels", one, "-o", folders / "out")
    assert "several photos need a folder" in refuse("refine", photos, "--labels", labels, "-o", folders / "out.png")
    assert "a folder ends with /" in refuse("refine", photos, "--labels", labels, "-o", folders / "out.v2")
    (folders / "empty").mkdir()
    assert "has no photo" in refuse("refine", folders / "empty", "--labels", labels, "-o", folders / "out")
    save_photo(photos / "a.bmp")
    assert "would be written twice" in refuse("refine", photos, "--labels", labels, "-o", folders / "out")
    (labels / "b.gif").write_bytes(b"")
    result = invoke("refine", photos / "b.png", "--labels", labels, "-o", folders / "out")
    assert result.exit_code == 1
    assert "must have one file of that name, it has b.gif, b.png" in result.stderr
