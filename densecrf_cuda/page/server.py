"""Serves the page on the loopback interface, to nobody else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import gradio as gr

from .event_loop import with_event_loop
from .layout import THEME, make_blocks

__all__ = ["HOST", "start"]

HOST = "127.0.0.1"


def start(image: Path | None = None, port: int = 0, open_browser: bool = False, device: str | None = None) -> gr.Blocks:
    """Serve the page in a thread.

    Args:
        image, port, open_browser, device: see `launch`.

    Returns:
        The app; its `local_url` is the address, its `close()` ends it and deletes what was uploaded.

    Raises:
        ValueError, OSError: see `launch`.
    """
    _keep_from_proxies()
    return with_event_loop(lambda: _serve(make_blocks(image, device), _free_port(port), open_browser))


def _serve(page: gr.Blocks, port: int, open_browser: bool) -> gr.Blocks:
    page.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        theme=THEME,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        run_history=False,
        footer_links=[],
        quiet=True,
    )
    return page


def _free_port(port: int) -> int:
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be in 0..65535 (0: any that is free), got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last server has just ended is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(
                error.errno, f"port {port} cannot be used ({error.strerror}); 0 picks one that is free"
            ) from error
        return int(probe.getsockname()[1])


def _keep_from_proxies() -> None:
    """Gradio asks its own server whether it answers: a proxy that the environment names must not get that request."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = os.environ.get(name, "")
        if HOST not in hosts:
            os.environ[name] = f"{hosts},{HOST}".strip(",")
