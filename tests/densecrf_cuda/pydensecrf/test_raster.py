"""How points are laid out: the guess of a picture's width, which shows in the time alone, and the padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import pattern_image

from densecrf_cuda.pydensecrf import utils
from densecrf_cuda.pydensecrf._raster import Raster, guess_width


@pytest.mark.parametrize("shape", [(5, 6), (2, 9), (9, 2), (3, 4, 5), (2, 3, 4, 7)])
def test_the_width_is_found_in_features(shape: tuple[int, ...]) -> None:
    image = pattern_image(math.prod(shape[:-1]), shape[-1]).reshape(*shape, 3)
    axes = len(shape)
    for features in (
        utils.create_pairwise_gaussian((3,) * axes, shape),
        utils.create_pairwise_bilateral((80,) * axes, 13, image, chdim=axes),
        utils.create_pairwise_bilateral((80,) * axes, 13, image, chdim=axes)[::-1].copy(),
    ):
        assert guess_width(torch.from_numpy(features)) == shape[-1]


@pytest.mark.parametrize(
    "features",
    [
        np.arange(12.0)[None],  # a line
        np.zeros((2, 12)),
        np.zeros((1, 1)),
        np.random.default_rng(0).random((3, 12)),  # a cloud
        np.arange(12.0)[None] % 5,  # a period that does not divide the number of points
        np.where(np.arange(12) == 11, 9.0, np.arange(12) % 4)[None],  # nearly a period
    ],
)
def test_no_width_is_made_up(features: np.ndarray) -> None:
    assert guess_width(torch.from_numpy(features)) is None


@pytest.mark.parametrize(
    ("shape", "computed"), [((4, 6), (4, 6)), ((5, 5), (6, 5)), ((7,), (8,)), ((8,), (8,)), ((1, 1), (2, 1))]
)
def test_padding_adds_a_row_where_points_are_no_multiple_of_four(
    shape: tuple[int, ...], computed: tuple[int, ...]
) -> None:
    raster = Raster(shape)
    assert raster.computed == computed
    padded = raster.padded(torch.ones(2, raster.points))
    assert padded.shape == (2, math.prod(computed))
    assert padded.sum() == 2 * raster.points
