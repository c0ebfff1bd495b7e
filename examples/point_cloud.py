"""A dense CRF on a point cloud: labels of single points, made consistent over positions and normals.

    python examples/point_cloud.py

The cloud is drawn here: floor, wall and a ball in a room, each point with its position and its normal. `Features` takes
any features [d, N]; a bandwidth for each says how alike two points must be to share a label.
"""

import time

import torch
from torch import Tensor
from torch.nn.functional import normalize

from densecrf_cuda import DenseCRF, Features, unary_from_labels

POINTS = 20_000  # of each part
NAMES = ("floor", "wall", "ball")
WRONG = 0.4  # share of labels that are wrong before


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """Positions [3, N] in metres, unit normals [3, N] with noise, labels [N]."""
    plane = 4 * torch.rand(2, POINTS, 2)
    zeros, ones = torch.zeros(POINTS), torch.ones(POINTS)
    floor = torch.stack([plane[0, :, 0], plane[0, :, 1], zeros])
    wall = torch.stack([zeros, plane[1, :, 0], plane[1, :, 1]])
    outward = normalize(torch.randn(3, POINTS), dim=0)
    ball = torch.tensor([[0.7], [2.0], [0.5]]) + 0.5 * outward  # touches the floor, nearly the wall
    normals = torch.cat([torch.stack([zeros, zeros, ones]), torch.stack([ones, zeros, zeros]), outward], 1)
    positions = torch.cat([floor, wall, ball], 1) + 0.01 * torch.randn(3, 3 * POINTS)
    return positions, normalize(normals + 0.1 * torch.randn_like(normals), dim=0), torch.arange(3 * POINTS) // POINTS


def main() -> None:
    torch.manual_seed(0)
    positions, normals, truth = draw()
    wrong = torch.rand(truth.shape) < WRONG
    noisy = torch.where(wrong, (truth + torch.randint(1, len(NAMES), truth.shape)) % len(NAMES), truth)

    unary = unary_from_labels(noisy, len(NAMES), confidence=1 - WRONG, spatial_dims=1)  # [C, N]
    features = torch.cat([positions, normals])  # [6, N]
    crf = DenseCRF(len(NAMES), [Features(features, compat=10, bandwidth=[0.2] * 3 + [0.3] * 3)], output="labels")
    begin = time.perf_counter()
    refined = crf(unary)
    elapsed = time.perf_counter() - begin

    print(f"{truth.numel()} points, d = {len(features)}, 10 iterations: {1e3 * elapsed:.0f} ms")
    print(f"{'':6} {'before':>8} {'after':>8}   (labels that are right)")
    for label, name in enumerate(NAMES):
        part = truth == label
        before, after = ((labels[part] == label).float().mean() for labels in (noisy, refined))
        print(f"{name:6} {before:8.1%} {after:8.1%}")


if __name__ == "__main__":
    main()
