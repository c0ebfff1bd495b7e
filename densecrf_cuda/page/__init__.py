"""A page on this machine to play with: open a photo, paint scribbles, move sliders, see the labels.

It needs Gradio and Pillow, which `pip install 'densecrf_cuda[demo]'` brings; without them `segment_scribbles` works.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .event_loop import with_event_loop
from .segment import Settings, segment_scribbles

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["Settings", "build", "launch", "segment_scribbles"]


def build(image: Path | None = None, device: str | None = None) -> gr.Blocks:
    """The page as a Gradio app that is not served yet.

    Args:
        image: a photo that is open from the start.
        device: where to compute; None: a GPU where there is one and the package has kernels for it, else the CPU.

    Returns:
        The app, to be served by `launch` or mounted in another.

    Raises:
        ModuleNotFoundError: Gradio or Pillow is missing.
        ValueError, OSError: an image that cannot be read, an unknown device.

    Example:
        >>> build().title
        'densecrf'
    """
    _prepare()
    from .layout import make_blocks

    return with_event_loop(lambda: make_blocks(image, device))


def launch(image: Path | None = None, port: int = 7860, open_browser: bool = True, device: str | None = None) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C. Nothing is sent to any other machine; uploads are deleted at the end.

    Args:
        image: a photo that is open from the start.
        port: 1 to 65535, or 0 for any that is free.
        open_browser: show the page in the browser; its address is printed in any case.
        device: as for `build`.

    Raises:
        ModuleNotFoundError: Gradio or Pillow is missing.
        ValueError, OSError: an image that cannot be read, an unknown device, a port that is taken.
    """
    _prepare()
    from .server import start

    with _folder_for_uploads():
        page = start(image, port, open_browser, device)
        print(f"{page.local_url} (Ctrl-C ends it)", flush=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)


@contextmanager
def _folder_for_uploads() -> Iterator[None]:
    """Gradio puts pictures into a folder that is deleted with all that is in it, interrupted uploads too."""
    before = os.environ.pop("GRADIO_TEMP_DIR", None)
    with TemporaryDirectory(prefix="densecrf_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["GRADIO_TEMP_DIR"]
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def _prepare() -> None:
    """Switch off Gradio's analytics before Gradio is imported, and name the extra that is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for module in ("gradio", "PIL"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(
                "the page needs Gradio and Pillow: pip install 'densecrf_cuda[demo]'", name=module
            )
