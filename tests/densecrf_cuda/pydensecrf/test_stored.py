"""The drop-in against numbers that pydensecrf gave: what stands where pydensecrf cannot be installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import Program, run

from densecrf_cuda.pydensecrf import densecrf as dropin

# By pydensecrf2 1.1 (Python 3.11, x86-64), with `program.build` as the calls are there:
#     crf = program.build(pydensecrf.densecrf)
#     np.array(crf.inference(10))[0, ::8].round(6)
# and, before that, the divergence after three steps:
#     Q, tmp1, tmp2 = crf.startInference()
#     for _ in range(3): crf.stepInference(Q, tmp1, tmp2)
#     round(crf.klDivergence(Q), 6)
STORED = [
    (
        Program((7, 9), 3, 0, "potts"),
        -43.314436,
        [0.345103, 0.499082, 0.365834, 0.098175, 0.332907, 0.054708, 0.594047, 0.350402],
    ),
    (
        Program((7, 9), 3, 1, "potts"),
        -129.069626,
        [0.012002, 0.013883, 0.031601, 0.000881, 0.000874, 0.000112, 0.014889, 0.002565],
    ),
    (
        Program((7, 9), 3, 2, "diagonal"),
        -383.143851,
        [0.000341, 0.000559, 0.001524, 0.000126, 0.000339, 2.8e-05, 0.002515, 0.000206],
    ),
    (
        Program((7, 9), 3, 3, "potts"),
        -127.588623,
        [0.010256, 0.010261, 0.030843, 0.001596, 0.002179, 0.000222, 0.029757, 0.002747],
    ),
    (
        Program((7, 9), 3, 3, "matrix"),
        -95.575337,
        [0.994106, 0.99738, 0.994554, 0.986098, 0.998453, 0.986275, 0.999017, 0.997632],
    ),
    (
        Program((8, 9), 2, 3, "potts"),
        -187.783952,
        [0.172233, 0.016217, 0.118082, 0.008566, 0.004699, 0.000464, 0.154048, 0.004605, 0.01606],
    ),
    (
        Program((8, 9), 5, 3, "diagonal"),
        -283.976689,
        [0.000976, 0.001303, 0.002809, 9.7e-05, 0.000135, 1.3e-05, 0.001449, 0.000186, 0.00091],
    ),
    (
        Program((3, 5, 7), 3, 3, "potts", dimensions=3),
        -207.501519,
        [
            0.0051,
            0.000853,
            0.005071,
            0.02957,
            0.000231,
            0.002061,
            0.018576,
            0.017918,
            0.003849,
            0.000647,
            0.005388,
            0.000946,
            0.009894,
            0.00461,
        ],
    ),
    (
        Program((9, 10), 3, 2, "matrix", dimensions=0),
        -140.067427,
        [
            0.997096,
            0.997326,
            0.998837,
            0.999472,
            0.935824,
            0.977669,
            0.907126,
            0.985134,
            0.09085,
            0.972249,
            0.991756,
            0.620516,
        ],
    ),
]


@pytest.mark.parametrize(("program", "divergence", "marginals"), STORED, ids=lambda value: str(value)[:80])
def test_stored_numbers(program: Program, divergence: float, marginals: list[float], device: torch.device) -> None:
    # Ten iterations in float32, summed in other orders.
    np.testing.assert_allclose(run(program, device)[0, ::8], marginals, rtol=0, atol=1e-4)
    crf = program.build(dropin, device=device)
    q, *buffers = crf.startInference()
    for _ in range(3):
        crf.stepInference(q, *buffers)
    assert crf.klDivergence(q) == pytest.approx(divergence, rel=1e-4)
