"""`with_crf` against the CRF called by hand on what it must see, and its gradients against finite differences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("torchvision", reason="torchvision is not installed")
import deeplab
from deeplab.normalization import NORMALIZATIONS, Normalization
from densecrf_cuda import CRFRNN, Bilateral, DenseCRF, Gaussian, unary_from_logits

CLASSES = 3


class Network(nn.Module):
    """Logits at the size of the image, as a tensor or as a dict with an auxiliary output."""

    def __init__(self, aux: bool = False) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(3, CLASSES, 3, padding=1), aux

    def forward(self, input: Tensor) -> Any:
        logits = self.conv(input)
        return {"out": logits, "aux": 2 * logits} if self.aux else logits


def dense(**settings: Any) -> DenseCRF:
    kernels = [Gaussian(sxy=2, compat=1), Bilateral(sxy=8, srgb=30, compat=2)]
    return DenseCRF(CLASSES, kernels, **{"trainable": ("weights", "bandwidths"), **settings})


def rnn(**settings: Any) -> CRFRNN:
    return CRFRNN(
        CLASSES, **{"alpha": 8, "beta": 30, "gamma": 2, "bilateral_weight": 2, "spatial_weight": 1, **settings}
    )


CRFS = {"DenseCRF": dense, "CRFRNN": rnn}


def picture(height: int = 14, width: int = 18, batch: int = 2) -> Tensor:
    """[B, 3, H, W] on 0 to 255, and a little beyond."""
    generator = torch.Generator().manual_seed(3)
    return 300 * torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64) - 20


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", [*NORMALIZATIONS, "own"])
def test_the_crf_sees_the_image_itself(name: str) -> None:
    """A recorder in the place of the CRF's input: the same picture, whatever the network is given."""
    own = Normalization((10.0, 20.0, 30.0), (4.0, 5.0, -6.0), bgr=True)
    normalization = NORMALIZATIONS.get(name, own)
    model = deeplab.with_crf(Network(), rnn(), normalization=own if name == "own" else name).eval()
    seen: list[Tensor] = []
    model.crf.register_forward_pre_hook(lambda crf, arguments: seen.append(arguments[1]))
    image = picture()
    model(normalization.normalize(image).float())
    # three roundings of float32 at numbers below 512
    torch.testing.assert_close(seen[0], image.float(), rtol=0, atol=3 * 2.0**-15)
    assert seen[0].min() < 0 and seen[0].max() > 255


def test_normalizations_are_those_of_the_networks() -> None:
    torchvision = pytest.importorskip("torchvision")
    transforms = torchvision.models.VGG16_Weights.IMAGENET1K_V1.transforms(crop_size=16, resize_size=16)
    image = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(NORMALIZATIONS["imagenet"].normalize(image), transforms(image))
    pixel = torch.tensor([255.0, 127.5, 0.0])[:, None, None]  # red, green, blue
    assert NORMALIZATIONS["tf"].normalize(pixel).flatten().tolist() == [1, 0, -1]
    assert NORMALIZATIONS["unit"].normalize(pixel).flatten().tolist() == [1, 0.5, 0]
    caffe = [0 - 104.008, 127.5 - 116.669, 255 - 122.675]  # blue, green, red
    assert NORMALIZATIONS["caffe"].normalize(pixel).flatten().tolist() == pytest.approx(caffe)


@pytest.mark.parametrize("kind", CRFS)
@pytest.mark.parametrize("aux", [False, True])
def test_refined_scores(kind: str, aux: bool) -> None:
    model = deeplab.with_crf(Network(aux).double(), CRFS[kind](), normalization="unit")
    image = picture()
    logits = model.model.conv(image / 255)
    crf = model.crf

    def expected(iterations: int) -> Tensor:
        if isinstance(crf, CRFRNN):
            return crf(logits, image, iterations=iterations)
        return crf(unary_from_logits(logits), image, iterations=iterations, output="log_probabilities")

    trained = model(image / 255)
    assert set(trained) == {"out", "logits"} | ({"aux"} if aux else set())
    # de-normalising rounds the last bit of the image
    torch.testing.assert_close(trained["out"], expected(5), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(trained["logits"], logits)
    evaluated = model.eval()(image / 255)
    assert isinstance(evaluated, dict) == aux
    torch.testing.assert_close(evaluated["out"] if aux else evaluated, expected(10), rtol=1e-9, atol=1e-9)
    if aux:
        assert set(evaluated) == {"out", "aux"}
        torch.testing.assert_close(evaluated["aux"], 2 * logits)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("DenseCRF", {}, (5, 10)),
        ("CRFRNN", {}, (5, 10)),
        ("DenseCRF", {"iterations": 2, "eval_iterations": 0}, (2, 0)),
        ("CRFRNN", {"eval_iterations": 3}, (1, 3)),
    ],
)
def test_iterations(kind: str, given: dict[str, int], expected: tuple[int, int]) -> None:
    crf = CRFS[kind](iterations=1) if expected[0] == 1 else CRFS[kind]()
    model = deeplab.with_crf(Network(), crf, normalization="unit", **given)
    asked: list[int] = []
    hook = lambda crf, arguments, settings: asked.append(settings["iterations"])  # noqa: E731
    model.crf.register_forward_pre_hook(hook, with_kwargs=True)
    image = picture().float() / 255
    model(image)
    model.eval()(image)
    assert tuple(asked) == expected


@pytest.mark.parametrize(("when", "training", "evaluation"), [("both", 1, 1), ("training", 1, 0), ("evaluation", 0, 1)])
def test_when_the_crf_runs(when: str, training: int, evaluation: int) -> None:
    model = deeplab.with_crf(Network(), rnn(), normalization="unit", when=when)
    image = picture().float() / 255
    logits = model.model(image)
    for mode, runs in ((True, training), (False, evaluation)):
        output = model.train(mode)(image)
        if runs:
            output = output["out"] if mode else output
            assert not torch.allclose(output.softmax(1), logits.softmax(1), atol=1e-3)
        else:
            assert torch.equal(output, logits)


def test_half_the_resolution_has_half_the_bandwidths() -> None:
    image = picture(16, 24)
    model = deeplab.with_crf(Network().double(), dense(), scale=0.5, normalization="none").eval()
    small = F.interpolate(image, (8, 12), mode="bilinear", antialias=True)
    logits = F.interpolate(model.model(image), (8, 12), mode="bilinear")
    crf = DenseCRF(
        CLASSES, [Gaussian(sxy=1, compat=1), Bilateral(sxy=4, srgb=30, compat=2)], output="log_probabilities"
    )
    expected = F.interpolate(crf(unary_from_logits(logits), small), (16, 24), mode="bilinear").log_softmax(1)
    # trained bandwidths are kept as logarithms in float32
    torch.testing.assert_close(model(image), expected, rtol=1e-5, atol=1e-5)
    anisotropic = DenseCRF(CLASSES, [Gaussian(sxy=2, spacing=(2, 3))])
    deeplab.with_crf(Network(), anisotropic, scale=0.25)
    assert anisotropic.pairwise_terms[0].spacing == (8, 12)


@pytest.mark.parametrize("kind", CRFS)
def test_gradients_against_differences(kind: str) -> None:
    """Of the loss with respect to a parameter of the network and every kind of parameter of the CRF."""
    crf = CRFS[kind]()
    if isinstance(crf, DenseCRF):  # no pixel on a face of a simplex, where the lattice has no derivative
        kernels = [Gaussian(sxy=(1.7, 1.3), compat=1), Bilateral(sxy=7.3, srgb=31, compat=2)]
        crf = DenseCRF(CLASSES, kernels, trainable=True)
    model = deeplab.with_crf(Network(True), crf, normalization="unit").double()
    image, labels = picture(9, 11) / 255, torch.randint(CLASSES, (2, 9, 11))
    labels[0, :2] = 255
    weights = {"out": 1.0, "logits": 0.3, "aux": 0.2}

    def loss() -> Tensor:
        return deeplab.output_loss(model(image), labels, weights)

    loss().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        index = parameter.grad.abs().flatten().argmax()
        flat, step = parameter.data.view(-1), 1e-5
        values = []
        for sign in (1, -1):
            flat[index] += sign * step
            values.append(loss().item())
            flat[index] -= sign * step
        numeric = (values[0] - values[1]) / (2 * step)
        # the gradient ignores that vertices of the lattice come and go, which bandwidths move by 1e-5 of a pixel
        assert parameter.grad.view(-1)[index].item() == pytest.approx(numeric, rel=1e-4 if "log_" in name else 1e-6), (
            name
        )


def test_loss_is_a_sum_of_cross_entropies() -> None:
    out, aux = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    labels = torch.randint(4, (2, 5, 6))
    labels[1] = 7
    expected = F.cross_entropy(out, labels, ignore_index=7)
    torch.testing.assert_close(deeplab.output_loss(out, labels, ignore_index=7), expected)
    torch.testing.assert_close(deeplab.output_loss({"out": out.log_softmax(1)}, labels, ignore_index=7), expected)
    both = deeplab.output_loss({"out": out, "aux": aux}, labels, {"out": 1, "aux": 0.4}, ignore_index=7)
    torch.testing.assert_close(both, expected + 0.4 * F.cross_entropy(aux, labels, ignore_index=7))
    assert deeplab.output_loss(out, torch.full((2, 5, 6), 255)) == 0
    with pytest.raises(ValueError, match="weights must be of out, aux, got logits"):
        deeplab.output_loss({"out": out, "aux": aux}, labels, {"logits": 1.0})
    with pytest.raises(ValueError, match="weights must be of out, got none"):
        deeplab.output_loss(out, labels, {})


def test_autocast_keeps_the_energies() -> None:
    """The network computes in bfloat16; what the CRF makes of its scores is what it makes of them in float32."""
    model = deeplab.with_crf(Network(), rnn(), normalization="unit")
    image, labels = picture().float() / 255, torch.randint(CLASSES, (2, 14, 18))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(image)
        loss = deeplab.output_loss(outputs, labels, {"out": 1.0, "logits": 1.0})
    assert outputs["logits"].dtype == torch.bfloat16 and outputs["out"].dtype == torch.float32
    assert torch.equal(outputs["out"], model.crf(outputs["logits"].float(), model.guide(image)))
    loss.backward()
    mixed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    deeplab.output_loss(model(image), labels, {"out": 1.0, "logits": 1.0}).backward()
    for name, parameter in model.named_parameters():
        assert mixed[name].dtype == torch.float32
        # bfloat16 has 8 bits: scores of size 1 are off by 2^-9, their differences through 5 iterations by some of that
        torch.testing.assert_close(
            mixed[name], parameter.grad, rtol=0.05, atol=0.05 * parameter.grad.abs().max().item()
        )


@pytest.mark.parametrize("kind", CRFS)
def test_compiled_training_step(kind: str) -> None:
    model = deeplab.with_crf(Network(), CRFS[kind](), normalization="imagenet", iterations=2)
    image, labels = NORMALIZATIONS["imagenet"].normalize(picture()).float(), torch.randint(CLASSES, (2, 14, 18))
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    losses = [deeplab.output_loss(each(image), labels, {"out": 1.0, "logits": 0.5}) for each in (eager, compiled)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for (name, one), two in zip(eager.named_parameters(), model.parameters()):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_training_together_learns_network_and_crf() -> None:
    labels = torch.zeros(1, 20, 24, dtype=torch.long)
    labels[:, 5:14, 3:12], labels[:, 8:, 14:] = 1, 2
    colours = torch.tensor([[60.0, 60, 60], [150, 90, 60], [60, 110, 160]])
    image = colours[labels].permute(0, 3, 1, 2) + 20 * torch.randn(1, 3, 20, 24)
    model = deeplab.with_crf(Network(), rnn(), normalization="unit")
    before = copy.deepcopy(model.state_dict())
    groups = deeplab.parameter_groups(model, 0.05, multipliers={"crf": 2})
    optimizer = torch.optim.Adam(groups)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(deeplab.output_loss(model(image / 255), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"model.conv.weight", "crf.compatibility", "crf.spatial.weight", "crf.bilateral.weight"} <= changed


def test_checkpoints_hold_network_and_crf_alone() -> None:
    model = deeplab.with_crf(Network(), rnn())
    parts = {f"model.{name}" for name in Network().state_dict()} | {f"crf.{name}" for name in rnn().state_dict()}
    assert set(model.state_dict()) == parts


class NoOut(nn.Module):
    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return {"scores": input}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"scale": 0}, ValueError, r"scale must be in \(0, 1\], got 0"),
        ({"scale": 1.5}, ValueError, r"scale must be in \(0, 1\], got 1.5"),
        ({"scale": float("nan")}, ValueError, "got nan"),
        ({"when": "always"}, ValueError, "when must be"),
        ({"iterations": -1}, ValueError, "iterations"),
        ({"normalization": "torch"}, ValueError, "normalization must be one of imagenet"),
        ({"normalization": ((1.0, 2.0), (1.0,))}, ValueError, "as many deviations as means"),
        ({"normalization": ((1.0,), (0.0,))}, ValueError, "none of them 0"),
        ({"crf": nn.Identity()}, TypeError, "crf must be a DenseCRF or a CRFRNN, got Identity"),
        ({"model": torch.sin}, TypeError, "model must be a module, got builtin_function_or_method"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        deeplab.with_crf(**{"model": Network(), "crf": rnn(), **settings})


def test_bad_inputs() -> None:
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="a dict with 'out', got scores"):
        deeplab.with_crf(NoOut(), rnn())(image)
    with pytest.raises(ValueError, match=r"images must be \[..., 1, H, W\], got \(1, 3, 8, 8\)"):
        deeplab.with_crf(Network(), rnn(), normalization=((0.0,), (1.0,)))(image)
    with pytest.raises(ValueError, match="for 4 classes"):
        deeplab.with_crf(Network(), CRFRNN(4))(image)
