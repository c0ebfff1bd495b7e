"""A dense CRF on a point cloud: labels of single points, made consistent over positions, normals and colours.

    python examples/point_cloud.py

The cloud is drawn here: floor, rug, wall and a ball in a room, each point with its position, normal and colour.
`Features` takes any features [d, N]; a bandwidth for each says how alike two points must be to share a label. Only the
colour tells where the rug ends, and only the normal where floor and wall meet. See docs/volumes.md.
"""

import time

import torch
from torch import Tensor
from torch.nn.functional import normalize

from densecrf_cuda import DenseCRF, Features, unary_from_labels

NAMES = ("floor", "rug", "wall", "ball")
COLOURS = torch.tensor([[130.0, 100, 70], [150, 60, 50], [140, 105, 75], [160, 120, 60]])
WRONG = 0.4  # share of labels that are wrong before


def draw(points: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions [3, N] in metres, unit normals [3, N] and colours [3, N] on 0 to 255, with noise; labels [N]."""
    plane = 4 * torch.rand(2, points, 2)
    zeros, ones = torch.zeros(points), torch.ones(points)
    floor = torch.stack([plane[0, :, 0], plane[0, :, 1], zeros])
    wall = torch.stack([zeros, plane[1, :, 0], plane[1, :, 1]])
    outward = normalize(torch.randn(3, points), dim=0)
    ball = torch.tensor([[0.7], [2.0], [0.5]]) + 0.5 * outward  # touches the floor, nearly the wall
    on_rug = (floor[0] - 2.2).abs().maximum((floor[1] - 1.6).abs()) < 1
    labels = torch.cat([on_rug.long(), torch.full((points,), 2), torch.full((points,), 3)])
    normals = torch.cat([torch.stack([zeros, zeros, ones]), torch.stack([ones, zeros, zeros]), outward], 1)
    positions = torch.cat([floor, wall, ball], 1) + 0.01 * torch.randn(3, 3 * points)
    colours = COLOURS[labels].T + 15 * torch.randn(3, 3 * points)
    return positions, normalize(normals + 0.1 * torch.randn_like(normals), dim=0), colours, labels


def main(points: int = 20_000) -> dict[str, float]:
    """Share of right labels "before", with "positions", "positions, normals" and "positions, normals, colours"."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    positions, normals, colours, truth = (tensor.to(device) for tensor in draw(points))
    wrong = torch.rand(truth.shape, device=device) < WRONG
    others = (truth + torch.randint_like(truth, 1, len(NAMES))) % len(NAMES)
    noisy = torch.where(wrong, others, truth)

    unary = unary_from_labels(noisy, len(NAMES), confidence=1 - WRONG, spatial_dims=1)  # [C, N]
    features = {  # each with its bandwidths: metres, then those of unit vectors, then grey levels
        "positions": ([positions], [0.2] * 3),
        "positions, normals": ([positions, normals], [0.2] * 3 + [0.3] * 3),
        "positions, normals, colours": ([positions, normals, colours], [0.2] * 3 + [0.3] * 3 + [30.0] * 3),
    }
    labels, times = {"before": noisy}, {"before": 0.0}
    for name, (parts, bandwidth) in features.items():
        crf = DenseCRF(len(NAMES), [Features(torch.cat(parts), compat=10, bandwidth=bandwidth)], output="labels")
        begin = time.perf_counter()
        labels[name] = (
            crf(unary).cpu().to(device)
        )  # .cpu() waits for the device, so that the clock sees all of the work
        times[name] = time.perf_counter() - begin

    print(f"{truth.numel()} points, 10 iterations; labels that are right:")
    print(f"{'':28}" + "".join(f"{name:>8}" for name in NAMES))
    for name, own in labels.items():
        each = [(own[truth == label] == label).float().mean() for label in range(len(NAMES))]
        print(f"{name:28}" + "".join(f"{right:8.1%}" for right in each) + f"{1e3 * times[name]:8.0f} ms")
    return {name: (own == truth).float().mean().item() for name, own in labels.items()}


if __name__ == "__main__":
    main()
