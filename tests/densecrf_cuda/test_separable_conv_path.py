"""Which separable convolutions of the models in use a GPU computes in one kernel."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from densecrf_cuda import _C

H200 = (9, 0)


class Row(NamedTuple):
    """One convolution for a picture of 513 x 513 points: channels in and out, height in and out."""

    channels: int
    out_channels: int
    size: int
    out_size: int


# DeepLabv3+ on Xception-65, by the part of the network.
ENTRY = [
    Row(64, 128, 257, 257),
    Row(128, 128, 257, 257),
    Row(128, 128, 257, 129),
    Row(128, 256, 129, 129),
    Row(256, 256, 129, 129),
    Row(256, 256, 129, 65),
]
MIDDLE = [Row(728, 728, 33, 33), Row(728, 728, 65, 65)]
EXIT = [
    Row(*channels, size, size)
    for channels in [(728, 1024), (1024, 1024), (1024, 1536), (1536, 1536), (1536, 2048)]
    for size in (33, 65)
]
ASPP = [Row(2048, 256, 33, 33), Row(2048, 256, 65, 65)]
DECODER = [Row(304, 256, 129, 129), Row(256, 256, 129, 129)]
# Depthwise and linear projection of MobileNetV2's inverted residuals, output strides 16 and 8.
MOBILENET = [
    Row(32, 16, 257, 257),
    Row(96, 24, 257, 129),
    Row(144, 24, 129, 129),
    Row(144, 32, 129, 65),
    Row(192, 32, 65, 65),
    Row(192, 64, 65, 33),
    *(Row(*channels, size, size) for channels in [(384, 64), (384, 96), (576, 96), (576, 160)] for size in (33, 65)),
    *(Row(*channels, size, size) for channels in [(960, 160), (960, 320)] for size in (33, 65)),
]
FUSED, LIBRARY = ENTRY + ASPP + DECODER + MOBILENET, MIDDLE + EXIT


def path(
    row: Row, dtype: str = "bfloat16", *, batch: int = 8, tf32: bool = True, capability: tuple[int, int] = H200
) -> str:
    return _C.separable_conv_path(
        batch=batch,
        channels=row.channels,
        out_channels=row.out_channels,
        size=(row.size, row.size),
        out_size=(row.out_size, row.out_size),
        kernel_size=3,
        dtype=dtype,
        allow_tf32=tf32,
        capability=capability,
    )


@pytest.mark.parametrize("batch", [1, 8, 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_one_kernel_where_memory_or_the_depthwise_part_dominates(dtype: str, batch: int) -> None:
    assert [row for row in FUSED if path(row, dtype, batch=batch) != "fused"] == []


@pytest.mark.parametrize("batch", [1, 8, 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_library_where_the_product_dominates(dtype: str, batch: int) -> None:
    assert [row for row in LIBRARY if path(row, dtype, batch=batch) != "library"] == []


def test_exact_float_is_fused_only_where_memory_bounds_it() -> None:
    assert path(Row(32, 16, 257, 257), "float32", tf32=False) == "fused"
    assert path(Row(144, 24, 129, 129), "float32", tf32=False) == "fused"
    assert {path(row, "float32", tf32=False) for row in MIDDLE + EXIT + ASPP + DECODER} == {"library"}


def test_types_without_tensor_cores_take_the_library() -> None:
    row = ASPP[0]
    assert path(row, "float64") == "library"
    assert path(row, "float16", capability=(7, 5)) == path(row, "float16", capability=(8, 6)) == "fused"
    assert path(row, "bfloat16", capability=(7, 5)) == "library"
    assert path(row, "float32", capability=(7, 5)) == "library"


def test_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype must be float16, bfloat16, float32 or float64, not int8"):
        path(ASPP[0], "int8")
