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

def separable_conv_path(
    *,
    batch: int,
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    out_size: tuple[int, int],
    kernel_size: int,
    dtype: str,
    allow_tf32: bool,
    capability: tuple[int, int],
) -> str:
    """How a GPU of the compute capability computes a separable convolution of channels_last images.

    Args:
        batch: images.
        channels: of the input.
        out_channels: of the output.
        size: height and width of the input in pixels.
        out_size: height and width of the output in pixels.
        kernel_size: of the depthwise convolution.
        dtype: "float16", "bfloat16", "float32" or "float64".
        allow_tf32: whether float32 may be rounded to TF32 for the pointwise product.
        capability: as ``torch.cuda.get_device_capability`` gives it.

    Returns:
        "fused" for one kernel, "library" for a depthwise kernel and a matrix product of cuBLAS.

    Raises:
        ValueError: if dtype is none of these.
    """
