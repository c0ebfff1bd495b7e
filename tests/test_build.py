"""The build: what the binaries say of themselves, how the package loads them, and how setup.py decides."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import densecrf_cuda
from densecrf_cuda import _C, _library

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter; an empty value of ``env`` removes the variable."""
    merged = {key: value for key, value in {**os.environ, **env}.items() if value}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=merged, capture_output=True, text=True, timeout=300)


# --- the facts ---


def test_facts_of_the_build() -> None:
    assert _C.torch_version == torch.__version__
    assert _C.package_version == densecrf_cuda.__version__
    assert _C.python_version.split(".")[:2] == platform.python_version().split(".")[:2]
    assert re.match(r"(g\+\+|clang) \d+", _C.compiler)
    assert _C.cxx_standard >= 17
    assert _C.instruction_sets[0] == "baseline"
    assert _C.cuda_decision
    assert (_C.cuda_version is None) == (_C.cuda_archs == ())
    assert _C.cuda_kernels == (_C.cuda_version is not None)
    if torch.version.cuda is None:
        assert _C.cuda_version is None


def test_facts_are_not_linked_against_torch(tmp_path: Path) -> None:
    # so that a library built for another torch is refused in words, not by an undefined symbol
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_C", {_C.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "torch" not in sys.modules
print(module.torch_version)
"""
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == torch.__version__, result.stderr


@pytest.mark.parametrize("schema", _library.operator_schemas(), ids=lambda schema: schema.split("(")[0])
def test_operators_are_registered_as_stated(schema: str) -> None:
    name = schema.split("(")[0]
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"densecrf_cuda::{name}", "CPU")
    stated = torch._C.parse_schema(f"densecrf_cuda::{schema}")
    packet, _, overload = name.partition(".")
    assert getattr(getattr(torch.ops.densecrf_cuda, packet), overload or "default")._schema == stated


# --- loading ---


def test_library_for_another_torch_is_refused_in_one_line(tmp_path: Path) -> None:
    result = run_python("import torch; torch.__version__ = '0.0.1'; import densecrf_cuda", tmp_path)
    assert result.returncode == 1
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("ImportError: ") and _C.torch_version in line and "0.0.1" in line
    assert "pip install --no-build-isolation" in line


FILTER = """
import sys, torch, densecrf_cuda
ops = torch.ops.densecrf_cuda
lattice = ops.lattice_build(torch.empty(1, 0, 20), torch.tensor([2.0, 3.0]), [4, 5], True, 60)
values = torch.linspace(-1, 1, 40).reshape(1, 20, 2)
result = ops.lattice_filter(values, None, None, None, lattice, [4, 5], False)
print(densecrf_cuda._library.HAS_EXTENSION, result.tolist())
"""


def test_reference_runs_without_library_after_one_warning(without_library: str, tmp_path: Path) -> None:
    env = {"PYTHONPATH": without_library, "DENSECRF_REQUIRE_EXTENSION": "", "PYTHONWARNINGS": "always"}
    bare = run_python(FILTER, tmp_path, **env)
    assert bare.returncode == 0, bare.stderr
    assert bare.stderr.count("RuntimeWarning: densecrf_cuda was installed without its compiled library") == 1
    full = run_python(FILTER, tmp_path)
    assert full.returncode == 0, full.stderr
    (bare_has, bare_values), (full_has, full_values) = (r.stdout.split(" ", 1) for r in (bare, full))
    assert (bare_has, full_has) == ("False", "True")
    numbers = [torch.tensor([float(n) for n in re.findall(r"[-\d.e]+", text)]) for text in (bare_values, full_values)]
    torch.testing.assert_close(*numbers)


CONVOLUTION = """
import torch, densecrf_cuda
x = torch.linspace(-1, 1, 60).reshape(1, 3, 4, 5).requires_grad_()
weights = torch.linspace(0, 1, 27).reshape(3, 1, 3, 3), torch.linspace(-1, 0, 6).reshape(2, 3)
result = densecrf_cuda.atrous_separable_conv2d(x, *weights, dilation=2, activation="relu")
(gradient,) = torch.autograd.grad(result.sum(), x)
buffer = torch.zeros(1, 4, 4, 5)
with torch.no_grad():
    densecrf_cuda.atrous_separable_conv2d(x, *weights, dilation=2, activation="relu", out=buffer[:, 1:3])
print(densecrf_cuda.HAS_EXTENSION, torch.cat((buffer, gradient), 1).tolist())
"""


def test_reference_convolves_without_library(without_library: str, tmp_path: Path) -> None:
    env = {"PYTHONPATH": without_library, "DENSECRF_REQUIRE_EXTENSION": "", "PYTHONWARNINGS": "ignore"}
    results = [run_python(CONVOLUTION, tmp_path, **settings) for settings in (env, {})]
    assert [result.returncode for result in results] == [0, 0], results[0].stderr + results[1].stderr
    (bare_has, bare_values), (full_has, full_values) = (result.stdout.split(" ", 1) for result in results)
    assert (bare_has, full_has) == ("False", "True")
    numbers = [torch.tensor([float(n) for n in re.findall(r"[-\d.e]+", text)]) for text in (bare_values, full_values)]
    torch.testing.assert_close(*numbers)


def test_required_library_that_is_missing_is_an_import_error(without_library: str, tmp_path: Path) -> None:
    result = run_python("import densecrf_cuda", tmp_path, PYTHONPATH=without_library, DENSECRF_REQUIRE_EXTENSION="1")
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("ImportError: densecrf_cuda was installed without its compiled library")


# --- setup.py ---


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    """setup.py as a module: it builds nothing unless it is the main program."""
    spec = importlib.util.spec_from_file_location("densecrf_cuda_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.fixture
def make_toolkit(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder that looks like a CUDA toolkit, with a compiler that knows where it lives."""

    def make(name: str, version: str = "13.0", libraries: str = "lib64") -> Path:
        home = tmp_path / name
        for part in ("include/cuda_runtime.h", f"{libraries}/libcudart.so"):
            (home / part).parent.mkdir(parents=True, exist_ok=True)
            (home / part).touch()
        script(
            home / "bin/nvcc",
            f'if [ "$1" = --version ]; then echo "Cuda compilation tools, release {version}, V{version}.88"; exit; fi',
            f'echo "#$ _HERE_={home}/bin" >&2; echo "#$ TOP={home}/bin/.." >&2',
        )
        return home

    return make


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """Stands for /usr/local on a machine without a toolkit."""
    return tmp_path / "nowhere"


def path_env(*folders: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.pathsep.join(map(str, folders)), **more}


@pytest.mark.parametrize("libraries", ["lib64", "targets/x86_64-linux/lib"])
def test_toolkit_behind_a_wrapper_script(
    setup_py: ModuleType, make_toolkit: Callable[..., Path], nowhere: Path, tmp_path: Path, libraries: str
) -> None:
    home = make_toolkit("real", libraries=libraries)
    script(tmp_path / "bin/nvcc", f'exec {home}/bin/nvcc "$@"')
    decision = setup_py.decide("13.0", path_env(tmp_path / "bin"), nowhere)
    assert decision.toolkit is not None and decision.toolkit.home == home
    assert "13.0" in decision.reason and str(home) in decision.reason and "nvcc on the PATH" in decision.reason


def test_cuda_home_comes_before_the_path(
    setup_py: ModuleType, make_toolkit: Callable[..., Path], nowhere: Path
) -> None:
    home, other = make_toolkit("home"), make_toolkit("other")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        decision = setup_py.decide("13.2", path_env(other / "bin", **{name: str(home)}), nowhere)
        assert decision.toolkit.home == home and name in decision.reason


def test_folder_without_cudart_is_passed_over(
    setup_py: ModuleType, make_toolkit: Callable[..., Path], tmp_path: Path
) -> None:
    broken, system = make_toolkit("broken"), tmp_path / "system"
    (broken / "lib64/libcudart.so").unlink()
    old, new = make_toolkit("system/cuda-12.9", "12.9"), make_toolkit("system/cuda-13.0")
    env = path_env(broken / "bin", CUDA_HOME=str(broken))
    assert setup_py.decide("13.0", env, system).toolkit.home == new
    assert setup_py.decide("12.8", env, system).toolkit.home == old


def test_cpu_only_for_a_stated_reason(setup_py: ModuleType, make_toolkit: Callable[..., Path], nowhere: Path) -> None:
    env = path_env(make_toolkit("home", "12.4") / "bin")
    for torch_cuda, environment, reason in [
        (None, env, "torch is built without CUDA"),
        ("13.0", env, "another major version"),
        ("13.0", {}, "no CUDA toolkit"),
        ("12.4", {**env, "WITH_CUDA": "0"}, "WITH_CUDA=0"),
    ]:
        decision = setup_py.decide(torch_cuda, environment, nowhere)
        assert decision.toolkit is None and reason in decision.reason


def test_cuda_by_force(setup_py: ModuleType, make_toolkit: Callable[..., Path], nowhere: Path) -> None:
    env = path_env(make_toolkit("home") / "bin", WITH_CUDA="1")
    assert setup_py.decide("13.0", env, nowhere).toolkit is not None
    with pytest.raises(SystemExit, match="WITH_CUDA=1 cannot be met: torch is built without CUDA"):
        setup_py.decide(None, env, nowhere)
    with pytest.raises(SystemExit, match="WITH_CUDA must be 0, 1 or unset, not 'yes'"):
        setup_py.decide(None, {"WITH_CUDA": "yes"}, nowhere)


def test_architectures_are_those_of_torch_that_the_compiler_knows(setup_py: ModuleType) -> None:
    old = "compute_50 compute_70 compute_75 compute_80 compute_86 compute_87 compute_89 compute_90"
    assert setup_py.cuda_archs(old) == "7.5;8.0;8.6;8.9;9.0+PTX"
    assert setup_py.cuda_archs(f"{old} compute_100 compute_103 compute_120") == "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
    of_torch = re.findall(r"sm_(\d+)", (torch._C._cuda_getArchFlags() if torch.version.cuda else None) or "")
    ours = [number.replace(".", "") for number in setup_py.ARCHITECTURES]
    assert set(ours) >= {number for number in of_torch if int(number) >= 75}


def test_kernels_are_compiled_like_the_rest(setup_py: ModuleType) -> None:
    for version, compression in (("12.9", "-Xfatbin=-compress-all"), ("13.0", "--compress-mode=size")):
        flags = setup_py.nvcc_flags(version)
        assert "--fmad=false" in flags and compression in flags
        # torch takes a flag with this word for a choice of architectures and then ignores TORCH_CUDA_ARCH_LIST
        assert not any("arch" in flag or "fast_math" in flag for flag in flags)


def test_one_rule_for_sources(setup_py: ModuleType) -> None:
    compiled = {*setup_py.sources(cuda=True), "csrc/build_info.cpp"}
    written = {str(path.relative_to(ROOT)) for kind in ("cpp", "cu") for path in ROOT.glob(f"csrc/**/*.{kind}")}
    assert compiled == written
    assert not any("cuda" in source for source in setup_py.sources(cuda=False))
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert "csrc/library.cpp csrc/cpu/*.cpp)" in cmake and "csrc/cuda/*.cpp csrc/cuda/*.cu)" in cmake


def test_rules_of_the_kernels() -> None:
    waits_or_allocates = r"\bcuda(Malloc|Free|HostAlloc|Memcpy\b|Memset\b|\w*Synchronize)|\.(item|cpu)(<\w+>)?\(\)"
    for path in ROOT.glob("csrc/cuda/*"):
        assert not re.search(waits_or_allocates, path.read_text()), path
        if path.suffix.startswith(".cu"):
            assert not re.search(r"#include [<\"](ATen|c10|torch)/", path.read_text()), path


# --- the commands of setup.py where there is no torch, as under build isolation ---


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, so that it leaves nothing in the source folder."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CMakeLists.txt", "Makefile"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "densecrf_cuda"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def run_setup(checkout: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = f"import runpy, sys, setuptools; sys.modules['torch'] = None; sys.argv[:] = ['setup.py', *{arguments!r}]; "
    code += "runpy.run_path('setup.py', run_name='__main__')"
    return run_python(code, checkout, **env)


def test_build_without_torch_says_what_to_type(setup_py: ModuleType, checkout: Path) -> None:
    result = run_setup(checkout, "build_ext")
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1] == setup_py.TORCH_IS_MISSING
    assert "pip install --no-build-isolation ." in setup_py.TORCH_IS_MISSING and "\n" not in setup_py.TORCH_IS_MISSING


def test_sdist_needs_no_torch_and_is_complete(checkout: Path) -> None:
    result = run_setup(checkout, "-q", "sdist")
    assert result.returncode == 0, result.stderr
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    kinds = ("cpp", "h", "cu", "cuh")
    needed = {str(path.relative_to(ROOT)) for kind in kinds for path in ROOT.glob(f"csrc/**/*.{kind}")}
    needed |= {"setup.py", "pyproject.toml", "LICENSE", "densecrf_cuda/schemas.def", "densecrf_cuda/_C.pyi"}
    assert needed <= names


def test_wheel_without_extension_is_pure_python(checkout: Path) -> None:
    result = run_setup(checkout, "-q", "bdist_wheel", WITH_EXTENSION="0")
    assert result.returncode == 0, result.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name == f"densecrf_cuda-{densecrf_cuda.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "densecrf_cuda/schemas.def" in names and "densecrf_cuda/py.typed" in names
    assert not any(name.endswith(".so") for name in names)
