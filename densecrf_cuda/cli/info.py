"""`densecrf info`: what is installed, and what it can use."""

from __future__ import annotations

import json
from typing import Any

import typer

from . import options
from .facts import gather_facts

__all__ = ["info"]


def info(as_json: options.Json = False) -> None:
    """Print versions, build, devices and threads."""
    facts = gather_facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    rows = _rows(facts)
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:<{width}}  {value}")


def _rows(facts: dict[str, Any]) -> dict[str, str]:
    library = f"{facts['library']} ({facts['compiler']})" if facts["compiled"] else "none, plain PyTorch computes"
    archs = ", ".join(facts["cuda_archs"])
    build = f"{facts['cuda_version']} for {archs}, " if facts["cuda_version"] else "no, "
    gpus = [f"{gpu['name']} ({gpu['capability']}, {gpu['memory_gib']} GiB)" for gpu in facts["devices"]]
    limit = facts["cpu_capability_limit"]
    capability = facts["cpu_capability"] + (f", limited by DENSECRF_CPU_CAPABILITY={limit}" if limit else "")
    return {
        "densecrf_cuda": facts["densecrf_cuda"],
        "torch": facts["torch"],
        "Python, numpy": f"{facts['python']}, {facts['numpy']}",
        "platform": facts["platform"],
        "folder": facts["folder"],
        "library": library,
        "CPU kernels": ", ".join(facts["instruction_sets"]) or "none",
        "CPU": f"{capability}, {facts['processors']} processors, {facts['threads']} threads",
        "CUDA kernels": build + facts["cuda_decision"],
        "CUDA usable": "yes" if facts["cuda_usable"] else f"no, {facts['cuda_fault']}",
        "GPUs": ", ".join(gpus) or "none",
        "pydensecrf": facts["pydensecrf"] or "not installed",
    }
