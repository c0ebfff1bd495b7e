"""One step of training v3+ over MobileNetV2 with a CRF-RNN layer, and the most memory that the process took.

    python training_step.py SIZE BATCH

Prints the loss, the norms of the gradients of network and CRF, and the peak in MiB.
"""

from __future__ import annotations

import resource
import sys

import torch

import deeplab
from densecrf_cuda import CRFRNN


def main(size: int, batch: int) -> None:
    torch.manual_seed(0)
    model = deeplab.with_crf(deeplab.deeplabv3plus(backbone="mobilenet_v2"), CRFRNN(21), normalization="tf")
    image = 255 * torch.rand(batch, 3, size // 27 + 1, size // 27 + 1)  # smooth, as photos are
    image = torch.nn.functional.interpolate(image, (size, size), mode="bicubic")
    labels = torch.randint(21, (batch, size, size))
    optimizer = torch.optim.SGD(deeplab.parameter_groups(model, 0.007), lr=0.007, momentum=0.9)
    loss = deeplab.output_loss(model(deeplab.NORMALIZATIONS["tf"].normalize(image)), labels, {"out": 1, "logits": 0.5})
    loss.backward()
    optimizer.step()
    norms = [
        torch.stack([parameter.grad.norm() for parameter in part.parameters()]).norm().item()
        for part in (model.model, model.crf)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"loss {loss.item():.4f} network {norms[0]:.4g} CRF {norms[1]:.4g} peak {peak} MiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
