"""What every test shares: proof that the installed package is under test, the rungs, and optional photos."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import densecrf_cuda
from densecrf_cuda import _C

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "tests" / "emulator"))  # pytest's importlib mode leaves it out
import build_emulator  # noqa: E402
import emulated  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the source folder: a file left out of the wheel would go unseen."""
    package = Path(densecrf_cuda.__file__).resolve()
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("platlib", "purelib")]
    if not any(folder in package.parents for folder in installed):
        raise pytest.UsageError(f"tests must meet the installed package, not {package}; run: make test")


def has_gpu() -> bool:
    return _C.cuda_kernels and torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not has_gpu():
        pytest.skip("needs a GPU and a build with CUDA")


@pytest.fixture(params=["cpu", "cuda-emulated", *(["cuda"] if has_gpu() else [])])
def rung(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every set of compiled kernels that can run here; "cuda-emulated" are those of CUDA on the tensors of the CPU."""
    if request.param == "cuda-emulated":
        if build_emulator.compiler_is_missing():
            pytest.skip("the emulator of CUDA is compiled with g++, and there is none")
        with emulated.enabled():
            yield request.param
    else:
        yield request.param


@pytest.fixture
def device(rung: str) -> torch.device:
    """The device of the tensors that the kernels of the rung take."""
    return torch.device("cuda" if rung == "cuda" else "cpu")


@pytest.fixture(scope="session")
def voc_photos() -> list[tuple[Path, Path]]:
    """Optional photos: pairs of ``*.image.png`` and ``*.labels.png``; the test skips itself where there are none."""
    folder = Path(os.environ.get("DENSECRF_TEST_DATA", ROOT.parent / "shared" / "data"))
    photos = [
        (photo, photo.with_name(photo.name.replace(".image.", ".labels."))) for photo in folder.glob("*.image.png")
    ]
    if not photos:
        pytest.skip("no photos: DENSECRF_TEST_DATA names no folder with *.image.png")
    return sorted(photos)


@pytest.fixture(scope="session")
def without_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH where the package has no binaries, as a wheel built with WITH_EXTENSION=0 installs it."""
    folder = tmp_path_factory.mktemp("pure")
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(densecrf_cuda.__file__).parent, folder / "densecrf_cuda", ignore=ignore)
    return str(folder)
