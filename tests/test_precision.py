"""One function decides the precision of the network, for every command that trains or extracts features."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from sfrik.errors import SfrikError
from sfrik.evaluate.inputs import Inputs
from sfrik.networks.precision import network_precision
from sfrik.settings import SECTIONS, EvaluateSettings, FrozenSettings, PretrainSettings

PACKAGE = Path(__file__).parents[1] / "sfrik"
CPU = torch.device("cpu")
TRAINED = {"pretrain": {}} | {section: {"weights": "finetune"} for section in ("evaluate", "semi1", "semi10")}


@pytest.fixture(autouse=True)
def _a_cpu_with_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.mark.parametrize("section", TRAINED)
@pytest.mark.parametrize(
    ("arch", "size", "stem", "expected"),
    [
        ("resnet18", 16, "imagenet", "fp32"),
        ("resnet50", 1, "imagenet", "fp32"),
        ("resnet18", 17, "imagenet", "bf16"),
        ("resnet18", 16, "small", "bf16"),
        ("resnet18", 4, "small", "fp32"),
        ("resnet8", 5, "imagenet", "bf16"),
        ("resnet8", 4, "imagenet", "fp32"),
        ("resnet8", 12, "patch", "bf16"),
        ("resnet8", 11, "patch", "fp32"),
        ("resnet18", 20, "patch", "bf16"),
        ("resnet18", 19, "patch", "fp32"),
    ],
)
def test_where_a_network_is_trained_fp32_replaces_bf16_if_its_last_stage_has_one_pixel(section, arch, size, stem, expected):
    chosen = {"arch": arch, "size": size, "stem": stem, **TRAINED[section]}
    kind = SECTIONS[section]
    assert network_precision(kind(**chosen), CPU) == expected
    asked = kind(**chosen, precision="bf16")
    if expected == "bf16":
        assert network_precision(asked, CPU) == "bf16"
    else:
        with pytest.raises(SfrikError, match=f"views of {size} pixels shrink to one pixel in the last stage of {arch}"):
            network_precision(asked, CPU)
    assert network_precision(asked, torch.device("cuda")) == "bf16"
    assert network_precision(kind(**chosen, precision="fp32"), CPU) == "fp32"


def test_the_smallest_view_of_multi_crop_counts():
    chosen = {"augmentations": "swav", "size": 224, "size_crops": (224, 16), "arch": "resnet18"}
    assert network_precision(PretrainSettings(**chosen), CPU) == "fp32"


@pytest.mark.parametrize("section", sorted(set(SECTIONS) - {"pretrain"}))
def test_a_frozen_network_keeps_bf16(section, tmp_path):
    settings = SECTIONS[section](arch="resnet18", size=16, exp_dir=str(tmp_path))
    assert Inputs.resolve(settings).precision == "bf16"


def test_fine_tuning_and_the_inference_of_its_head_get_their_precision_there(tmp_path):
    chosen = {"weights": "finetune", "arch": "resnet18", "size": 16, "exp_dir": str(tmp_path)}
    for settings in (EvaluateSettings(**chosen), EvaluateSettings(**chosen, only_inference=True)):
        assert Inputs.resolve(settings).precision == "fp32"


def test_every_class_of_settings_is_one_of_these():
    assert all(kind is PretrainSettings or issubclass(kind, FrozenSettings) for kind in SECTIONS.values())


def test_no_other_code_decides_a_precision():
    """`network_precision` is asked by pretraining and, for all evaluations, by `Inputs`; diagnose computes in float32."""
    callers = {"pick_precision": set(), "network_precision": set(), "autocast": set()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in callers:
                callers[called.id].add(path.relative_to(PACKAGE).as_posix())
    assert callers["network_precision"] == {"pretrain/loop.py", "evaluate/inputs.py"}
    # measured costs and `sfrik env` have no settings; the networks whose costs are measured have larger images
    assert callers["pick_precision"] == {"networks/precision.py", "cost/measure.py", "cli/environment.py"}
    given = {"evaluate/forward.py", "evaluate/finetune.py", "evaluate/linear.py", "pretrain/distributed.py"}  # an argument
    assert callers["autocast"] == {*given, "cost/measure.py"}
