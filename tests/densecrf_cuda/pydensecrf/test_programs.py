"""Whole programs: the tutorials' one with other import lines, and programs whose imports cannot be edited."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import original

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "pydensecrf_program.py"


def run_python(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_example_differs_in_its_import_lines_alone(tmp_path: Path) -> None:
    original()
    source = EXAMPLE.read_text()
    other = re.sub(r"^(import|from) densecrf_cuda\.", r"\1 ", source, flags=re.MULTILINE)
    assert sum(ours != theirs for ours, theirs in zip(source.splitlines(), other.splitlines())) == 2
    (tmp_path / "program.py").write_text(other)
    ours = run_python(str(EXAMPLE), folder=tmp_path)
    assert ours == run_python("program.py", folder=tmp_path)
    before, after = (float(percent) for percent in re.findall(r"([\d.]+)%", ours))
    assert before < 90 < after


UNEDITED = """
import densecrf_cuda.pydensecrf
densecrf_cuda.pydensecrf.replace_pydensecrf()

import pickle
import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf import utils
from pydensecrf.eigen import MatrixXf
from pydensecrf.utils import unary_from_softmax
import densecrf_cuda.pydensecrf.densecrf as ours

assert dcrf is ours and utils.unary_from_softmax is unary_from_softmax
crf = dcrf.DenseCRF2D(4, 3, 2)
crf.setUnaryEnergy(unary_from_softmax(np.full((2, 3, 4), 0.5)))
crf.addPairwiseGaussian(sxy=3, compat=3)
assert isinstance(pickle.loads(pickle.dumps(crf)).inference(2), MatrixXf)
print(dcrf.DenseCRF2D.__module__)
"""


def test_replacing_pydensecrf_for_programs_that_import_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(UNEDITED)
    assert run_python("program.py", folder=tmp_path).strip() == "densecrf_cuda.pydensecrf.densecrf"


@pytest.mark.parametrize("shape", [(40, 52), (41, 51)])
def test_the_wrapper_of_the_tutorials(shape: tuple[int, int]) -> None:
    from densecrf_cuda.pydensecrf import densecrf as dropin
    from densecrf_cuda.pydensecrf import utils

    h, w = shape
    rng = np.random.default_rng(0)
    img = np.kron(rng.integers(0, 256, (h // 10 + 1, w // 10 + 1, 3)), np.ones((10, 10, 1)))[:h, :w].astype(np.uint8)
    probabilities = rng.dirichlet([0.5] * 4, (h, w)).transpose(2, 0, 1).copy()
    results = []
    for module in (dropin, original()):
        d = module.DenseCRF2D(w, h, 4)
        d.setUnaryEnergy(utils.unary_from_softmax(probabilities))
        d.addPairwiseGaussian(sxy=3, compat=3)
        d.addPairwiseBilateral(sxy=80, srgb=3, rgbim=img, compat=10)
        results.append(np.array(d.inference(5)).reshape(4, h, w))
    np.testing.assert_allclose(*results, rtol=0, atol=1e-4)  # five iterations in float32, sums in another order
