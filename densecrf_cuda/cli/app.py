"""The commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

import densecrf_cuda

from .compare import compare
from .demo import demo
from .info import info
from .refine import refine
from .segment import segment

__all__ = ["app"]

# Errors and help in plain lines: they end up in logs.
app = typer.Typer(
    help="Dense CRFs for segmentations: refine labels or probabilities, segment from scribbles, compare.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
for command in (refine, segment, compare, info, demo):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"densecrf {densecrf_cuda.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before the command."""
