"""Faults during training: a loss that is not finite, broken images, killed decoding processes."""

from __future__ import annotations

import math
import os
import signal
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from sfrik.datasets.images import Images
from sfrik.datasets.loader import MOST_SKIPPED, batches, explain_worker_death
from sfrik.errors import SfrikError
from sfrik.networks import Encoder
from sfrik.objectives import SFRIK, VICReg
from sfrik.objectives.base import NotFinite
from sfrik.pretrain.loop import pretrain
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings
from sfrik.system.files import read_json
from sfrik.system.signals import SIGNALS
from sfrik.views.base import Views, build_views

# --- a loss that is not finite


def test_a_term_that_is_not_finite_is_named_with_the_values_of_the_others():
    z = torch.randn(8, 4)
    broken = z.clone()
    broken[2, 1] = float("inf")
    with pytest.raises(NotFinite, match=r"alignment is (inf|nan).*view 1 holds NaN or infinite values in 1 of 8 rows") as error:
        SFRIK(4)([z, broken])
    assert error.value.rows == [2]
    huge = torch.full((8, 4), 1e20) * torch.linspace(1, 2, 8)[:, None]  # finite, but its squares are not
    with pytest.raises(
        NotFinite, match=r"cov is (inf|nan).*alignment 0.*views are finite, the largest value being 2e\+20"
    ) as error:
        VICReg()([huge, huge])
    assert error.value.rows == []


def smoke(folder, **overrides):
    fixed = {"exp_dir": str(folder), "device": "cpu", "precision": "fp32", "batch_size": 64, "subset": 30, "epochs": 2}
    return PretrainSettings.from_recipe("smoke/sfrik_l2_q64", **fixed, **overrides)


def test_a_zero_row_does_not_end_a_training_and_is_counted(tmp_path, monkeypatch):
    forward = Encoder.forward

    def one_row_is_zero(self, views):
        first, second = forward(self, views)
        return [first, second * (torch.arange(len(second))[:, None] != 5)]

    monkeypatch.setattr(Encoder, "forward", one_row_is_zero)
    last = pretrain(smoke(tmp_path), progress=False)
    assert last["zero_rows"] == 1
    assert math.isfinite(last["loss"])


def test_the_state_of_a_step_whose_loss_is_not_finite_is_saved(tmp_path, monkeypatch):
    forward, calls = Encoder.forward, []

    def fails_at_third(self, views):
        calls.append(1)
        first, second = forward(self, views)
        broken = torch.arange(len(second))[:, None] == 5
        return [first, second.masked_fill(broken, float("nan")) if len(calls) == 3 else second]

    monkeypatch.setattr(Encoder, "forward", fails_at_third)
    with pytest.raises(SfrikError, match=r"epoch 0, step 2: .*alignment is nan.*fault\.rank0\.pt") as error:
        pretrain(smoke(tmp_path), progress=False)
    fault = torch.load(tmp_path / "fault.rank0.pt", weights_only=True)
    assert (fault["epoch"], fault["step"]) == (0, 2)
    assert len(fault["images"]) == 64
    assert fault["views"][1].isnan().any(dim=1).nonzero().flatten().tolist() == [5]
    assert str(error.value).endswith(f"images of these rows: {fault['images'][5]}")
    assert set(fault) >= {"model", "optimizer", "scaler"}
    assert "alignment is nan" in read_json(tmp_path / "state.json")["error"]


@pytest.mark.parametrize(("value", "first", "count"), [(0.0, 0, 64), (1e20, 5, 1)])
def test_rows_that_cannot_be_normalised_are_a_fault_as_one_that_is_not_finite(tmp_path, monkeypatch, value, first, count):
    forward = Encoder.forward

    def fails(self, views):
        one, other = forward(self, views)
        rows = torch.arange(len(other))[:, None]
        return [one, other.masked_fill((rows >= first) & (rows < first + count), value)]

    monkeypatch.setattr(Encoder, "forward", fails)
    with pytest.raises(
        SfrikError, match=r"epoch 0, step 0: .*view 1 has a norm (of 0|that overflows float32) in " + f"{count} of 64 rows"
    ) as error:
        pretrain(smoke(tmp_path), progress=False)
    fault = torch.load(tmp_path / "fault.rank0.pt", weights_only=True)
    assert f"images of these rows: {fault['images'][first]}" in str(error.value)


# --- broken images


@pytest.fixture
def folder(tmp_path):
    """Two classes of twelve small images; b/3.png is truncated."""
    generator = np.random.default_rng(0)
    for label in "ab":
        for part, count in (("train", 12), ("val", 2)):
            class_folder = tmp_path / "images" / part / label
            class_folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(class_folder / f"{k}.png")
    broken = tmp_path / "images" / "train" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:500])
    return tmp_path / "images"


def photo_settings(folder, run, **overrides):
    return PretrainSettings.parse(
        {
            **{"dataset": "image_folder", "data_dir": str(folder), "exp_dir": str(run), "arch": "resnet8", "stem": "small"},
            **{"size": 16, "mlp": "64-16", "batch_size": 24, "epochs": 2, "warmup_epochs": 0, "base_lr": 0.1, "knn_every": 0},
            **{"device": "cpu", "precision": "fp32", "workers": 0, **overrides},
        }
    )


def test_a_broken_image_is_an_error_that_names_it(folder, tmp_path):
    with pytest.raises(SfrikError, match=r"cannot read image .*b/3\.png: .*copy it again"):
        pretrain(photo_settings(folder, tmp_path / "run"), progress=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_with_skip_broken_a_broken_image_is_replaced_named_and_counted(folder, tmp_path, workers, capsys):
    pretrain(photo_settings(folder, tmp_path / "run", skip_broken=True, workers=workers, knn_every=1))
    epochs = [line for line in Run(tmp_path / "run").metrics() if "effective_rank" in line]
    assert [line["broken_images"] for line in epochs] == [["b/3.png"]] * 2
    assert all(0 <= line["knn"] <= 100 for line in epochs), "the kNN score skips it too"
    assert "broken images skipped: 1" in capsys.readouterr().out


def test_a_broken_image_is_replaced_by_the_next_one():
    def open_image(index):
        if index in (2, 3, 5):
            raise SfrikError("broken")
        return Image.new("RGB", (8, 8), (index, 0, 0))

    images = Images(np.arange(6), 6, str, open=open_image)
    shown = Views(lambda image: (torch.tensor([image.getpixel((0, 0))[0]]),), lambda tensors, generator: tensors)
    ((tensors,), targets, where) = next(batches(images, np.arange(6), shown, 6, skip_broken=True))
    assert where.tolist() == [0, 1, 4, 4, 4, 0], "the image after the last one is the first"
    assert tensors.flatten().tolist() == targets.tolist() == where.tolist()


def test_many_broken_images_in_a_row_are_an_error():
    def open_image(index):
        raise SfrikError("broken")

    images = Images(np.zeros(300, dtype=np.int64), 1, lambda i: f"image {i}", open=open_image)
    views = build_views("vicreg", 8, "imagenet")
    with pytest.raises(SfrikError, match=rf"{MOST_SKIPPED} images in a row cannot be read, from image 7 on: is the disk mounted"):
        next(batches(images, np.array([7, 8]), views, 2, skip_broken=True))


# --- decoding processes


def read_all(loader) -> None:
    """Read all batches as training does: PyTorch reports the death of a worker in the loader or in the code using a batch."""
    with explain_worker_death(1, 2), closing(loader):
        for _ in loader:
            pass


def open_or_signal(number, at, index):
    """An image; a worker process sends itself the signal `number` at one index."""
    if get_worker_info() is not None and index == at:
        os.kill(os.getpid(), number)
    return Image.new("RGB", (16, 16))


def test_a_killed_decoding_process_is_an_error_that_says_what_to_lower():
    # like the kernel when memory runs out
    images = Images(np.zeros(8, dtype=np.int64), 1, str, open=partial(open_or_signal, signal.SIGKILL, 5))
    loader = batches(images, np.arange(8), build_views("vicreg", 8, "imagenet"), 2, workers=1)
    with pytest.raises(
        SfrikError, match=r"a process that decodes images ended .*lower workers \(now 1 .*or batch_size \(now 2 per process\)"
    ):
        read_all(loader)


@pytest.mark.parametrize("number", SIGNALS)
def test_decoding_processes_ignore_signals(number):
    # SLURM and a terminal signal every process
    images = Images(np.zeros(8, dtype=np.int64), 1, str, open=partial(open_or_signal, number, 3))
    found = [where for _, _, where in batches(images, np.arange(8), build_views("vicreg", 8, "imagenet"), 2, workers=1)]
    assert np.concatenate(found).tolist() == list(range(8))
