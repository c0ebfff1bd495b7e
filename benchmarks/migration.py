"""Other packages beside what docs/migrating.md puts in their place, on one photo: a Markdown table of the differences.

    python benchmarks/migration.py                      # peers that cannot be imported are left out

Peers come from elsewhere: SimpleCRF from the package index (it needs numpy < 2), crfasrnn_pytorch and MONAI from their
repositories, each after `python setup.py build_ext --inplace` (crfasrnn_pytorch in its folder crfasrnn; MONAI with
BUILD_MONAI=1), with both repositories and the former's folder crfasrnn on PYTHONPATH.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from torch import Tensor

from densecrf_cuda import unary_from_logits

PAGE = Path(__file__).resolve().parent.parent / "docs" / "migrating.md"
LABELS = 4


def page() -> dict[str, Any]:
    """What the page defines: the code under test is the code that is shown."""
    names: dict[str, Any] = {"__name__": "migrating"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


def problem() -> tuple[np.ndarray, np.ndarray]:
    """A photo [97, 131, 3] uint8 and coarse probabilities [97, 131, C]."""
    photo = np.ascontiguousarray(skimage.data.astronaut()[::4, ::3][:97, :131])
    coarse = np.random.default_rng(0).dirichlet(np.full(LABELS, 0.5), size=(13, 17))
    return photo, np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:97, :131], np.float32)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """SimpleCRF prints from C++."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def row(name: str, theirs: Any, ours: Any) -> str:
    """Labels [...] or probabilities [1, C, H, W]."""
    if not isinstance(theirs, Tensor):
        return f"| {name} | {(theirs == ours).sum()} of {theirs.size} | |"
    same = theirs.argmax(1) == ours.argmax(1)
    return f"| {name} | {int(same.sum())} of {same.numel()} | {float((theirs - ours).abs().max()):.1e} |"


def simplecrf(names: dict[str, Any]) -> Iterator[str]:
    import denseCRF
    import denseCRF3D

    photo, shares = problem()
    param = (10.0, 80.0, 13.0, 3.0, 3.0, 5.0)
    yield row("SimpleCRF, 2-D", denseCRF.densecrf(photo, shares, param), names["densecrf"](photo, shares, param))
    volume = {"MaxIterations": 5.0, "PosW": 2.0, "BilateralW": 3.0, "ModalityNum": 1.0, "BilateralModsStds": (20.0,)}
    volume |= {f"Pos{axis}Std": width for axis, width in zip("RCZ", (3.0, 2.0, 1.5))}
    volume |= {f"Bilateral{axis}Std": width for axis, width in zip("RCZ", (8.0, 6.0, 4.0))}

    def case(*shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z, y, x = np.indices(shape)
        noise = np.random.default_rng(1).integers(0, 20, shape)
        intensity = ((40 * (x // 5) + 25 * (y // 4) + 60 * (z // 3)) % 200 + noise).astype(np.uint8)[..., None]
        share = np.clip((x + 2 * y + 3 * z) % 17 / 17, 0.02, 0.98).astype(np.float32)
        both = np.stack([1 - share, share], -1)
        with silent():
            return intensity, both, denseCRF3D.densecrf3d(intensity, both, volume)

    intensity, both, labels = case(16, 16, 16)
    yield row("SimpleCRF, 3-D, 16 × 16 × 16", labels, names["densecrf3d"](intensity, both, volume))
    intensity, both, labels = case(6, 14, 20)
    yield row("SimpleCRF, 3-D, 6 × 14 × 20", labels, names["densecrf3d"](intensity, both, volume))
    swapped = names["densecrf3d"](intensity.reshape(20, 14, 6, 1), both.reshape(20, 14, 6, 2), volume)
    yield row("the same memory read as 20 × 14 × 6", labels, swapped.reshape(labels.shape))


def tensors() -> tuple[Tensor, Tensor]:
    photo, shares = problem()
    logits = torch.from_numpy(shares).permute(2, 0, 1)[None].clamp(min=1e-3).log()
    return logits, torch.from_numpy(photo).permute(2, 0, 1)[None].float()


def crfasrnn(names: dict[str, Any]) -> Iterator[str]:
    from crfasrnn.crfrnn import CrfRnn

    logits, image = tensors()
    layer = CrfRnn(LABELS)
    ours = names["crfrnn"](layer.state_dict())
    with torch.no_grad():
        yield row("crfasrnn_pytorch", layer(image, logits).softmax(1), ours(logits, image).exp())
        for matrix in layer.parameters():
            matrix += 0.3 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(2))
        ours = names["crfrnn"](layer.state_dict())
        theirs = layer(image, logits).softmax(1)
        yield row("crfasrnn_pytorch, matrices disturbed", theirs, ours(logits, image).exp())


def monai(names: dict[str, Any]) -> Iterator[str]:
    from monai.networks.blocks import CRF

    logits, image = tensors()
    theirs = CRF()(logits, image / 255)
    crf = names["DenseCRF"](LABELS, names["kernels"], normalization="homogeneous", iterations=5)
    yield row("MONAI, y, x, channels", theirs, crf(unary_from_logits(logits), image / 255))
    yield row("MONAI, x, y, channels", theirs, names["monai_crf"](LABELS)(unary_from_logits(logits), image / 255))


def print_rows(peer: Callable[[dict[str, Any]], Iterator[str]], names: dict[str, Any]) -> None:
    try:
        for line in peer(names):
            print(line, flush=True)
    except ImportError as error:
        print(f"| {peer.__name__} | cannot be imported: {str(error).splitlines()[0]} | |")


def main() -> None:
    names = page()
    peers: tuple[Callable[[dict[str, Any]], Iterator[str]], ...] = (simplecrf, crfasrnn, monai)
    print("| peer | the same labels | largest difference of a probability |\n|---|---|---|")
    for peer in peers:
        print_rows(peer, names)


if __name__ == "__main__":
    main()
