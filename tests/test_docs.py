"""The documentation holds: its code runs, its links lead somewhere, its figures can be drawn, its site can be built.

A block of Python that needs what is not here (a peer, a GPU, many minutes) has a comment `<!-- not run: why -->` on the
line before it. All others of a page run in one namespace, from top to bottom.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import densecrf_cuda
from densecrf_cuda import reference, unary_from_logits

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
BLOCK = re.compile(r"^(?P<skip><!-- not run: .+ -->\n)?(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.DOTALL | re.M)
FIGURES = {  # how many pictures each script draws, and what makes it quick
    "draw_lattice.py": (3, []),
    "draw_parameters.py": (8, []),
    "draw_deeplab_v1_v2.py": (2, []),
    "draw_deeplab_v3.py": (2, []),
    "draw_errors.py": (1, ["--height", "15", "--width", "20"]),
}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run_blocks(path: Path) -> dict[str, Any]:
    """The namespace that the blocks of a page leave behind; tracebacks name the lines of the page."""
    text = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": path.stem}
    for block in BLOCK.finditer(text):
        if block["skip"] is None:
            line = text.count("\n", 0, block.start("code"))
            exec(compile("\n" * line + textwrap.dedent(block["code"]), str(path), "exec"), names)
    return names


@pytest.fixture
def restore_pydensecrf() -> Iterator[None]:
    """One page puts our modules in the place of pydensecrf's, which other tests compare with."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "pydensecrf"}
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "pydensecrf"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.usefixtures("restore_pydensecrf")
@pytest.mark.parametrize(
    "path", [path for path in PAGES if "```python" in path.read_text(encoding="utf-8")], ids=page_id
)
def test_code_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for what it writes
    for folder in ("benchmarks", "benchmarks/gpu"):  # which one page asks to have on PYTHONPATH
        monkeypatch.syspath_prepend(ROOT / folder)
    torch.manual_seed(0)
    run_blocks(path)


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n<!-- not run: no peer -->\n```python\nimport peer\n```\n")
    assert run_blocks(page)["x"] == 1
    page.write_text("# Page\n\n1. list\n\n   ```python\n   x = 1\n   assert x == 2\n   ```\n")
    with pytest.raises(AssertionError) as failure:
        run_blocks(page)
    assert failure.traceback[-1].lineno == 6  # counted from 0: the assertion's line of the page


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^( *)```.*?^\1```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site_documents_every_public_name(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    public = [name for name in densecrf_cuda.__all__ if not name.startswith("_")]
    public += [f"reference.{name}" for name in reference.__all__ if not name.startswith("_")]
    assert [name for name in public if f'id="densecrf_cuda.{name}"' not in pages] == []
    # an example is code, not a quotation
    assert "&gt;&gt;&gt;" in pages and "<blockquote>" not in pages


def test_site_asks_nobody_for_anything(site: Path) -> None:
    asked = []
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = page.read_text(encoding="utf-8")
        tags = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)", text
        )
        asked += [*tags, *re.findall(r"(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"') ]+)", text)]
    assert asked == []


@pytest.mark.parametrize("script", FIGURES)
def test_figures_can_be_drawn(script: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra docs is not installed")
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    if "deeplab" in script:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    draw: Callable[[list[str]], None] = runpy.run_path(str(ROOT / "docs" / "figures" / script))["main"]
    count, options = FIGURES[script]
    draw(["--output", str(tmp_path), *options])
    drawn = [picture.name for picture in tmp_path.iterdir()]
    assert len(drawn) == count
    assert [name for name in drawn if not (ROOT / "docs" / "figures" / name).exists()] == []


@pytest.fixture(scope="module")
def migrating() -> dict[str, Any]:
    """What docs/migrating.md puts in the place of peers; below, against pydensecrf and against their loops."""
    return run_blocks(ROOT / "docs" / "migrating.md")


def run_pydensecrf(shares: np.ndarray, kernels: list[tuple[np.ndarray, float]], iterations: int) -> np.ndarray:
    """Q [C, N] for probabilities [*spatial, C] and pairs of features [d, *spatial] and Potts weight."""
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    labels = shares.shape[-1]
    crf = densecrf.DenseCRF(shares.size // labels, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(shares.reshape(-1, labels).T), np.float32))
    for features, weight in kernels:
        crf.addPairwiseEnergy(np.ascontiguousarray(features.reshape(len(features), -1), np.float32), compat=weight)
    return np.array(crf.inference(iterations))


def assert_labels(labels: np.ndarray, q: np.ndarray) -> None:
    best = np.sort(q, axis=0)
    sure = best[-1] - best[-2] > 1e-3  # both sum in float32, in different orders
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(labels.reshape(-1)[sure], q.argmax(0)[sure])


def test_migrating_simplecrf_2d(migrating: dict[str, Any]) -> None:
    photo, shares = migrating["photo"], migrating["shares"].copy()
    shares[:8] = (1, 0, 0)  # which the peer clips
    labels = migrating["densecrf"](photo, shares, (10.0, 40.0, 30.0, 3.0, 2.0, 5.0))
    y, x = np.indices(photo.shape[:2])
    colour = np.stack([x / 40, y / 40, *(photo[..., c] / 30 for c in range(3))])
    q = run_pydensecrf(shares.clip(0.01, 0.99), [(colour, 10.0), (np.stack([x, y]) / 2, 3.0)], 5)
    assert_labels(labels, q)


def test_migrating_simplecrf_3d(migrating: dict[str, Any]) -> None:
    z, y, x = np.indices((8, 8, 8))
    intensity = (40 * (x // 3) + 25 * (y // 4) + 60 * (z // 3) + x % 2).astype(np.uint8)
    share = ((x + 2 * y + 3 * z) % 17 / 17).clip(0.02, 0.98)
    shares = np.stack([1 - share, share], -1).astype(np.float32)
    param = {"MaxIterations": 3.0, "PosW": 2.0, "BilateralW": 3.0, "ModalityNum": 1.0, "BilateralModsStds": (20.0,)}
    param |= {"PosRStd": 3.0, "PosCStd": 2.0, "PosZStd": 1.5}
    param |= {"BilateralRStd": 8.0, "BilateralCStd": 6.0, "BilateralZStd": 4.0}
    labels = migrating["densecrf3d"](intensity[..., None], shares, param)
    position = np.stack([x / 3, y / 2, z / 1.5])
    bilateral = np.stack([x / 8, y / 6, z / 4, intensity / 20])
    assert_labels(labels, run_pydensecrf(shares, [(position, 2.0), (bilateral, 3.0)], 3))


def small_problem() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [1, 4, 7, 9], a picture [1, 3, 7, 9] on 0 to 1, coordinates [2, 7, 9], in double."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, 4, 7, 9, generator=generator, dtype=torch.float64)
    image = torch.rand(1, 3, 7, 9, generator=generator, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    return logits, image, torch.stack([x, y]).double()


def averaging(*features: Tensor) -> Tensor:
    """The exact kernel over features [·, 7, 9], its rows divided by their sums: [N, N]."""
    points = torch.cat(features).flatten(1).T
    return (-(torch.cdist(points, points) ** 2) / 2).softmax(1)


@pytest.mark.parametrize("matrix", [False, True])
def test_migrating_monai(matrix: bool, migrating: dict[str, Any]) -> None:
    logits, image, position = small_problem()
    compatibility = None
    if matrix:
        compatibility = torch.randn(4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        compatibility = compatibility + compatibility.T
    crf = migrating["monai_crf"](4, 3, 1.5, 0.5, 4.0, 0.3, 2.0, 2.5, compatibility)
    crf.filter = "dense"
    bilateral = averaging(position / 4, image[0] / 0.3)
    combined = 1.5 * bilateral + 0.5 * averaging(position / 2)
    q = logits[0].flatten(1).softmax(0)
    for _ in range(3):
        message = q @ combined.T
        if compatibility is not None:
            message = compatibility.T @ message
        q = (logits[0].flatten(1) + 2.5 * message).softmax(0)
    # the same formula in double, summed in another order
    torch.testing.assert_close(crf(unary_from_logits(logits), image)[0].flatten(1), q, rtol=0, atol=1e-10)


def test_migrating_crfasrnn(migrating: dict[str, Any]) -> None:
    logits, image, position = small_problem()
    generator = torch.Generator().manual_seed(7)
    spatial, bilateral, matrix = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    names = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")
    layer = migrating["crfrnn"](
        dict(zip(names, (spatial, bilateral, matrix))), alpha=5, beta=0.4, gamma=2, num_iterations=3
    )
    layer.filter = "dense"
    current = start = logits[0].flatten(1)
    for _ in range(3):
        q = current.softmax(0)
        message = spatial @ (q @ averaging(position / 2).T)
        message = message + bilateral @ (q @ averaging(position / 5, image[0] / 0.4).T)
        current = start + matrix @ message
    with torch.no_grad():
        result = layer(logits, image)[0].flatten(1)
    # matrices are parameters in float32
    torch.testing.assert_close(result, current.log_softmax(0), rtol=0, atol=1e-5)
