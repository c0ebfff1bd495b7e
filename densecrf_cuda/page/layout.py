"""The page itself: what is on it, and which change calls what."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from .pictures import COLOURS, read_strokes
from .segment import Settings, pick_device
from .session import FAULTS, PREVIEW_SIDE, Answer, Photo, Refined, mask_file, open_photo, refine, scribbles_file

__all__ = ["THEME", "make_blocks"]

# Fonts of the system, so that none has to come from anywhere.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

# For each setting the label of its slider, the least and the largest value and the step; a column for each group.
SLIDERS: list[dict[str, tuple[str, float, float, float]]] = [
    {
        "gaussian_sxy": ("Gaussian sxy (pixels)", 1, 20, 0.5),
        "gaussian_compat": ("Gaussian compat", 0, 30, 0.5),
    },
    {
        "bilateral_sxy": ("Bilateral sxy (pixels)", 1, 200, 1),
        "bilateral_srgb": ("Bilateral srgb (0 to 255)", 1, 60, 1),
        "bilateral_compat": ("Bilateral compat", 0, 30, 0.5),
    },
    {
        "iterations": ("Iterations", 0, 50, 1),
        "confidence": ("Confidence in scribbles", 0.5, 1, 0.01),
    },
]

NAMES = [name for group in SLIDERS for name in group]

Outputs = tuple[Any, ...]  # one for each component that a change writes to

# The page's own calls are no interface for programs.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}

# The file comes with the answer, so that none is left on the server.
DOWNLOAD = """(file) => {
    if (!file) return;
    const link = document.createElement("a");
    link.href = file.url;
    link.download = file.name;
    link.click();
}"""


def make_blocks(image: Path | None = None, device: str | None = None) -> gr.Blocks:
    """What `densecrf_cuda.page.build` returns."""
    place = pick_device(device)
    first = None if image is None else open_photo(image)

    def move(photo: Photo | None, scribbles: np.ndarray | None, *values: float) -> Outputs:
        settings = dict(zip(NAMES, values))
        iterations = round(settings.pop("iterations"))
        return _values(refine(photo, scribbles, Settings(**settings, iterations=iterations), place))

    def paint(photo: Photo | None, canvas: dict[str, Any] | None, *values: float) -> Outputs:
        if photo is None:
            return gr.skip(), None, *move(None, None, *values)
        if canvas is None or canvas["background"] is None:  # cleared or undone: the photo goes with the scribbles
            return _canvas(photo), None, *move(photo, None, *values)
        scribbles = read_strokes(canvas["layers"], photo.small.shape[:2])
        return gr.skip(), scribbles, *move(photo, scribbles, *values)

    with gr.Blocks(title="densecrf", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        photo, strokes, refined = gr.State(None), gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column():
                opener = gr.UploadButton("Open a photo", file_types=["image"], type="filepath", elem_id="open")
                editor = _editor()
            with gr.Column():
                with gr.Row():
                    mask = gr.Button("Download mask", elem_id="mask")
                    scribbles = gr.Button("Download scribbles", elem_id="scribbles")
                picture = gr.Image(
                    label="Refined labels", format="png", interactive=False, buttons=["fullscreen"], elem_id="refined"
                )
                message = gr.Markdown(refine(None, None, Settings()).message, elem_id="message")
        sliders = _sliders()
        download = gr.JSON(visible=False)

        answer = [picture, message, refined]
        # Of changes in quick succession the last counts; one queue for both kinds, so that its answer also comes last.
        live: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_id": "refine", "show_progress": "hidden"}
        editor.change(paint, [photo, editor, *sliders], [editor, strokes, *answer], **live, **PRIVATE)
        gr.on([slider.change for slider in sliders], move, [photo, strokes, *sliders], answer, **live, **PRIVATE)
        opener.upload(_open, opener, [photo, editor, strokes, *answer], concurrency_id="refine", **PRIVATE)
        if first is not None:
            page.load(lambda: _show(first), None, [photo, editor, strokes, *answer], **PRIVATE)
        for button, kind, encode in (
            (mask, "mask", lambda refined: mask_file(refined, place)),
            (scribbles, "scribbles", scribbles_file),
        ):
            made = button.click(_download(kind, encode), refined, [download, message], **PRIVATE)
            made.then(None, download, js=DOWNLOAD, **PRIVATE)
    return page


def _editor() -> gr.ImageEditor:
    colours: list[str | tuple[str, float]] = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in COLOURS.values()]
    return gr.ImageEditor(
        label="Scribbles",
        sources=(),
        transforms=(),
        layers=False,
        type="numpy",
        format="png",
        canvas_size=(PREVIEW_SIDE, PREVIEW_SIDE),
        brush=gr.Brush(default_size=8, colors=colours, color_mode="fixed"),
        elem_id="editor",
    )


def _sliders() -> list[gr.Slider]:
    values = asdict(Settings())
    sliders = []
    with gr.Row():
        for group in SLIDERS:
            with gr.Column(min_width=260):
                for name, (label, low, high, step) in group.items():
                    slider = gr.Slider(low, high, values[name], step=step, label=label, elem_id=name)
                    slider.preprocess = _bounded(low, high, values[name])  # type: ignore[method-assign, assignment]
                    sliders.append(slider)
    return sliders


def _bounded(low: float, high: float, default: float) -> Callable[[float | None], float]:
    """While somebody types into its box a slider may be empty, or beyond its ends: to Gradio that is an error."""
    return lambda payload: default if payload is None else min(max(payload, low), high)


def _canvas(photo: Photo) -> dict[str, Any]:
    return {"background": photo.small, "layers": [], "composite": None}


def _show(photo: Photo) -> Outputs:
    """A photo without scribbles, for the page."""
    return photo, _canvas(photo), None, *_values(refine(photo, None, Settings()))


def _open(path: str) -> Outputs:
    try:
        return _show(open_photo(path))
    except (ValueError, OSError) as error:  # what was open stays so
        return gr.skip(), gr.skip(), gr.skip(), gr.skip(), f"{error}.", gr.skip()


def _values(answer: Answer) -> Outputs:
    return answer.picture, answer.message, answer.refined


def _download(kind: str, encode: Callable[[Refined], bytes]) -> Callable[[Refined | None], Outputs]:
    def answer(refined: Refined | None) -> Outputs:
        if refined is None:
            return None, "There are no labels yet: open a photo and paint scribbles in two colours or more."
        try:
            url = "data:image/png;base64," + base64.b64encode(encode(refined)).decode()
        except FAULTS as error:
            return None, f"The {kind} cannot be made: {error}."
        return {"name": f"{refined.photo.name}_{kind}.png", "url": url}, gr.skip()

    return answer
