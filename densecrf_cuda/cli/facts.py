"""Facts about the installation."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import torch

import densecrf_cuda

from .._library import build_facts

__all__ = ["cuda_fault", "gather_facts"]


def cuda_fault() -> str | None:
    """Why CUDA cannot be used, or None where it can."""
    if not torch.cuda.is_available():
        return "torch was built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
    build = build_facts()
    if build is not None and not build.cuda_kernels:
        return f"the library was built without CUDA: {build.cuda_decision}"
    return None


def gather_facts() -> dict[str, Any]:
    """What `densecrf info` shows, of types that JSON has."""
    build = build_facts()
    folder = Path(densecrf_cuda.__file__).parent
    facts: dict[str, Any] = {
        "densecrf_cuda": densecrf_cuda.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "folder": str(folder),
        "compiled": build is not None,
        "library": None,
        "compiler": None,
        "instruction_sets": [],
        "cuda_version": None,
        "cuda_archs": [],
        "cuda_decision": "there is no compiled library, plain PyTorch computes",
        "cuda_usable": cuda_fault() is None,
        "cuda_fault": cuda_fault(),
        "devices": [_device(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_capability_limit": os.environ.get("DENSECRF_CPU_CAPABILITY"),
        "pydensecrf": _pydensecrf(),
    }
    if build is not None:
        facts |= {name: getattr(build, name) for name in ("compiler", "cuda_version", "cuda_decision")}
        facts |= {name: list(getattr(build, name)) for name in ("instruction_sets", "cuda_archs")}
        facts["library"] = str(
            next(path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_ops{suffix}").exists())
        )
    return facts


def _device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }


def _pydensecrf() -> str | None:
    """Name and version of the package that provides pydensecrf."""
    if importlib.util.find_spec("pydensecrf") is None:
        return None
    packages = importlib.metadata.packages_distributions().get("pydensecrf", [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages) or "of unknown version"
