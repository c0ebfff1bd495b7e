"""The command line: `deeplab summary`."""

from __future__ import annotations

import importlib.util
import sys
from typing import NoReturn

__all__ = ["main"]

_NEEDED = ("typer", "torchvision")


def main() -> NoReturn:
    """Run the command that `sys.argv` names, and leave with its exit code.

    0: all went well; 2: the command itself is wrong, or a package is missing.

    Raises:
        SystemExit: always.
    """
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        hint = f'deeplab: the command line needs {", ".join(missing)}: pip install "densecrf_cuda[deeplab,cli]"'
        print(hint, file=sys.stderr)
        sys.exit(2)
    from .app import app

    app(prog_name="deeplab")
    sys.exit(0)
