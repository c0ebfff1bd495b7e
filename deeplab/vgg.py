"""VGG-16 made fully convolutional: its features at stride 8, 16 or 32, and its classifier as convolutions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from densecrf_cuda.settings import whole_number

from .backbone import Backbone, check_output_stride
from .geometry import Atrous, place

__all__ = ["VGG16", "VGGClassifier", "load_vgg", "vgg_classifier_weights"]

HIDDEN = 4096  # channels of fc6 and fc7 in VGG-16
# Which of the 7 taps of fc6 a smaller kernel keeps; at the distance that they have there, it covers as much.
TAPS = {7: range(7), 4: range(0, 7, 2), 3: range(0, 7, 3)}


class VGG16(Backbone):
    """The convolutions of VGG-16 under the names that torchvision has for them, at an output stride of choice.

    At stride 8 the last two poolings have none, and the three convolutions between them are dilated by 2.

    Args:
        output_stride: 8, 16 or 32.
        pool: window of the poolings: 2 as in VGG-16, or 3 as in the released DeepLab models.

    Raises:
        ValueError: another stride or window.

    Chen, Papandreou, Kokkinos, Murphy & Yuille, "Semantic image segmentation with deep convolutional nets and fully
    connected CRFs", 2015, section 3.1.

    Example:
        >>> VGG16()(torch.zeros(1, 3, 41, 57))["out"].shape
        torch.Size([1, 512, 6, 8])
    """

    def __init__(self, *, output_stride: int = 8, pool: int = 2) -> None:
        super().__init__()
        if pool not in (2, 3):
            raise ValueError(f"pool must be 2 or 3, got {pool!r}")
        self.channels = {"image": 3, "pool1": 64, "pool2": 128, "pool3": 256, "pool4": 512, "out": 512}
        # Of 138 million parameters 124 are in the classifier, which is left where it takes no memory.
        with torch.device("meta"):
            features = torchvision.models.vgg16(init_weights=False).features
        self.features = features.to_empty(device=torch.get_default_device())
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.MaxPool2d):
                self.features[index] = CeilMaxPool2d(pool)
            elif isinstance(layer, nn.Conv2d):
                initialise_hidden(layer)
        self.set_output_stride(output_stride)

    def set_output_stride(self, output_stride: int) -> None:
        self.output_stride = check_output_stride(output_stride)
        atrous = Atrous(output_stride)
        for layer in self.features:
            if isinstance(layer, CeilMaxPool2d):
                layer.stride = atrous.take(2)
            elif isinstance(layer, nn.Conv2d):
                place(layer, 1, atrous.dilation)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Maps of images [B, 3, H, W]: "image" itself, "pool1" to "pool4", and "out", that of the last pooling."""
        maps = {"image": input}
        features = input
        for layer in self.features:
            features = layer(features)
            if isinstance(layer, CeilMaxPool2d):
                maps[f"pool{len(maps)}"] = features
        return self.tapped(**{name: maps[name] for name in self.taps if name != "out"}, out=features)


class CeilMaxPool2d(nn.MaxPool2d):
    """The largest value of windows: of N values ceil(N / stride) are left, as in Caffe."""

    stride: int

    def __init__(self, window: int) -> None:
        super().__init__(window, 2, padding=window // 3, ceil_mode=window == 2)

    def forward(self, input: Tensor) -> Tensor:
        if self.kernel_size == 2 and self.stride == 1:
            input = F.pad(input, (0, 1, 0, 1), value=float("-inf"))
        return super().forward(input)


class VGGClassifier(nn.Sequential):
    """fc6, fc7 and the classifier of VGG-16 as convolutions: k × k with a rate, 1 × 1 and 1 × 1.

    Args:
        num_classes: of the last one.
        kernel: k.
        rate: dilation of fc6 at output stride 8.
        channels: of fc6 and fc7.
        more: channels that are put beside those of fc7.

    Chen et al. 2015, section 3.1; its sequel of 2016, section 4.1, table 1.

    Example:
        >>> classifier = VGGClassifier(21, kernel=3, rate=12, channels=1024)
        >>> classifier({"out": torch.zeros(1, 512, 6, 8)}).shape
        torch.Size([1, 21, 6, 8])
    """

    fc6: nn.Conv2d
    fc7: nn.Conv2d
    fc8: nn.Conv2d

    def __init__(self, num_classes: int, *, kernel: int, rate: int, channels: int, more: int = 0) -> None:
        super().__init__()
        for i, conv in ((6, nn.Conv2d(512, channels, kernel)), (7, nn.Conv2d(channels, channels, 1))):
            initialise_hidden(conv)
            self.add_module(f"fc{i}", conv)
            self.add_module(f"relu{i}", nn.ReLU(inplace=True))
            self.add_module(f"drop{i}", nn.Dropout(0.5))
        self.fc8 = classifier_conv(channels + more, num_classes, 1)
        self.rate = whole_number("rate", rate, 1)
        self.set_output_stride(8)

    def forward(self, maps: Mapping[str, Tensor], *more: Tensor) -> Tensor:
        """Logits [B, num_classes, H, W] from the map "out" [B, 512, H, W] and, beside fc7, [B, ., H, W]."""
        features = maps["out"]
        for name, layer in self.named_children():
            if name == "fc8" and more:
                features = torch.cat([features, *more], 1)
            features = layer(features)
        return features

    def set_output_stride(self, output_stride: int) -> None:
        """Give fc6 the rate with which it covers as much of the image.

        Raises:
            ValueError: the rate would be no whole number, or no padding would keep the size of the map.
        """
        rate, rest = divmod(8 * self.rate, output_stride)
        size = self.fc6.kernel_size[0]
        if rest or rate * (size - 1) % 2:
            raise ValueError(
                f"output_stride must leave the {size} taps of fc6 at whole numbers around the middle, whose rate is "
                f"{self.rate} at output stride 8, got {output_stride}"
            )
        place(self.fc6, 1, rate)

    def load_decimated(self, classifier: Mapping[str, Tensor]) -> None:
        """Take fc6 and fc7 from VGG-16's own: taps 0, 3, 6 or 0, 2, 4, 6 of seven, every n-th of the 4096 channels.

        Args:
            classifier: as `vgg_classifier_weights` returns it.
        """
        step, taps = HIDDEN // self.fc6.out_channels, torch.tensor(TAPS[self.fc6.kernel_size[0]])
        fc6 = classifier["0.weight"].reshape(HIDDEN, 512, 7, 7)[::step][:, :, taps[:, None], taps]
        fc7 = classifier["3.weight"][::step, ::step, None, None]
        with torch.no_grad():
            self.fc6.weight.copy_(fc6)
            self.fc6.bias.copy_(classifier["0.bias"][::step])  # type: ignore[union-attr]
            self.fc7.weight.copy_(fc7)
            self.fc7.bias.copy_(classifier["3.bias"][::step])  # type: ignore[union-attr]


def initialise_hidden(conv: nn.Conv2d) -> None:
    """As torchvision initialises a VGG: the variance of gradients is kept through a ReLU."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def classifier_conv(in_channels: int, num_classes: int, kernel: int) -> nn.Conv2d:
    """A last layer, which begins with small scores as in the papers."""
    conv = nn.Conv2d(in_channels, num_classes, kernel)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def vgg_classifier_weights(weights: VGG16_Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dicts of the features and of the classifier of torchvision's VGG-16, downloaded.

    Raises:
        ValueError: weights that have no classifier.
    """
    if weights.meta["categories"] is None:
        raise ValueError(f"weights must have a classifier for fc6 and fc7, got {weights}")
    state = weights.get_state_dict(progress=True, check_hash=True)
    parts = ("features.", "classifier.")
    features, classifier = (
        {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)} for part in parts
    )
    return features, classifier


def load_vgg(backbone: VGG16, classifiers: list[VGGClassifier], weights: VGG16_Weights) -> None:
    """Initialise a network by a VGG-16 that classifies images; the last layer stays as it is."""
    features, classifier = vgg_classifier_weights(weights)
    backbone.features.load_state_dict(features)
    for each in classifiers:
        each.load_decimated(classifier)
