"""Programs drawn at random, against pydensecrf."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import FORMS, Program, assert_same_marginals, original, run

# The same examples every time, no database, no clock.
RANDOM = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@RANDOM
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    labels=st.integers(1, 5),
    normalization=st.integers(0, 3),
    form=st.sampled_from(list(FORMS)),
    kernel=st.integers(0, 2),
    generic=st.booleans(),
    iterations=st.integers(0, 10),
)
def test_any_program(
    height: int,
    width: int,
    labels: int,
    normalization: int,
    form: str,
    kernel: int,
    generic: bool,
    iterations: int,
) -> None:
    program = Program((height, width), labels, normalization, form, kernel, dimensions=0 if generic else 2)
    theirs = np.array(program.build(original()).inference(iterations))
    assert_same_marginals(run(program, iterations=iterations), theirs, program.exact(iterations))
