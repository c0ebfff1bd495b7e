"""Outputs appear whole or not at all, whatever ends the command."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import coarse_classes, pixels, save_photo
from PIL import Image

from densecrf_cuda.cli.files import atomic_write

# The command with an encoder that says when half of a picture is written, and goes on when stdin is closed.
# Started in the background by a shell, the tests would hand down that Ctrl-C is to be ignored.
SLOW = """
import io, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from densecrf_cuda.cli import main
from densecrf_cuda.cli.labels import LabelStyle
save = LabelStyle.save
def slow(self, classes, file):
    whole = io.BytesIO()
    save(self, classes, whole)
    file.write(whole.getvalue()[:whole.tell() // 2])
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
    file.write(whole.getvalue()[whole.tell() // 2:])
LabelStyle.save = slow
main()
"""


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_followed_and_permissions_are_the_usual(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "plain")]
    assert modes[0] == modes[1]


def test_devices_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"), atomic_write(tmp_path / "pipe"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_of_writing(ending: signal.Signals, tmp_path: Path) -> None:
    save_photo(tmp_path / "photo.png")
    Image.fromarray(coarse_classes(2).astype(np.uint8)).save(tmp_path / "labels.png")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        SLOW,
        "refine",
        "photo.png",
        "--labels",
        "labels.png",
        "-o",
        out,
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        assert not (out / "photo.png").exists()
        process.send_signal(ending)
        _, errors = process.communicate()  # closes stdin, so a thread that still writes can finish
    assert "Traceback" not in errors
    if ending == signal.SIGKILL:
        assert process.returncode == -ending
        assert not (out / "photo.png").exists()
    else:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[ending]
        assert [path.name for path in out.iterdir()] == ["photo.png"]
        assert pixels(out / "photo.png").shape == (36, 48)
