"""What every test shares: proof that the installed package is under test, the devices, and optional photos."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

import densecrf_cuda
from densecrf_cuda import _C

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the source folder: a file left out of the wheel would go unseen."""
    package = Path(densecrf_cuda.__file__).resolve()
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("platlib", "purelib")]
    if not any(folder in package.parents for folder in installed):
        raise pytest.UsageError(f"tests must meet the installed package, not {package}; run: make test")


def devices() -> list[str]:
    """Devices with compiled kernels that can run here."""
    return ["cpu"] + (["cuda"] if _C.cuda_kernels and torch.cuda.is_available() else [])


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device on which the operators run."""
    return torch.device(request.param)


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
