"""`deeplab summary` and `deeplab models`: layers, shapes, parameters, multiply-adds and receptive fields of a model."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Annotated, Any

import torch
import typer

from ..counting import Layer, ModelCounts, count
from ..receptive_field import Field
from ..registry import create_model, list_models

__all__ = ["models", "summary"]

HEADER = ("layer", "kind", "output", "field", "stride", "parameters", "multiply-adds")
RIGHT = ("field", "stride", "parameters", "multiply-adds")  # aligned at the right


def models(family: Annotated[str, typer.Argument(help="What their names begin with.")] = "") -> None:
    """Print the names of all models."""
    for name in list_models(family):
        typer.echo(name)


def summary(
    model: Annotated[str, typer.Argument(help="Its name, see deeplab models.")],
    size: Annotated[str, typer.Option(help="Of the image: N for N × N, or HxW.")] = "513",
    num_classes: Annotated[int, typer.Option(help="With the background.")] = 21,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="NAME=VALUE, an argument of its factory; again for another."),
    ] = None,
    totals: Annotated[bool, typer.Option("--totals", help="Leave the layers out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, exact numbers.")] = False,
) -> None:
    """Print layers, shapes, parameters, multiply-adds and receptive fields; nothing is computed, no weights are read.

    The receptive field and the stride are in pixels of the input, height and width where they differ; "all" is a layer
    that sees the whole image.
    """
    try:
        shape = _size(size)
        with torch.device("meta"):
            network = create_model(model, num_classes=num_classes, **_options(option or ()))
        counts = count(network, shape)
    except (TypeError, ValueError) as error:
        typer.echo(f"deeplab summary: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(_as_json(model, shape, counts), indent=2))
        return
    if not totals:
        for line in _table(counts.layers):
            typer.echo(line)
        typer.echo()
    for line in _totals(shape, counts):
        typer.echo(line)


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise ValueError(f"--size must be N or HxW in pixels, got {text!r}")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _options(pairs: Iterable[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"--option must be NAME=VALUE, got {pair!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    return options


def _table(layers: Sequence[Layer]) -> list[str]:
    rows = [HEADER]
    rows += [
        (
            layer.name or "(itself)",
            layer.kind,
            "×".join(map(str, layer.shape[1:])),
            _field(layer.field),
            _pair(layer.field.stride) if layer.field else "",
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        )
        for layer in layers
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    aligned = (
        [f"{cell:>{w}}" if name in RIGHT else f"{cell:<{w}}" for cell, w, name in zip(row, widths, HEADER)]
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in aligned]


def _field(field: Field | None) -> str:
    return _pair(field.size) if field else ""


def _pair(pair: tuple[Fraction | float, Fraction | float]) -> str:
    """One number where both are the same.

    Example:
        >>> _pair((Fraction(11), Fraction(11))), _pair((Fraction(1, 2), float("inf")))
        ('11', '0.5×all')
    """
    texts = ["all" if number == float("inf") else f"{float(number):.6g}" for number in pair]
    return texts[0] if texts[0] == texts[1] else "×".join(texts)


def _totals(size: tuple[int, int], counts: ModelCounts) -> list[str]:
    outputs = ", ".join(f"{name} {'×'.join(map(str, shape[1:]))}" for name, shape in counts.shapes.items())
    rows = {
        "image": f"3×{size[0]}×{size[1]}",
        "output": outputs,
        "parameters": f"{counts.parameters:,}",
        "buffers": f"{counts.buffers:,}",
        "multiply-adds": f"{counts.multiply_adds:,} ({counts.multiply_adds / 1e9:.3f} G)",
    }
    return [f"{name:<14}{value}" for name, value in rows.items()]


def _as_json(model: str, size: tuple[int, int], counts: ModelCounts) -> dict[str, Any]:
    def numbers(pair: tuple[Fraction | float, Fraction | float]) -> list[float | None]:
        return [None if number == float("inf") else float(number) for number in pair]

    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "shape": layer.shape,
            "field": numbers(layer.field.size) if layer.field else None,
            "stride": numbers(layer.field.stride) if layer.field else None,
            "parameters": layer.parameters,
            "multiply_adds": layer.multiply_adds,
        }
        for layer in counts.layers
    ]
    return {
        "model": model,
        "size": size,
        "outputs": counts.shapes,
        "parameters": counts.parameters,
        "buffers": counts.buffers,
        "multiply_adds": counts.multiply_adds,
        "layers": layers,
    }
