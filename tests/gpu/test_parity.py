"""Results of a GPU against those of the CPU and of the reference, at the sizes that people use."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import Case, clear_flips, picture, worst
from helpers import Case as LatticeCase
from helpers import assert_same_lattice, build, compatibility, infer, make_term, noise, relative

from densecrf_cuda import reference

CASES = {
    "voc": Case(375, 500, 21),
    "voc-fine": Case(375, 500, 21, 50, 3),
    "cityscapes": Case(1024, 2048, 19),
    "cityscapes-fine": Case(1024, 2048, 19, 50, 3),
    "12-megapixels": Case(3000, 4000, 2),
    "150-classes": Case(375, 500, 150),
    "8-dimensions": Case(300, 400, 21, dimensions=8),
    "16-images": Case(161, 241, 21, batch=16),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@each_case
def test_probabilities(case: Case) -> None:
    crf, (unary, image) = case.crf(), case.inputs()
    expected = crf(unary, image)
    # In double the lattice may differ in a vertex or two; that is part of the error of single precision.
    exact = crf(unary.double(), image.double())
    got = crf.cuda()(unary.cuda(), image.cuda())
    crf.check()
    # Sums in another order, which ten iterations amplify: at most twice the error that the CPU makes.
    assert worst(got, exact) <= 2 * worst(expected, exact) + 1e-6
    axis = 1 if case.batch else 0
    assert clear_flips(got.movedim(axis, 0), expected.movedim(axis, 0), 1e-3) == 0


@each_case
def test_half_precision(case: Case) -> None:
    # Rows of the lattice in half: measured on photos up to 2e-2 where two labels are nearly even, 2e-6 on average.
    unary, image = (tensor.cuda() for tensor in case.inputs())
    full = case.crf().cuda()(unary, image)
    crf = case.crf(precision="fp16").cuda()
    half = crf(unary, image)
    crf.check()
    assert worst(half, full) <= 0.05
    assert float((half - full).abs().mean()) <= 2e-5
    axis = 1 if case.batch else 0
    assert clear_flips(half.movedim(axis, 0), full.movedim(axis, 0), 0.05) == 0


LATTICES = {
    "spatial": LatticeCase((375, 500), True, [3.0] * 2),
    "voc": LatticeCase((375, 500), True, [80.0] * 2 + [13.0] * 3),
    "voc-fine": LatticeCase((375, 500), True, [50.0] * 2 + [3.0] * 3),
    "cityscapes": LatticeCase((1024, 2048), True, [80.0] * 2 + [13.0] * 3),
    "narrow": LatticeCase((375, 500), True, [4.0] * 2 + [3.0] * 3),
    "volume": LatticeCase((20, 100, 120), True, [4.0] * 3 + [10.0]),
    "8-dimensions": LatticeCase((120, 160), True, [10.0] * 2 + [15.0] * 6),
    "16-dimensions": LatticeCase((50, 60), True, [10.0] * 2 + [30.0] * 14),
}


def guide_of(case: LatticeCase, batch: int) -> torch.Tensor:
    """Channels of pictures, [B, G, N] uint8."""
    width = case.grid[-1]
    images = []
    for b in range(batch):
        planes = [picture(case.points // width, width, 100 * b + i) for i in range(max(1, -(-case.channels // 3)))]
        images.append(torch.cat(planes).flatten(1)[: case.channels])
    return torch.stack(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LATTICES)
def test_lattice_is_the_same_in_every_bit(name: str, dtype: torch.dtype) -> None:
    case = LATTICES[name]
    guide = guide_of(case, 1 if case.points > 500_000 else 2)
    assert_same_lattice(build(case, guide.cuda(), dtype=dtype), build(case, guide, dtype=dtype))


@pytest.mark.parametrize("name", ["voc", "voc-fine"])
def test_double_equals_the_reference(name: str) -> None:
    cases = [LATTICES["spatial"], LATTICES[name]]
    unary, compat = noise(1, 21, cases[0].points), compatibility("potts", 21)
    results = {}
    for device in ("cpu", "cuda"):
        guides = [guide_of(case, 1).to(device) for case in cases]
        terms = [make_term(case, guide, compat, dtype=torch.float64) for case, guide in zip(cases, guides)]
        if device == "cuda":
            results[device] = infer(unary.cuda(), terms, cases[0], 5)
        else:
            lattices = [tensor for term in terms for tensor in term.lattice]
            _, norms, names, compats = zip(*terms)
            settings = (cases[0].grid, 5, 0.0, -1.0, "probabilities", "fp32")
            results[device], _ = reference.mean_field(unary, lattices, norms, names, compats, *settings)
    assert relative(results["cuda"], results["cpu"]) <= 1e-10


@pytest.mark.parametrize("trainable", [(), ("weights", "compatibility"), True], ids=["unary", "weights", "all"])
def test_gradients(trainable: bool | tuple[str, ...]) -> None:
    case = Case(96, 128, 21, 20, 13, batch=2)
    unary, image = case.inputs()
    found = {}
    for name, device, dtype in (("exact", "cpu", torch.float64), ("cpu", "cpu", torch.float32), ("gpu", "cuda", None)):
        crf = case.crf(iterations=5, trainable=trainable).to(device)
        leaf = unary.to(device, dtype or torch.float32).requires_grad_()
        q = crf(leaf, image.to(device))
        (q * noise(*q.shape, dtype=torch.float32).to(q)).sum().backward()
        crf.check()
        found[name] = {"unary": leaf.grad, **{key: p.grad for key, p in crf.named_parameters()}}
    for key, exact in found["exact"].items():
        error = worst(found["cpu"][key], exact)
        scale = float(exact.abs().max())
        assert worst(found["gpu"][key], exact) <= 2 * error + 1e-6 * scale, key
