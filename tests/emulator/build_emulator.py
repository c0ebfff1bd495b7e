"""Compiles the CUDA kernels, their glue and the emulator with g++ into one library; again only what has changed.

As a program it prints the library's path. The sanitized one needs the sanitizers' own libraries to be loaded first:

    library=$(python tests/emulator/build_emulator.py --sanitize)
    DENSECRF_EMULATOR_LIBRARY=$library ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 PYTHONMALLOC=malloc \\
        LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" pytest tests -k emulated
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

EMULATOR = Path(__file__).resolve().parent
ROOT = EMULATOR.parent.parent
COMPILER = os.environ.get("CXX", "g++")
LINKER_SCRIPT = EMULATOR / "shared_memory.ld"

TORCH = Path(torch.__file__).parent
TORCH_INCLUDES = (TORCH / "include", TORCH / "include/torch/csrc/api/include")
# As setup.py compiles the library: no contraction to FMA, and the standard that the headers of torch ask for.
FLAGS = (
    "-std=c++20" if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) >= (2, 12) else "-std=c++17",
    *("-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"),
    "-DDENSECRF_EMULATED",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
)
# A section for each variable, so that the linker's script finds those in shared memory.
KERNEL_FLAGS = ("-x", "c++", "-fdata-sections")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")


class Mutation(NamedTuple):
    """A fault to plant: ``old``, which stands exactly once in the file below csrc, becomes ``new``."""

    file: str
    old: str
    new: str


def compiler_is_missing() -> bool:
    return shutil.which(COMPILER) is None


def build_folder() -> Path:
    """Where objects are kept: in the checkout if possible."""
    for root in (ROOT / "build", Path(tempfile.gettempdir()) / f"densecrf-{os.getuid()}"):
        folder = root / f"emulator-{torch.__version__}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise OSError("no folder for the emulator's objects can be written")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time: another process waits, and then finds everything done."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sources(csrc: Path) -> list[Path]:
    """Every kernel and its glue, apart from what registers it for real GPUs, and the emulator."""
    kernels = [path for pattern in ("*.cu", "*.cpp") for path in (csrc / "cuda").glob(pattern)]
    return sorted(path for path in [*kernels, *EMULATOR.glob("*.cpp")] if path.name != "register.cpp")


def _digest(*parts: str | bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(part.encode() if isinstance(part, str) else part)
        state.update(b"\0")
    return state.hexdigest()[:24]


def _contents(source: Path, csrc: Path) -> dict[str, bytes]:
    """The source and every header of ours that it includes, by name."""
    contents: dict[str, bytes] = {}
    pending = [source]
    while pending:
        path = pending.pop().resolve()
        if str(path) in contents:
            continue
        contents[str(path)] = path.read_bytes()
        for name in re.findall(rb'^\s*#\s*include\s*["<]([^">]+)[">]', contents[str(path)], re.MULTILINE):
            found = [folder / name.decode() for folder in (path.parent, EMULATOR, csrc)]
            pending += [path for path in found if path.is_file()][:1]
    # a mutated copy of csrc shares the objects of what is the same in it
    return {name.replace(str(csrc.resolve()), "csrc"): text for name, text in contents.items()}


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")


def _make(target: Path, command: list[str]) -> Path:
    """Run a command that writes a file named last on its line, and only then give that its name."""
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        _run([*command, "-o", str(partial)])
        partial.replace(target)
    return target


def _object(source: Path, csrc: Path, folder: Path, extra: tuple[str, ...]) -> Path:
    kernel = source.suffix == ".cu"
    includes = [f"-I{EMULATOR}", f"-I{csrc}"]
    if not kernel:
        includes += [f"-isystem{path}" for path in TORCH_INCLUDES]
    flags = [*FLAGS, *extra, *(KERNEL_FLAGS if kernel else ())]
    parts = [part for item in sorted(_contents(source, csrc).items()) for part in item]
    name = f"{_digest(COMPILER, *flags, *parts)}-{source.name}.o"
    return _make(folder / name, [COMPILER, *flags, *includes, "-c", str(source)])


@contextmanager
def _mutated(mutation: Mutation | None) -> Iterator[Path]:
    """The folder csrc, or a copy of it with the fault in place."""
    if mutation is None:
        yield ROOT / "csrc"
        return
    text = (ROOT / "csrc" / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        raise ValueError(f"{mutation.old!r} must stand exactly once in {mutation.file}, not {count} times")
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder) / "csrc"
        shutil.copytree(ROOT / "csrc", csrc)
        (csrc / mutation.file).write_text(text.replace(mutation.old, mutation.new))
        yield csrc


def build(mutation: Mutation | None = None, sanitize: bool = False) -> Path:
    """Build what has changed since the last time, and return the library."""
    folder, extra = build_folder(), SANITIZERS if sanitize else ()
    with _locked(folder), _mutated(mutation) as csrc:
        # one source at a time for each processor, the slow ones first
        ordered = sorted(sources(csrc), key=lambda path: path.suffix != ".cpp")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: str(_object(source, csrc, folder, extra)), ordered))
        libraries = [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
        command = [COMPILER, *extra, "-shared", "-Wl,-z,defs", f"-Wl,-T,{LINKER_SCRIPT}", *objects, *libraries]
        return _make(folder / f"{_digest(*command, LINKER_SCRIPT.read_bytes())}.so", command)


def build_program(test: Path, kernels: Iterable[str], mutation: Mutation | None = None) -> Path:
    """Build a test of tests/csrc with the kernels that it needs; in a hurry, for it runs once."""
    folder, extra = build_folder(), ("-O0", f"-I{test.parent}")
    with _locked(folder), _mutated(mutation) as csrc:
        emulator = [EMULATOR / f"{name}.cpp" for name in ("emulator", "fiber", "meetings")]
        sources_of_program = [*(csrc / "cuda" / name for name in kernels), test, *emulator]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: str(_object(source, csrc, folder, extra)), sources_of_program))
        command = [COMPILER, f"-Wl,-T,{LINKER_SCRIPT}", *objects]
        return _make(folder / f"{_digest(*command, LINKER_SCRIPT.read_bytes())}-{test.stem}", command)


def run_program(test: Path, kernels: Iterable[str], mutation: Mutation | None) -> subprocess.CompletedProcess[str]:
    """Build a test as `build_program` does, and run it."""
    return subprocess.run([build_program(test, kernels, mutation)], capture_output=True, text=True, timeout=600)


if __name__ == "__main__":
    print(build(sanitize="--sanitize" in sys.argv[1:]))
