"""Allocations that do not fit: one line with the remedy, before or after they are tried."""

import numpy as np
import pytest
import torch

from sfrik.cli import main
from sfrik.errors import SfrikError, WorkerError
from sfrik.networks import build_encoder, encoder
from sfrik.settings import PretrainSettings
from sfrik.system.devices import explain_out_of_memory, physical_memory

PETABYTE = 10**15  # no machine has it, so nothing is allocated


@pytest.mark.parametrize("allocate", [lambda: torch.empty(PETABYTE), lambda: np.empty(PETABYTE), lambda: bytearray(PETABYTE)])
def test_an_allocation_that_does_not_fit_is_one_line_with_the_remedy(allocate):
    with pytest.raises(SfrikError, match=r"^out of memory \(.+\): lower --batch-size") as caught, explain_out_of_memory():
        allocate()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), WorkerError("rank 0 most likely ran out of memory")])
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)) as caught, explain_out_of_memory():
        raise error
    assert caught.value is error


def test_a_projector_that_cannot_fit_is_refused_before_it_is_built(monkeypatch, tmp_path, capsys):
    assert physical_memory() > 2**28
    build_encoder(PretrainSettings(arch="resnet8", mlp="8-8", device="cpu"), 1)
    monkeypatch.setattr(encoder, "physical_memory", lambda: 2**30)
    flags = ["--dataset", "mnist5k", "--augmentations", "digits", "--arch", "resnet8", "--size", "28", "--device", "cpu"]
    flags += ["--mlp", "65536-65536", "--exp-dir", str(tmp_path / "run")]
    for optimizer, size in (("lars", 48), ("adamw", 64), ("sgd", 48)):  # AdamW keeps two averages, the others the momentum
        assert main(["pretrain", *flags, "--optimizer", optimizer]) == 2
        error = capsys.readouterr().err
        assert f"mlp 65536-65536 needs {size} GiB for the projector's weights, and this machine has 1 GiB of memory" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
