"""Loads the compiled operators, or defines the same operators from the reference.

Importing this module registers every operator of ``schemas.def`` in ``torch.ops.densecrf_cuda``.
"""

from __future__ import annotations

import os
import re
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["HAS_EXTENSION", "SPLAT_PLAN_DEVICES", "build_facts", "has_splat_plan", "operator_schemas"]

_FOLDER = Path(__file__).parent
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."

SPLAT_PLAN_DEVICES = {"cuda"}
"""Types of devices whose compiled `lattice_build` fills `splat_plan`, which elsewhere is empty."""

# A library of torch lives as long as the object that defined it.
_reference_library: torch.library.Library | None = None


def operator_schemas() -> list[str]:
    """The schema of every operator, as ``schemas.def`` states them.

    >>> [schema.split("(")[0] for schema in operator_schemas()][:2]
    ['lattice_build', 'lattice_filter']
    """
    text = (_FOLDER / "schemas.def").read_text(encoding="utf-8")
    return re.findall(r'^DENSECRF_SCHEMA\("(.+)"\)', text, re.MULTILINE)


def has_splat_plan(device: torch.device) -> bool:
    """Whether lattices built on the device carry a plan of the splat; the reference plans nothing.

    >>> has_splat_plan(torch.device("meta"))
    False
    """
    return HAS_EXTENSION and device.type in SPLAT_PLAN_DEVICES


def build_facts() -> ModuleType | None:
    """The facts of the build; None where there is no compiled library.

    >>> build_facts().torch_version == torch.__version__
    True
    """
    if not HAS_EXTENSION:
        return None
    import densecrf_cuda._C as facts

    return facts


def _load_compiled() -> bool:
    """Load the compiled operators; False where the package was installed without them."""
    try:
        import densecrf_cuda._C as facts
    except ModuleNotFoundError as error:
        if error.name != "densecrf_cuda._C":
            raise
        return False
    if facts.torch_version != torch.__version__:
        raise ImportError(
            f"densecrf_cuda was built for torch {facts.torch_version}, but torch {torch.__version__} is imported; "
            f"in the source folder of densecrf_cuda: {_REBUILD}"
        )
    for suffix in EXTENSION_SUFFIXES:
        path = _FOLDER / f"_ops{suffix}"
        if path.exists():
            torch.ops.load_library(str(path))
            return True
    raise ImportError(f"densecrf_cuda has no library _ops in {_FOLDER}; in the source folder: {_REBUILD}")


def _define_reference() -> None:
    """Define every operator anew and let the function of the same name in the reference compute it on any device."""
    global _reference_library
    from densecrf_cuda import reference

    _reference_library = torch.library.Library("densecrf_cuda", "DEF")
    for schema in operator_schemas():
        name = schema.split("(")[0]
        _reference_library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        function = getattr(reference, name.removesuffix(".out"))  # which has the overload's `out` as an option
        # CompositeExplicitAutograd: one kernel for every device, and gradients stay those that ops.py registers
        _reference_library.impl(name, function, "CompositeExplicitAutograd")


HAS_EXTENSION: bool = _load_compiled()
"""Whether the compiled operators are loaded; False: the reference computes."""

if not HAS_EXTENSION:
    if os.environ.get("DENSECRF_REQUIRE_EXTENSION") == "1":
        raise ImportError(
            "densecrf_cuda was installed without its compiled library and DENSECRF_REQUIRE_EXTENSION=1 asks for it; "
            f"in the source folder of densecrf_cuda: {_REBUILD}"
        )
    warnings.warn(
        "densecrf_cuda was installed without its compiled library: the reference in plain PyTorch runs, "
        f"which is slow; in the source folder of densecrf_cuda: {_REBUILD}",
        RuntimeWarning,
        stacklevel=2,
    )
    _define_reference()
