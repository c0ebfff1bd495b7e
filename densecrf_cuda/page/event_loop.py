"""An event loop for code that would otherwise make loops and leave them open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["with_event_loop"]

T = TypeVar("T")


def with_event_loop(work: Callable[[], T]) -> T:
    """The result of work, called while an event loop runs.

    Where none does, Gradio makes a new one for each of its locks and closes none of them.

    Example:
        >>> with_event_loop(lambda: asyncio.get_running_loop().is_running())
        True
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:

        async def call() -> T:
            return work()

        return asyncio.run(call())
    return work()
