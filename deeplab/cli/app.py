"""The commands under one name."""

from __future__ import annotations

import typer

from .summary import models, summary

__all__ = ["app"]

# Errors and help in plain lines: they end up in logs.
app = typer.Typer(
    help="DeepLab v1, v2, v3 and v3+: what a model consists of and costs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
for command in (summary, models):
    app.command()(command)
