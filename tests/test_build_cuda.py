"""The CUDA side of the library: what it holds and what it calls. No GPU is needed, where there is a CUDA build."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from densecrf_cuda import _C, _library

pytestmark = pytest.mark.skipif(_C.cuda_version is None, reason=f"the library has no CUDA: {_C.cuda_decision}")


def ops_library() -> Path:
    (path,) = Path(_C.__file__).parent.glob("_ops*.so")
    return path


@pytest.mark.parametrize("schema", _library.operator_schemas(), ids=lambda schema: schema.split("(")[0])
def test_operators_have_cuda_kernels(schema: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"densecrf_cuda::{schema.split('(')[0]}", "CUDA")


def test_every_architecture_is_in_the_library() -> None:
    triton = importlib.util.find_spec("triton")
    tool = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else Path()
    cuobjdump = str(tool) if tool.is_file() else shutil.which("cuobjdump")
    if not cuobjdump:
        pytest.skip("no cuobjdump, neither with triton nor on the PATH")

    def listed(option: str) -> set[str]:
        output = subprocess.run([cuobjdump, option, ops_library()], capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"\.sm_(\d+)\.", output))

    stated = [re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", arch) for arch in _C.cuda_archs]
    assert all(stated), "TORCH_CUDA_ARCH_LIST was given by names"
    assert listed("--list-elf") == {arch[1] + arch[2] for arch in stated if arch}
    assert listed("--list-ptx") == {arch[1] + arch[2] for arch in stated if arch and arch[3]}
