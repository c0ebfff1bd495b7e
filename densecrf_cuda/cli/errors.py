"""How errors end a command: one line on stderr and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["UsageError", "one_line", "reported"]


class UsageError(Exception):
    """The command itself is wrong: exit code 2, before anything is computed."""


def one_line(error: BaseException) -> str:
    """The message of an error in one line; its type where it has no message.

    Example:
        >>> one_line(ValueError("a rule,\\n got 3"))
        'a rule, got 3'
        >>> one_line(MemoryError())
        'MemoryError'
    """
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reported(command: str, debug: bool) -> Iterator[None]:
    """Turn what a command raises into a line on stderr and the exit code of the process.

    Args:
        command: name for the line.
        debug: print the traceback too.

    Raises:
        typer.Exit: 2 for a `UsageError`, 130 for Ctrl-C, 1 for every other error.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        typer.echo(f"densecrf {command}: interrupted", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"densecrf {command}: {one_line(error)}", err=True)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
