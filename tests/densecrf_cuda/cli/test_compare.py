"""`densecrf compare` against pydensecrf and the exact filter themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import coarse_classes, infer, invoke, random_scores, save_photo, succeed
from oracles import refine_with_pydensecrf
from PIL import Image

from densecrf_cuda import Bilateral, Gaussian, unary_from_labels

SIZE = (24, 32)


@pytest.fixture
def paths(tmp_path: Path) -> list[object]:
    """A photo and its labels."""
    save_photo(tmp_path / "photo.png", size=SIZE)
    Image.fromarray(coarse_classes(3, SIZE).astype(np.uint8)).save(tmp_path / "labels.png")
    return [tmp_path / "photo.png", "--labels", tmp_path / "labels.png"]


def differences(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {" - ".join(row["methods"]): row for row in report["differences"]}


@pytest.mark.parametrize("normalization", ["symmetric", "none", "before", "after"])
def test_differences(normalization: str, paths: list[object]) -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    weights = (0.02, 0.05) if normalization == "none" else (3.0, 10.0)
    options = ["--gaussian-compat", weights[0], "--bilateral-compat", weights[1], "--sxy", "20,30"]
    result = succeed("compare", *paths, "--normalization", normalization, *options, "--json", "--repeats", 1)
    report = json.loads(result.stdout)
    assert (report["width"], report["height"], report["classes"]) == (32, 24, 3)
    assert all(method["seconds"] > 0 for method in report["methods"].values())
    rows = differences(report)

    image = np.array(Image.open(str(paths[0])))
    unary = unary_from_labels(coarse_classes(3, SIZE), 3, 0.7)
    kernels = [Gaussian(3, weights[0]), Bilateral((20, 30), 13, weights[1])]
    q = {
        name: infer(unary, image, "probabilities", kernels=kernels, filter=name, normalization=normalization)
        for name in ("lattice", "dense")
    }
    bandwidths = [(3.0, 3.0), (20.0, 30.0, 13.0, 13.0, 13.0)]
    peer = refine_with_pydensecrf(unary.flatten(1).numpy(), image, bandwidths, weights, normalization, 10)
    q["pydensecrf"] = peer.reshape(3, *SIZE)
    assert list(rows) == ["lattice - dense", "lattice - pydensecrf", "dense - pydensecrf"]
    for name, row in rows.items():
        ours, theirs = (q[part] for part in name.split(" - "))
        # both run anew: pydensecrf and the exact filter repeat themselves to rounding
        assert row["max"] == pytest.approx(np.abs(ours - theirs).max(), abs=1e-5)
        assert row["mean"] == pytest.approx(np.abs(ours - theirs).mean(), abs=1e-6)
        assert row["labels"] == (ours.argmax(0) != theirs.argmax(0)).sum()
    assert rows["lattice - pydensecrf"]["max"] < 1e-4
    assert rows["lattice - dense"]["max"] > rows["lattice - pydensecrf"]["max"]


def test_table(paths: list[object]) -> None:
    lines = succeed("compare", *paths, "--reduce", 2, "--repeats", 2, "--max-dense-pixels", 100).stdout.splitlines()
    threads = torch.get_num_threads()
    assert lines[0] == f"16 x 12 pixels, 3 classes, 10 iterations on cpu, threads: {threads}"
    dense = next(line for line in lines if line.startswith("dense"))
    assert "left out: 192 pixels, more than --max-dense-pixels 100; --reduce" in dense
    assert next(line for line in lines if line.startswith("lattice ")).endswith("ms     2")


def test_one_weight_for_each_class_and_scores(tmp_path: Path, paths: list[object]) -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    np.save(tmp_path / "logits.npy", random_scores(3, SIZE))
    options = ["--bilateral-compat=-4,-5,-6", "--max-dense-pixels", 0, "--json", "--repeats", 1]
    result = succeed("compare", paths[0], "--logits", tmp_path / "logits.npy", *options)
    assert differences(json.loads(result.stdout))["lattice - pydensecrf"]["max"] < 1e-4


def test_what_pydensecrf_lacks(monkeypatch: pytest.MonkeyPatch, paths: list[object]) -> None:
    options = ["--max-dense-pixels", 0, "--json", "--repeats", 1]
    homogeneous = json.loads(succeed("compare", *paths, *options, "--normalization", "homogeneous").stdout)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    missing = json.loads(succeed("compare", *paths, *options).stdout)
    assert missing["methods"]["pydensecrf"]["skipped"].startswith("not installed")
    for report in (homogeneous, missing):
        assert report["methods"]["pydensecrf"]["seconds"] is None
        assert report["differences"] == []


def test_exit_codes(tmp_path: Path, paths: list[object]) -> None:
    (tmp_path / "labels.png").write_bytes(b"")
    result = invoke("compare", *paths)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"densecrf compare: {tmp_path / 'labels.png'}: cannot identify")
    assert invoke("compare", paths[0]).exit_code == 2
