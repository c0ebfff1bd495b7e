"""The objects of the drop-in as Python objects: subclasses, copies, pickles, threads; arrays as arrays."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from programs import Program, original, run

from densecrf_cuda.pydensecrf import densecrf as dcrf
from densecrf_cuda.pydensecrf import eigen, utils

PROGRAMS = [Program((8, 9)), Program((7, 9)), Program((3, 5, 7), dimensions=3)]


class Refiner(dcrf.DenseCRF2D):
    """A subclass with an argument of its own."""

    def __init__(self, w: int, h: int, nlabels: int, *, iterations: int) -> None:
        super().__init__(w, h, nlabels)
        self.iterations = iterations

    def refine(self) -> np.ndarray:
        return np.array(self.inference(self.iterations))


def test_subclasses() -> None:
    crf = Refiner(9, 7, 3, iterations=5)
    assert isinstance(crf, dcrf.DenseCRF)
    program = PROGRAMS[1]
    crf.setUnaryEnergy(program.unary)
    crf.addPairwiseGaussian(3, program.compat)
    crf.addPairwiseBilateral(12, (40, 30, 50), program.image, program.compat)
    np.testing.assert_array_equal(crf.refine(), run(program, iterations=5))


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_copies_infer_the_same(program: Program, way: str) -> None:
    crf = program.build(dcrf)
    twin = pickle.loads(pickle.dumps(crf)) if way == "pickle" else copy.deepcopy(crf)
    np.testing.assert_array_equal(twin.inference(5), run(program, iterations=5))
    twin.setUnaryEnergy(np.zeros((3, program.points)))  # and go their own ways
    np.testing.assert_array_equal(crf.inference(5), run(program, iterations=5))


def test_a_pickle_holds_no_lattice() -> None:
    program = PROGRAMS[0]
    given = program.unary.nbytes + program.image.nbytes
    assert len(pickle.dumps(program.build(dcrf))) < given + 10_000  # a lattice takes 36 bytes a point and dimension


@pytest.mark.parametrize("program", PROGRAMS)
def test_threads(program: Program) -> None:
    shared = program.build(dcrf)
    expected = run(program)
    with ThreadPoolExecutor(4) as pool:
        own = list(pool.map(lambda _: run(program), range(8)))
        same = list(pool.map(lambda _: np.array(shared.inference(10)), range(8)))
    for q in own + same:
        np.testing.assert_array_equal(q, expected)


@pytest.mark.parametrize("name", ["DenseCRF.addPairwiseEnergy", "DenseCRF2D.addPairwiseGaussian"])
def test_compiled_signatures_have_no_more_arguments(name: str) -> None:
    # Cython tells no signatures, but it takes what it takes: here by position and by name, in the order of the source.
    cls, method = name.split(".")
    ours = list(inspect.signature(getattr(getattr(dcrf, cls), method)).parameters)[1:]
    first = {"features": np.ones((2, 4), np.float32), "sxy": 3}[ours[0]]
    values = {ours[0]: first, "compat": 3, "kernel": 0, "normalization": 1}
    assert list(values) == ours
    for module in (dcrf, original()):
        crf = module.DenseCRF2D(2, 2, 2)
        getattr(crf, method)(*values.values())
        getattr(crf, method)(**values)


@pytest.mark.parametrize("name", ["densecrf", "utils", "eigen"])
def test_every_public_name_is_there(name: str) -> None:
    theirs = vars(pytest.importorskip(f"pydensecrf.{name}", reason="pydensecrf2 is not installed"))
    ours = vars({"densecrf": dcrf, "utils": utils, "eigen": eigen}[name])
    imported = {"Number", "np", "warning"}
    wanted = {key for key in theirs if not key.startswith("_")} - imported
    assert wanted and wanted <= set(ours)


def test_constants() -> None:
    theirs = original()
    for kind in ("KernelType", "NormalizationType"):
        members = {member.name: int(member) for member in getattr(theirs, kind)}
        assert {member.name: int(member) for member in getattr(dcrf, kind)} == members
        assert {key: getattr(dcrf, key) for key in members} == members


def test_conversions_to_eigen_are_copies() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    matrix, vector = eigen.matrixXf(array), eigen.vectorXf(array[:, 0])
    array[:] = 0
    np.testing.assert_array_equal(matrix, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(vector, [0, 2, 4])
    assert memoryview(matrix).strides == (4, 12)
    assert np.array(eigen.MatrixXf()).shape == (0, 0) and np.array(eigen.VectorXf()).shape == (0,)


@pytest.mark.parametrize(
    ("convert", "value", "error", "message"),
    [
        (eigen.matrixXf, np.zeros((2, 2, 2), np.float32), ValueError, "2 dimensions, got shape"),
        (eigen.matrixXf, np.zeros((2, 2)), ValueError, "must be float32, got float64"),
        (eigen.matrixXf, None, TypeError, "got None"),
        (eigen.vectorXf, np.zeros((2, 2), np.float32), ValueError, "1 dimensions, got shape"),
        (eigen.vectorXf, np.zeros(2), ValueError, "must be float32, got float64"),
        (eigen.vectorXf, None, TypeError, "got None"),
    ],
)
def test_conversions_to_eigen_refuse(convert: Any, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(value)


def test_matrices_behave_as_arrays() -> None:
    matrix = eigen.matrixXf(np.float32([[0.25, 0.5], [0.75, 0.5]]))
    for result in (np.exp(matrix), matrix + 1, np.stack([matrix, matrix]), np.argmax(matrix, axis=0)):
        assert type(result) is np.ndarray
    assert type(np.sum(matrix)) is np.float32
    alias = matrix
    matrix += 1
    assert matrix is alias and type(matrix) is eigen.MatrixXf
    twin = pickle.loads(pickle.dumps(matrix))
    assert type(twin) is eigen.MatrixXf and twin.flags.f_contiguous
    np.testing.assert_array_equal(twin, [[1.25, 1.5], [1.75, 1.5]])
