"""Weights and features must be finite: what is refused, and by which name."""

import pytest
import torch

from sfrik.errors import SfrikError
from sfrik.evaluate.head_files import load_head
from sfrik.networks import build_backbone, load_backbone, save_weights
from sfrik.ops import finite
from sfrik.ops.finite import check_finite_rows, not_finite
from sfrik.runs.checkpoints import Checkpoints
from sfrik.system.tensor_files import check_finite

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("bad", BAD)
def test_the_first_tensor_that_is_not_finite_is_named(bad, dtype):
    state = {
        "a": torch.ones(3, dtype=torch.int64),
        "b": [{"c": torch.ones(2)}, {"c": torch.tensor([1, bad], dtype=dtype)}],
        "d": 3,
    }
    assert not_finite(state) == "b.1.c"
    with pytest.raises(SfrikError, match=r"x\.pt: tensor b\.1\.c has NaN or infinite values: train"):
        check_finite(state, "x.pt", "train it again")
    check_finite({"a": torch.ones(3, dtype=torch.int64), "b": torch.zeros(0, dtype=dtype), "c": torch.ones(2, dtype=dtype)}, "x")


@pytest.mark.parametrize("bad", BAD)
def test_rows_that_are_not_finite_are_numbered_over_blocks_and_named(bad, monkeypatch):
    monkeypatch.setattr(finite, "VALUES", 7)  # blocks of two rows
    values = torch.ones(11, 3)
    check_finite_rows(values, "train_features")
    check_finite_rows(values[:0], "train_features")
    values[5, 2] = values[8, 0] = bad
    with pytest.raises(ValueError, match=r"^train_features: NaN or infinite values in rows 5, 8$"):
        check_finite_rows(values, "train_features")
    with pytest.raises(SfrikError, match=r"in rows 5, 8 \(image 5, image 8\): look$"):
        check_finite_rows(values, "train_features", "look", "image {}".format, SfrikError)


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    backbone = build_backbone("resnet8", channels=1)
    state, path = backbone.state_dict(), tmp_path / "backbone.pth"
    state["layers.1.bn1.running_var"][3] = float("nan")
    with pytest.raises(SfrikError, match=r"backbone\.safetensors: tensor layers\.1\.bn1\.running_var has NaN .*: not written"):
        save_weights(backbone, tmp_path / "backbone.safetensors")
    assert list(tmp_path.iterdir()) == []
    torch.save({"model": state}, path)
    with pytest.raises(SfrikError, match=r"backbone\.pth: tensor layers\.1\.bn1\.running_var has NaN"):
        load_backbone(path, "resnet8", channels=1)
    torch.save({"fc.weight": torch.ones(2, 3), "fc.bias": torch.tensor([0.0, float("inf")])}, path)
    with pytest.raises(SfrikError, match=r"backbone\.pth: tensor fc\.bias has NaN or infinite values"):
        load_head(path)


def test_a_checkpoint_that_is_not_finite_gives_way_to_the_one_before(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    for value in (1.0, 2.0):
        checkpoints.save({"model": {"w": torch.tensor([value])}})
    torch.save({"model": {"w": torch.tensor([float("nan")])}}, checkpoints.paths[0])
    assert checkpoints.load()["model"]["w"].item() == 1.0
    assert "tensor model.w has NaN or infinite values" in capsys.readouterr().err
