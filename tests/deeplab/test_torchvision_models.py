"""The layout "torch" is torchvision's DeepLab v3: keys, settings of norms, outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import image, on_meta, randomised
from torch import nn
from torchvision import models

import deeplab

V3 = deeplab.deeplabv3


def reference(backbone: str, aux: bool = True) -> nn.Module:
    return models.get_model(f"deeplabv3_{backbone}", weights=None, weights_backbone=None, aux_loss=aux)


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "mobilenet_v3_large"])
def test_keys_and_settings(backbone: str) -> None:
    with torch.device("meta"):
        theirs = reference(backbone)
    ours = on_meta(V3, backbone=backbone, aux=True)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    their_norms = dict(theirs.named_modules())
    for name, module in ours.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (their_norms[name].eps, their_norms[name].momentum), name
        if isinstance(module, nn.Dropout):
            assert module.p == their_norms[name].p


@pytest.mark.parametrize(("backbone", "aux"), [("resnet50", True), ("mobilenet_v3_large", False)])
def test_outputs(backbone: str, aux: bool) -> None:
    theirs = randomised(reference(backbone, aux))
    ours = V3(backbone=backbone, aux=aux).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for size in ((33, 49), (64, 40)):
            x = image(1, 3, *size)
            expected = theirs(x)
            outputs = ours(x) if aux else {"out": ours(x)}
            assert outputs.keys() == expected.keys()
            for name in expected:  # the same operators in the same order
                assert torch.equal(outputs[name], expected[name])


def test_training_step() -> None:
    """Gradients and running statistics too."""
    theirs, ours = randomised(reference("mobilenet_v3_large")), V3(backbone="mobilenet_v3_large", aux=True)
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        outputs = model(image(2, 3, 33, 49))
        (outputs["out"].square().mean() + 0.5 * outputs["aux"].square().mean()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, dict(theirs.named_buffers())[name]), name


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> dict[Any, dict[str, torch.Tensor]]:
    """State dicts of the weights that are asked for, random ones; a real download fails."""
    asked: dict[Any, dict[str, torch.Tensor]] = {}

    def get_state_dict(self: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        name = type(self).__name__.removesuffix("_Weights").lower()
        settings = {"aux_loss": True, "weights_backbone": None} if name.startswith("deeplab") else {}
        asked[self] = randomised(models.get_model(name, weights=None, **settings)).state_dict()
        return asked[self]

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", get_state_dict)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: pytest.fail("a download"))
    return asked


def test_nothing_is_downloaded_unasked(downloads: dict[Any, Any]) -> None:
    for backbone in ("resnet50", "mobilenet_v2", "mobilenet_v3_large", "resnet50_beta"):
        on_meta(V3, backbone=backbone)
        on_meta(deeplab.deeplabv3plus, backbone=backbone)
    assert not downloads


@pytest.mark.parametrize(
    ("backbone", "entry"),
    [
        ("resnet50", models.ResNet50_Weights.IMAGENET1K_V2),
        ("mobilenet_v2", models.MobileNet_V2_Weights.IMAGENET1K_V1),
        ("mobilenet_v3_large", models.MobileNet_V3_Large_Weights.IMAGENET1K_V1),
    ],
)
def test_weights_of_a_backbone(backbone: str, entry: Any, downloads: dict[Any, Any]) -> None:
    """With them the last map at stride 32 is what torchvision's classifier pools: norms and padding are its own."""
    model = deeplab.deeplabv3plus(backbone=backbone, weights=entry, output_stride=32).eval()
    classifier = models.get_model(backbone).eval()
    classifier.load_state_dict(downloads[entry])
    x = image(1, 3, 64, 90)
    with torch.no_grad():
        if backbone == "resnet50":
            layers = nn.Sequential(*list(classifier.children())[:-2])
        else:
            layers = classifier.features[:-1] if backbone == "mobilenet_v2" else classifier.features
        expected = layers(x)
        # the low-level map of MobileNetV2 splits a block, whose sum is the same
        assert torch.equal(model.backbone(x)["out"], expected)


@pytest.mark.parametrize("aux", [True, False])
def test_weights_of_a_whole_model(aux: bool, downloads: dict[Any, Any]) -> None:
    entry = models.segmentation.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    model = V3(backbone="mobilenet_v3_large", aux=aux, weights=entry)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, downloads[entry][name]), name


def test_weights_of_another_network() -> None:
    entry = models.segmentation.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    for settings in ({"num_classes": 19}, {"layout": "tf"}, {"backbone": "resnet50"}):
        with pytest.raises(ValueError, match=r"are for backbone, layout and num_classes .*, got"):
            V3(**{"backbone": "mobilenet_v3_large", **settings}, weights=entry)
    for backbone in ("resnet50_beta", "xception65"):
        with pytest.raises(ValueError, match=f"another network than '{backbone}'"):
            V3(backbone=backbone, weights=models.ResNet50_Weights.IMAGENET1K_V2)
