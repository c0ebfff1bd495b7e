"""`deeplab summary`: what it prints is what the counter says; what is wrong is said in one line."""

from __future__ import annotations

import json
import sys

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("typer", reason="typer is not installed")
from typer.testing import CliRunner, Result

import deeplab
from deeplab.cli import main
from deeplab.cli.app import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_summary_is_a_table_of_layers() -> None:
    result = run("summary", "deeplabv1_largefov", "--size", "321")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "field", "stride", "parameters", "multiply-adds"]
    fc6 = next(line for line in lines if line.startswith("classifier.fc6"))
    assert fc6.split()[1:] == ["Conv2d", "1024×41×41", "396", "8", "4,719,616", f"{41 * 41 * 1024 * 512 * 9:,}"]
    assert lines[-3:] == [
        "parameters    20,505,429",
        "buffers       0",
        "multiply-adds 50,928,085,696 (50.928 G)",
    ]
    assert max(map(len, lines)) <= 120


def test_summary_as_json_has_the_same_numbers() -> None:
    arguments = ["deeplabv3plus_mobilenet_v2", "--size", "65x97", "--num-classes", "5", "-o", "output_stride=8"]
    summary = json.loads(run("summary", *arguments, "--json").stdout)
    with torch.device("meta"):
        counts = deeplab.count(
            deeplab.create_model("deeplabv3plus_mobilenet_v2", num_classes=5, output_stride=8), (65, 97)
        )
    assert summary["outputs"] == {"out": [1, 5, 65, 97]}
    assert summary["parameters"] == counts.parameters
    assert summary["multiply_adds"] == counts.multiply_adds == sum(row["multiply_adds"] for row in summary["layers"])
    assert [row["name"] for row in summary["layers"]] == [layer.name for layer in counts.layers]
    assert None in [row["field"] and row["field"][0] for row in summary["layers"]]  # image pooling


def test_totals_alone() -> None:
    lines = run("summary", "deeplabv2_resnet101_l", "--totals", "--size", "65").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["image", "output", "parameters", "buffers", "multiply-adds"]


def test_models_lists_names() -> None:
    assert run("models").stdout.split() == deeplab.list_models()
    assert run("models", "deeplabv2").stdout.split() == deeplab.list_models("deeplabv2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deeplabv9"], "name must be that of a model"),
        (["deeplabv1_7x7", "--size", "0"], "--size must be N or HxW in pixels, got '0'"),
        (["deeplabv1_7x7", "--size", "5x"], "--size must be N or HxW in pixels, got '5x'"),
        (["deeplabv1_7x7", "-o", "pool"], "--option must be NAME=VALUE, got 'pool'"),
        (["deeplabv1_7x7", "-o", "pool=5"], "pool must be 2 or 3, got 5"),
        (["deeplabv1_7x7", "-o", "colour=red"], "unexpected keyword argument 'colour'"),
    ],
)
def test_wrong_commands(arguments: list[str], message: str) -> None:
    result = run("summary", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_main_leaves_with_its_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["deeplab", "models", "deeplabv1"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert "deeplabv1_largefov" in capsys.readouterr().out
