"""Facts of the build; see ``csrc/build_info.cpp``."""

package_version: str
torch_version: str
python_version: str
cuda_version: str | None
cuda_archs: tuple[str, ...]
cuda_decision: str
cuda_kernels: bool
compiler: str
cxx_standard: int
instruction_sets: tuple[str, ...]
