"""`densecrf demo`: the page on which strokes become segmentations."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .errors import UsageError, reported

__all__ = ["demo"]


def demo(
    image: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, metavar="IMAGE", help="A photo to begin with."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Where the page is served, on this machine only.")
    ] = 7860,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    device: options.Device = "auto",
    debug: options.Debug = False,
) -> None:
    """Serve a local page to segment photos on."""
    with reported("demo", debug):
        if importlib.util.find_spec("gradio") is None:
            raise UsageError('the page needs gradio: pip install "densecrf_cuda[demo]"')
        chosen = options.choose_device(device)
        # Only here, because gradio takes seconds to import.
        page = importlib.import_module("densecrf_cuda.page")
        page.launch(image, port, open_browser, str(chosen))
