"""One process of two that train a network with a CRF inside: gradients of its half of the batch, averaged by torch.

    python ddp_training.py RANK FOLDER

The folder has what test_crf_ddp.py saved; the gradients are saved there.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import deeplab


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=5),
    )
    model, image, labels = torch.load(folder / "problem.pt", weights_only=False)
    parallel = DistributedDataParallel(model)
    half = slice(rank, rank + 1)
    deeplab.output_loss(parallel(image[half]), labels[half], {"out": 1.0, "logits": 0.5}).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save(gradients, folder / f"gradients_{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
