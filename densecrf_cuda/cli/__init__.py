"""The command line: `densecrf refine`, `segment`, `compare`, `info` and `demo`."""

from __future__ import annotations

import importlib.util
import signal
import sys
from types import FrameType
from typing import NoReturn

__all__ = ["main"]

_NEEDED = {"typer": "typer", "tqdm": "tqdm", "PIL": "pillow"}


def main() -> NoReturn:
    """Run the command that `sys.argv` names, and leave with its exit code.

    0: all went well; 1: something could not be computed, read or written; 2: the command itself is wrong, or a package
    of `pip install "densecrf_cuda[cli]"` is missing; 130: interrupted.

    Raises:
        SystemExit: always.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        hint = f'densecrf: the command line needs {", ".join(missing)}: pip install "densecrf_cuda[cli]"'
        print(hint, file=sys.stderr)
        sys.exit(2)
    from PIL import Image

    from .app import app

    Image.MAX_IMAGE_PIXELS = None  # a picture of any size that the user names is meant
    signal.signal(signal.SIGTERM, _terminate)
    app(_with_values(sys.argv[1:]), prog_name="densecrf")
    sys.exit(0)


def _with_values(arguments: list[str]) -> list[str]:
    """The arguments with an empty value for --overlay where none follows it."""
    following = [*arguments[1:], "--"]
    return [
        "--overlay=" if argument == "--overlay" and after.startswith("-") else argument
        for argument, after in zip(arguments, following)
    ]


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # An exception, unlike the default, lets half-written files be removed and threads finish theirs.
    sys.exit(128 + number)
