"""A network with a CRF inside on two processes: the gradients are those of one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

pytest.importorskip("torchvision", reason="torchvision is not installed")
import deeplab
from densecrf_cuda import CRFRNN

if not (distributed.is_available() and distributed.is_gloo_available()):
    pytest.skip("torch was built without gloo", allow_module_level=True)


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    crf = CRFRNN(3, alpha=8, beta=30, gamma=2, trainable=("weights", "compatibility", "bandwidths"))
    model = deeplab.with_crf(nn.Conv2d(3, 3, 3, padding=1), crf, normalization="unit", scale=0.5).double()
    image, labels = torch.rand(2, 3, 16, 20, dtype=torch.float64), torch.randint(3, (2, 16, 20))
    torch.save((model, image, labels), tmp_path / "problem.pt")
    script = Path(__file__).with_name("ddp_training.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    deeplab.output_loss(model(image), labels, {"out": 1.0, "logits": 0.5}).backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"gradients_{rank}.pt")
        for name, parameter in model.named_parameters():
            assert parameter.grad.abs().max() > 0
            # sums of double precision in another order
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)
