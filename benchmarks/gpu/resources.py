"""Registers, spills, stack and shared memory of every kernel, from the compiler; needs nvcc and no GPU.

    python benchmarks/gpu/resources.py --archs "7.5;9.0"
    python benchmarks/gpu/resources.py --archs 9.0 --only update_kernel

One line per kernel and architecture; a star marks the hot kernels, those that every iteration runs. Fails where one of
them spills registers.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# In double precision a kernel may spill: it serves checks of gradients, not speed.
HOT = re.compile(r"(update|gradient|gather|blur|splat|slice|separable|finish|depthwise|moments)_kernel(?!.*\bdouble\b)")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


class Kernel(NamedTuple):
    """What the assembler says of one kernel on one architecture; memory in bytes."""

    file: str
    arch: str
    name: str
    registers: int
    spills: int
    stack: int
    shared: int

    @property
    def hot(self) -> bool:
        return HOT.search(self.name) is not None


def load_setup() -> ModuleType:
    """setup.py, which knows the toolkit and the flags."""
    spec = importlib.util.spec_from_file_location("densecrf_cuda_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_file(nvcc: Path, flags: list[str], source: Path, number: str) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", *flags, f"-arch=sm_{number}", "--cubin", "-Xptxas=-v"]
        command += ["-I", ROOT / "csrc", "-o", Path(folder) / "kernels.cubin", source]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SystemExit(result.stdout)
    return list(parse(result.stdout, source.name))


def parse(report: str, file: str) -> list[Kernel]:
    """The kernels in a report of ptxas, by mangled name."""
    kernels = []
    for part in re.split(r"(?=Compiling entry function)", report)[1:]:
        name, arch = ENTRY.search(part).groups()  # type: ignore[union-attr]
        # of the kernel, not of a function that it calls
        stack, stores, loads = map(int, FRAME.search(part[part.index("Function properties for " + name) :]).groups())  # type: ignore[union-attr]
        registers = int(re.search(r"Used (\d+) registers", part)[1])  # type: ignore[index]
        shared = re.search(r"(\d+) bytes smem", part)
        kernels.append(Kernel(file, arch, name, registers, stores + loads, stack, int(shared[1]) if shared else 0))
    return kernels


def readable(names: list[str]) -> list[str]:
    """Demangled, with template arguments, without namespaces and parameters."""
    try:
        lines = subprocess.run(["c++filt", "-p"], input="\n".join(names), check=True, stdout=subprocess.PIPE, text=True)
    except OSError:  # no binutils
        return names
    plain = [re.sub(r"\(anonymous namespace\)::|\b\w+::|^void ", "", line) for line in lines.stdout.splitlines()]
    return [re.sub(r"\((int|bool|long|unsigned int)\)(\d+)", r"\2", line) for line in plain]


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--archs", default="7.5;9.0", help="as in TORCH_CUDA_ARCH_LIST (default: %(default)s)")
    parser.add_argument("--only", default="", help="kernels whose name has this pattern")
    options = parser.parse_args()
    setup = load_setup()
    toolkits = setup.find_toolkits(os.environ)
    if not toolkits:
        print("SKIPPED: no CUDA toolkit with nvcc was found")
        return
    toolkit, sources = toolkits[0], sorted((ROOT / "csrc/cuda").glob("*.cu"))
    numbers = [number.replace(".", "") for number in re.findall(r"\d+\.\d", options.archs)]
    flags, nvcc = setup.nvcc_flags(toolkit.version), toolkit.home / "bin/nvcc"
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(compile_file, nvcc, flags, source, number) for number in numbers for source in sources]
        kernels = [kernel for job in jobs for kernel in job.result()]
    kernels = [kernel._replace(name=name) for kernel, name in zip(kernels, readable([k.name for k in kernels]))]
    kernels = [kernel for kernel in kernels if re.search(options.only, kernel.name)]

    print(f"{'':1} {'arch':6} {'registers':>9} {'spills':>6} {'stack':>6} {'shared':>6}  kernel")
    for k in sorted(kernels, key=lambda k: (k.file, k.name, int(k.arch[3:]))):
        numbers = f"{k.registers:9} {k.spills:6} {k.stack:6} {k.shared:6}"
        print(f"{'*' if k.hot else ' '} {k.arch:6} {numbers}  {k.file}: {k.name}")
    spilling = [k for k in kernels if k.hot and k.spills]
    print(f"{len(kernels)} kernels, {sum(k.hot for k in kernels)} hot, {len(spilling)} hot ones spill")
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
