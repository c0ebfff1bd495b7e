"""The command as a process, `info`, `demo`, and what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import coarse_classes, infer, invoke, pixels, refuse, save_photo, succeed
from PIL import Image

import densecrf_cuda
from densecrf_cuda import cli, unary_from_labels
from densecrf_cuda.cli.facts import gather_facts

HIDE_GPUS = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "densecrf_cuda", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=HIDE_GPUS)


def test_a_process_refines(tmp_path: Path) -> None:
    image = save_photo(tmp_path / "photo.png")
    classes = coarse_classes(3)
    Image.fromarray(classes.astype(np.uint8)).save(tmp_path / "labels.png")
    done = process("refine", tmp_path / "photo.png", "--labels", tmp_path / "labels.png", "-o", tmp_path / "out.png")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("densecrf: 1 photo on cpu in ")  # and no progress bar away from a terminal
    assert done.stderr.count("\n") == 1
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), infer(unary_from_labels(classes, 3, 0.7), image))


@pytest.mark.parametrize("after", [[], ["--iterations", 2]])
@pytest.mark.parametrize("out", ["out.png", "folder"])
def test_overlay_without_a_path_lies_beside_the_output(out: str, after: list[object], tmp_path: Path) -> None:
    save_photo(tmp_path / "photo.png")
    Image.fromarray(coarse_classes(3).astype(np.uint8)).save(tmp_path / "labels.png")
    paths = [tmp_path / "photo.png", "--labels", tmp_path / "labels.png", "-o", tmp_path / out]
    assert process("refine", *paths, "--overlay", *after).returncode == 0
    overlay = tmp_path / ("out_overlay.png" if out == "out.png" else "folder/photo_overlay.png")
    assert pixels(overlay).shape == pixels(tmp_path / "photo.png").shape


def test_quiet_says_only_what_failed(tmp_path: Path) -> None:
    save_photo(tmp_path / "photo.png")
    (tmp_path / "labels.png").write_bytes(b"no picture")
    paths = [tmp_path / "photo.png", "--labels", tmp_path / "labels.png"]
    result = invoke("refine", *paths, "-o", tmp_path / "out.png", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert not (tmp_path / "out.png").exists()


def test_help_lists_every_command() -> None:
    text = process("--help").stdout
    for command in ("refine", "segment", "compare", "info", "demo"):
        assert f"\n  {command} " in text
        assert "--help" in succeed(command, "--help").stdout
    assert succeed("--version").stdout == f"densecrf {densecrf_cuda.__version__}\n"
    assert invoke("refine").exit_code == 2
    assert invoke("improve").exit_code == 2
    assert invoke("refine", "missing.png", "-o", "out.png").exit_code == 2


def test_the_package_does_not_need_the_command_line() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['typer', 'PIL', 'gradio']); import densecrf_cuda, densecrf_cuda.cli;"
        "sys.exit('densecrf_cuda.cli.app' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("module", "package"), [("typer", "typer"), ("tqdm", "tqdm"), ("PIL", "pillow")])
def test_missing_packages(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
    hint = f'densecrf: the command line needs {package}: pip install "densecrf_cuda[cli]"\n'
    assert capsys.readouterr() == ("", hint)


def test_info() -> None:
    facts = json.loads(succeed("info", "--json").stdout)
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cuda_usable"] == (densecrf_cuda._library.HAS_EXTENSION and facts["cuda_fault"] is None)
    assert Path(facts["library"]).is_file()
    assert facts["cuda_archs"] == list(densecrf_cuda._C.cuda_archs)
    text = succeed("info").stdout
    for word in (densecrf_cuda.__version__, facts["library"], facts["cuda_decision"], facts["cpu_capability"]):
        assert word in text


def test_info_without_a_compiled_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(densecrf_cuda._library, "HAS_EXTENSION", False)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    facts = gather_facts()
    assert (facts["compiled"], facts["library"], facts["pydensecrf"]) == (False, None, None)
    text = succeed("info").stdout
    assert "none, plain PyTorch computes" in text
    assert "not installed" in text


def test_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []
    page = types.ModuleType("densecrf_cuda.page")
    page.launch = lambda *arguments: calls.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "densecrf_cuda.page", page)
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    sys.modules["gradio"].__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    save_photo(tmp_path / "photo.png")
    succeed("demo", tmp_path / "photo.png", "--port", 1234, "--no-open", "--device", "cpu")
    succeed("demo", "--device", "cpu")
    assert calls == [(tmp_path / "photo.png", 1234, False, "cpu"), (None, 7860, True, "cpu")]

    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refuse("demo") == 'densecrf demo: the page needs gradio: pip install "densecrf_cuda[demo]"\n'
