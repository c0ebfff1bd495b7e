"""Problems for a GPU: pictures, unaries, and the CRFs that the tests run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """[3, H, W] uint8: patches with edges, a smooth change of light, and the noise of a camera."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(1, 3, height // 60 + 2, width // 60 + 2, generator=generator)
    light = torch.rand(1, 3, height // 150 + 2, width // 150 + 2, generator=generator)
    edges = interpolate(patches, (height, width), mode="nearest")
    smooth = interpolate(light, (height, width), mode="bilinear", align_corners=True)
    noise = torch.randn(1, 3, height, width, generator=generator)
    return (160 * edges + 80 * smooth + 4 * noise).round().clamp(0, 255).to(torch.uint8)[0]


def energies(classes: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[C, H, W] float32: patches of labels under noise, as from a coarse network."""
    generator = torch.Generator().manual_seed(1000 + seed)
    labels = torch.randint(classes, (1, 1, height // 40 + 1, width // 40 + 1), generator=generator)
    labels = labels.repeat_interleave(40, 2).repeat_interleave(40, 3)[0, :, :height, :width]
    p = torch.rand(classes, height, width, generator=generator)
    p.scatter_add_(0, labels, torch.ones_like(p))
    return -(p / p.sum(0)).clamp_min(1e-5).log()


class Case(NamedTuple):
    """Inference of one image, or of a batch."""

    height: int
    width: int
    classes: int
    sxy: float = 80
    srgb: float = 13
    batch: int = 0  # 0: the axis is left out
    dimensions: int = 5  # 8: the bilateral kernel gives way to one over features of eight channels

    def crf(self, **settings: Any) -> DenseCRF:
        kernels = [Gaussian(3, 3), Bilateral(self.sxy, self.srgb, 10)]
        if self.dimensions == 8:
            kernels[1] = Features(_eight_channels, 10, bandwidth=20)
        return DenseCRF(self.classes, kernels, **{"iterations": 10} | settings)

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Unary and image on the CPU."""
        seeds = [seed + 100 * b for b in range(max(1, self.batch))]
        unary = torch.stack([energies(self.classes, self.height, self.width, s) for s in seeds])
        image = torch.stack([picture(self.height, self.width, s) for s in seeds])
        return (unary, image) if self.batch else (unary[0], image[0])


def _eight_channels(image: Tensor) -> Tensor:
    """The image as it is, smoothed, and averaged coarsely; features of a network would look like that."""
    image = image[None].to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    means = [torch.nn.functional.avg_pool2d(image, k, 1, k // 2, count_include_pad=False) for k in (5, 15)]
    return torch.cat([image, means[0], means[1][:, :2]], 1)[0]


def worst(got: Tensor, expected: Tensor) -> float:
    """Largest difference."""
    return float((got.cpu().double() - expected.cpu().double()).abs().max())


def clear_flips(got: Tensor, expected: Tensor, margin: float) -> int:
    """Points [C, ...] whose label differs although the two best differ by more than the margin."""
    got, expected = got.cpu(), expected.cpu()
    best = expected.topk(2, 0).values
    return int(((got.argmax(0) != expected.argmax(0)) & (best[0] - best[1] > margin)).sum())
