"""Build of the two binaries inside the package.

``densecrf_cuda._C``
    a small pybind11 module with the facts of the build, not linked against torch: it loads beside any torch.
``densecrf_cuda._ops``
    the library with every operator, which ``torch.ops.load_library`` loads once the facts fit the torch at hand.

The environment decides, never a question and never a GPU: ``WITH_CUDA=0|1`` forces CUDA off or on,
``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS`` and ``CUDA_HOME`` mean what they mean to every extension of torch, and
``WITH_EXTENSION=0`` makes a wheel without any binary, which runs the reference in plain PyTorch.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# The GPUs that torch's builds for CUDA 13 run on, so that a library runs wherever its torch does; 8.9, for which torch
# has nothing but its code for 8.6, gets code of its own.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
TORCH_IS_MISSING = (
    "densecrf_cuda is compiled against the torch it will run with, and there is none here: "
    "pip install torch, then: pip install --no-build-isolation ."
)


class Toolkit(NamedTuple):
    """A CUDA toolkit: its folder, its version ("13.0"), and how it was found."""

    home: Path
    version: str
    found: str


class Decision(NamedTuple):
    """Whether to build with CUDA (``toolkit`` is None: no), and the reason in words."""

    toolkit: Toolkit | None
    reason: str


def is_toolkit(home: Path) -> bool:
    """Whether ``home`` has the parts that a build needs; a runtime installed on its own lacks some."""
    libraries = [home / "lib64", *home.glob("targets/*/lib")]
    return (
        (home / "bin/nvcc").is_file()
        and (home / "include/cuda_runtime.h").is_file()
        and any((folder / "libcudart.so").exists() for folder in libraries)
    )


def _output(*command: str) -> str:
    try:
        # nvcc writes its dry run to stderr
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout


def toolkit_of_nvcc(nvcc: str) -> Path | None:
    """The toolkit that the compiler says it belongs to: ``nvcc`` may be a wrapper script in any folder."""
    top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "nothing.cu"), re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else None


def toolkit_version(home: Path) -> str:
    """The version of a toolkit as "major.minor", or "" if its compiler does not run."""
    release = re.search(r"release (\d+\.\d+)", _output(str(home / "bin/nvcc"), "--version"))
    return release[1] if release else ""


def candidates(env: Mapping[str, str], system: Path) -> Iterator[tuple[Path, str]]:
    """Folders that may hold a toolkit, the most explicit first, each with how it was found."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if env.get(name):
            yield Path(env[name]), name
    nvcc = shutil.which("nvcc", path=env.get("PATH", ""))
    if nvcc:
        for home in (toolkit_of_nvcc(nvcc), Path(nvcc).resolve().parent.parent):
            if home:
                yield home, f"nvcc on the PATH ({nvcc})"
    # newest first, by number: cuda-13.0 before cuda-9.2
    versioned = sorted(system.glob("cuda-*"), key=lambda home: [int(n) for n in re.findall(r"\d+", home.name)])
    for home in (system / "cuda", *reversed(versioned)):
        yield home, str(system)


def find_toolkits(env: Mapping[str, str], system: Path = Path("/usr/local")) -> list[Toolkit]:
    """Every usable toolkit, in the order of preference."""
    toolkits: dict[Path, Toolkit] = {}
    for home, found in candidates(env, system):
        home = home.resolve()
        if home not in toolkits and is_toolkit(home):
            version = toolkit_version(home)
            if version:
                toolkits[home] = Toolkit(home, version, found)
    return list(toolkits.values())


def decide(torch_cuda: str | None, env: Mapping[str, str], system: Path = Path("/usr/local")) -> Decision:
    """Choose between CUDA and CPU only; raises SystemExit where WITH_CUDA=1 cannot be met."""
    wish = env.get("WITH_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"WITH_CUDA must be 0, 1 or unset, not {wish!r}")
    if wish == "0":
        return Decision(None, "WITH_CUDA=0")
    toolkits = find_toolkits(env, system) if torch_cuda else []
    fitting = [kit for kit in toolkits if torch_cuda and kit.version.split(".")[0] == torch_cuda.split(".")[0]]
    if fitting:
        kit = fitting[0]
        return Decision(kit, f"torch has CUDA {torch_cuda}, toolkit {kit.version} in {kit.home} by {kit.found}")
    if not torch_cuda:
        reason = "torch is built without CUDA"
    elif toolkits:
        versions = ", ".join(f"{kit.version} in {kit.home}" for kit in toolkits)
        reason = f"torch has CUDA {torch_cuda}, but toolkit {versions} has another major version"
    else:
        reason = f"torch has CUDA {torch_cuda}, but no CUDA toolkit with nvcc, headers and libcudart was found"
    if wish == "1":
        raise SystemExit(f"WITH_CUDA=1 cannot be met: {reason}")
    return Decision(None, reason)


def cuda_archs(known: str) -> str:
    """What to compile for unless told: whatever the compiler knows of the list, the last also as PTX for later GPUs."""
    numbers = set(re.findall(r"compute_(\d+)", known))
    return ";".join(arch for arch in ARCHITECTURES if arch.replace(".", "") in numbers) + "+PTX"


def nvcc_flags(version: str) -> list[str]:
    """How every .cu is compiled, apart from the architectures."""
    # As on the CPU: no contraction to FMA, so that the geometry is the same everywhere; kernels write fma() where they
    # want one. All architectures of a file at once, unless MAX_JOBS holds back: ninja counts a file as one job. Line
    # numbers for profilers would double the library; NVCC_APPEND_FLAGS=-lineinfo adds them.
    flags = ["-O3", "--fmad=false", f"--threads={os.environ.get('MAX_JOBS') or 0}"]
    flags += ["-Xcompiler=-Wall,-ffp-contract=off,-fvisibility=hidden"]
    # The smallest form that every driver of this CUDA can unpack.
    return [*flags, "--compress-mode=size" if int(version.split(".")[0]) >= 13 else "-Xfatbin=-compress-all"]


def sources(cuda: bool) -> list[str]:
    """Every .cpp of the library, and with CUDA every .cu; CMakeLists.txt follows the same rule."""
    patterns = ["csrc/library.cpp", "csrc/cpu/*.cpp"] + (["csrc/cuda/*.cpp", "csrc/cuda/*.cu"] if cuda else [])
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def headers() -> list[str]:
    """What a rebuild without ninja watches beside the sources."""
    patterns = ["csrc/**/*.h", "csrc/**/*.cuh", "densecrf_cuda/*.def"]
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def pybind11_include(torch: Any) -> str:
    """The headers of pybind11: its own package if installed, else those that come with torch."""
    try:
        import pybind11
    except ImportError:
        return str(Path(torch.__file__).parent / "include")
    return pybind11.get_include()


def fill_facts(extension: Extension, torch: Any, version: str, decision: Decision) -> None:
    """Complete ``densecrf_cuda._C``: plain C++, the facts as macros."""
    facts = {
        "PACKAGE_VERSION": version,
        "TORCH_VERSION": str(torch.__version__),
        "CUDA_VERSION": decision.toolkit.version if decision.toolkit else "",
        "CUDA_ARCHS": re.sub("[; ]+", " ", os.environ["TORCH_CUDA_ARCH_LIST"]) if decision.toolkit else "",
        "CUDA_DECISION": decision.reason,
    }
    extension.define_macros = [(f"DENSECRF_{name}", f'"{value}"') for name, value in facts.items()]
    has_kernels = any(source.endswith(".cu") for source in sources(decision.toolkit is not None))
    extension.define_macros.append(("DENSECRF_CUDA_KERNELS", str(int(has_kernels))))
    extension.include_dirs = [pybind11_include(torch)]
    extension.extra_compile_args = ["-O2", "-g0", "-fvisibility=hidden"]


def fill_ops(extension: Extension, torch: Any, decision: Decision) -> None:
    """Complete ``densecrf_cuda._ops``, all the operators."""
    from torch.utils import cpp_extension

    # No -march=native: a wheel runs on other machines, instruction sets are chosen at run time. No contraction to FMA:
    # the geometry of the lattice must be the same on every machine. No -std: torch names the one its headers need.
    # No warning about how vectors are passed: none crosses from this library to another.
    common = ["-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
    openmp = ["-fopenmp"] if "backend: OpenMP" in torch.__config__.parallel_info() else []
    make = cpp_extension.CUDAExtension if decision.toolkit else cpp_extension.CppExtension
    made = make(
        extension.name,
        sources(decision.toolkit is not None),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("WITH_CUDA", None)] if decision.toolkit else [],
        extra_compile_args={
            "cxx": [*common, *openmp],
            "nvcc": nvcc_flags(decision.toolkit.version) if decision.toolkit else [],
        },
        # ATen's threads are those of OpenMP; the flag links the libgomp that torch has already loaded
        extra_link_args=openmp,
    )
    vars(extension).update({key: value for key, value in vars(made).items() if not key.startswith("_")})


class BuildExt(build_ext):
    """torch's own build_ext, met only when there is something to compile: sdist and metadata need no torch."""

    def build_extensions(self) -> None:
        try:
            import torch
        except ImportError:
            raise SystemExit(TORCH_IS_MISSING) from None
        decision = decide(torch.version.cuda, os.environ)
        print(f"densecrf_cuda: {'CUDA' if decision.toolkit else 'CPU only'}: {decision.reason}", flush=True)
        if decision.toolkit:
            # cpp_extension reads both, the first when it is imported; unset, it would guess and ask the GPUs
            os.environ["CUDA_HOME"] = str(decision.toolkit.home)
            if os.environ.get("TORCH_CUDA_ARCH_LIST") in (None, ""):
                listed = _output(str(decision.toolkit.home / "bin/nvcc"), "--list-gpu-arch")
                os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_archs(listed)
        from torch.utils.cpp_extension import BuildExtension

        for extension in self.extensions:
            extension.depends = headers()
            if extension.name.endswith("._C"):
                fill_facts(extension, torch, self.distribution.get_version(), decision)
            else:
                fill_ops(extension, torch, decision)
        worker = BuildExtension(self.distribution)
        # a shallow copy of the state: paths, compiler, extensions; use_ninja and the like are the worker's own
        vars(worker).update(vars(self))
        worker.force = self.force or worker.use_ninja
        worker.build_extensions()


def extensions() -> list[Extension]:
    """The binaries, for now by name and sources only; ``BuildExt`` completes them."""
    if os.environ.get("WITH_EXTENSION", "1") == "0":
        return []
    if platform.system() == "Windows":
        print("densecrf_cuda: no compiled library on Windows yet, the reference will run", file=sys.stderr)
        return []
    return [
        Extension("densecrf_cuda._C", ["csrc/build_info.cpp"], language="c++"),
        Extension("densecrf_cuda._ops", sources(cuda=False), language="c++"),
    ]


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
