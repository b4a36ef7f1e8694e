"""Extraction on any number of processes, and the folder that features are read from."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.evaluate import features as features_module
from sfrik.evaluate.features import extract, extract_features, features_hash, features_here, load_features
from sfrik.evaluate.inputs import frozen_backbone, scored_images
from sfrik.networks import build_backbone, save_weights
from sfrik.settings import FeatureSettings, KnnSettings, LogisticSettings
from sfrik.system.files import WriteError, file_hash, read_json
from sfrik.views.base import resize_for_test

CPU = {"device": "cpu", "precision": "fp32", "workers": 0}
NAMES = ["train_features", "train_labels", "val_features", "val_labels"]


# In batches of 7: 20 training and 100 tuning digits, the last batch of each not full; and 10 and 10, two batches, which leave
# one of three processes without any.
CASES = {"many": {"subset": 2, "val_subset": 10}, "few": {"subset": 1, "val_subset": 1}}


def settings_of(folder: Path, exp_dir: Path, case: str = "many") -> FeatureSettings:
    given = {"dataset": "mnist5k", "size": 28, "arch": "resnet8", "stem": "small", "batch_size": 7, "val_dataset": "train"}
    return FeatureSettings(exp_dir=str(exp_dir), pretrained=str(folder / "backbone.safetensors"), **given, **CASES[case], **CPU)


def work(rank: int, folder: str) -> None:
    """Three processes together, then two of them."""
    torch.set_num_threads(1)
    for processes in (3, 2):
        if rank < processes:
            meeting = f"file://{folder}/rendezvous{processes}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
            for case in CASES:
                extract_features(settings_of(Path(folder), Path(folder) / f"{case}{processes}", case))
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights; features of them by one process, by two and by three."""
    folder = tmp_path_factory.mktemp("extract")
    torch.manual_seed(0)
    save_weights(build_backbone("resnet8", "small", 1), folder / "backbone.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in CASES:
        extract_features(settings_of(folder, folder / f"{case}1", case))
    torch.set_num_threads(threads)
    mp.spawn(work, args=(str(folder),), nprocs=3)
    return folder


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in NAMES), "weights.json"])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_write_the_files_of_one(folder, case, processes, name):
    alone, together = (folder / f"{case}{n}" / "features" / name for n in (1, processes))
    assert together.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_features_are_those_of_the_images_in_their_order(folder, processes):
    settings = settings_of(folder, folder)
    images = scored_images(settings)
    expected, _ = extract(frozen_backbone(settings, 1), images, resize_for_test(28, "mnist5k"), batch_size=100)
    features, labels = load_features(folder / f"many{processes}" / "features", "val")
    assert features.dtype == torch.float32
    assert labels.tolist() == images.targets.tolist()
    # a batch of another size may sum in another order
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert len(torch.unique(features, dim=0)) == len(images), "no image twice, no row left empty"
    assert not list((folder / f"many{processes}" / "features").glob("*tmp*"))


@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (4, 4), (5, 4), (1000, 7), (23, 256)])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_image_is_of_one_process_and_in_the_batch_it_would_have_alone(monkeypatch, n, batch_size, processes):
    monkeypatch.setattr(features_module, "world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(features_module, "rank", lambda rank=rank: rank)
        shares.append(features_module._share(n, batch_size))
    assert np.concatenate(shares).tolist() == list(range(n))
    assert all(share[0] % batch_size == 0 for share in shares if len(share))


def test_features_are_written_a_batch_at_a_time_and_never_held_whole(folder, tmp_path, monkeypatch):
    sizes = []
    write = features_module._write_rows

    def watched(path, start, parts):
        write(path, start, (sizes.append(len(some)) or some for some in parts))

    monkeypatch.setattr(features_module, "_write_rows", watched)
    monkeypatch.setattr(torch, "cat", lambda *arguments: pytest.fail("features were put together"))
    extract_features(settings_of(folder, tmp_path))
    assert sizes == [7] * 14 + [2] + [7, 7, 6]  # tuning images, then training images


def test_a_process_without_images_writes_nothing():
    pictures = Images(np.zeros(3, np.int64), 2, str, open=lambda i: pytest.fail("an image was read"))
    backbone, views = build_backbone("resnet8", "small", 3), resize_for_test(16, "imagenet")
    none = np.arange(0)
    assert list(features_module._batches(backbone, pictures, none, views, 4, torch.device("cpu"), "fp32", workers=0)) == []


def test_weights_json_is_written_last(folder, tmp_path, monkeypatch):
    settings = settings_of(folder, tmp_path)
    record = extract_features(settings) / "weights.json"
    assert read_json(record)["backbone_sha256"] == file_hash(folder / "backbone.safetensors")
    monkeypatch.setattr(features_module, "_write_rows", lambda *arguments: pytest.fail("stopped here"))
    assert extract_features(settings) == record.parent, "what is there is not extracted again"
    (record.parent / "val_labels.npy").unlink()
    with pytest.raises(BaseException, match="stopped here"):
        extract_features(settings)
    assert not record.exists(), "features that were half made do not count"


@pytest.mark.parametrize(
    "content",
    [b"", b'{"backbone', b"\xff\xfe", b"[1]", b"{}", b'{"backbone_sha256": 3}', b'{"version": 2, "backbone_sha256": "0"}'],
)
def test_a_broken_weights_json_means_extract_again_unless_the_folder_was_given(folder, tmp_path, content):
    record = extract_features(settings_of(folder, tmp_path)) / "weights.json"
    whole = record.read_bytes()
    record.write_bytes(content)
    given = settings_of(folder, tmp_path).model_copy(update={"extraction_dir": str(record.parent)})
    for read in (extract_features, features_hash):
        with pytest.raises(SfrikError, match=r"weights\.json") as caught:
            read(given)
        assert "\n" not in str(caught.value)
    (record.parent / "val_features.npy").write_bytes(b"older")
    assert extract_features(settings_of(folder, tmp_path)) == record.parent
    assert record.read_bytes() == whole
    for name in NAMES:
        assert (record.parent / f"{name}.npy").read_bytes() == (folder / "many1" / "features" / f"{name}.npy").read_bytes()


def test_all_features_are_on_disk_before_weights_json_is(folder, tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def watched(descriptor):
        sync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", watched)
    features = extract_features(settings_of(folder, tmp_path))
    places = [synced.index((features / f"{name}.npy").stat().st_ino) for name in NAMES]
    assert max(places) < synced.index((features / "weights.json").stat().st_ino)
    between = synced[max(places) + 1 : synced.index((features / "weights.json").stat().st_ino)]
    assert features.stat().st_ino in between, "and so are their names"


@pytest.mark.parametrize("where", ["features", "labels"])
def test_a_full_disk_is_one_line_with_the_file_and_what_it_needs_and_leaves_nothing(folder, tmp_path, monkeypatch, where):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((features_module, "_write_all", full) if where == "features" else (np, "save", full)))
    with pytest.raises(
        WriteError, match=rf"val_{where}.*npy could not be written \(the disk is full; it needs .* free there"
    ) as caught:
        extract_features(settings_of(folder, tmp_path))
    assert "\n" not in str(caught.value)
    left = {path.name for path in (tmp_path / "features").iterdir()}
    assert left <= {"val_features.npy", "train_features.tmp.npy", "features.lock"}, "no weights.json: they do not count"


def test_a_limit_of_the_system_is_met_before_any_image_is_read(folder, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(WriteError, match=r"val_features\.tmp\.npy could not be written \(file too large; it needs 50 KiB"):
            extract_features(settings_of(folder, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- where features are read


@pytest.mark.parametrize("part", ["features", "labels"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a complete .npy file"),
        (b"\x93NUMPY\x01\x00", "is not a complete .npy file"),
        (b"PK\x03\x04 an archive", "is not a complete .npy file"),
        (np.array([{"pickled": 1}], dtype=object), "is not a complete .npy file"),
        (np.ones((20, 2), dtype=">f4"), "is not a complete .npy file"),
        (np.array(["text"] * 20), "is not a complete .npy file"),
        (np.ones(20), "holds float64 of shape"),
        (np.ones((20, 2, 2)), "holds float64 of shape"),
        (np.ones((20, 2), dtype=bool), "holds bool of shape"),
        ("fifo", "is a FIFO and not a regular file"),
        ("device", "is a device and not a regular file"),
        ("folder", "is a folder and not a regular file"),
    ],
)
def test_what_are_no_features_is_refused_in_one_line_with_the_file(folder, tmp_path, part, content, words):
    shutil.copytree(folder / "many1" / "features", tmp_path / "given")
    path = tmp_path / "given" / f"train_{part}.npy"
    path.unlink()
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        {"fifo": os.mkfifo, "folder": Path.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[content](path)
    with pytest.raises(SfrikError, match=f"^{path} {words}") as caught:
        load_features(tmp_path / "given", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", ["", "features"])
def test_an_extraction_folder_is_the_features_or_the_run_that_holds_them(folder, tmp_path, inside):
    shutil.copytree(folder / "many1" / "features", tmp_path / "given" / inside)
    given = {"extraction_dir": str(tmp_path / "given"), "exp_dir": str(tmp_path / "run"), "device": "cpu"}
    from sfrik.evaluate.protocols import knn_eval, logistic_regression

    settings = KnnSettings(nb_knn=(3,), **given)
    assert features_here(settings) == tmp_path / "given" / inside
    assert features_hash(settings) == file_hash(folder / "backbone.safetensors")
    score = knn_eval(settings)
    assert (score["images"], score["train_images"]) == (100, 20)
    assert score["backbone_sha256"] == file_hash(folder / "backbone.safetensors")
    assert logistic_regression(LogisticSettings(epochs=1, **given))["images"] == 100


def test_a_folder_without_features_is_named_as_it_was_given(tmp_path):
    from sfrik.evaluate.protocols import knn_eval

    settings = KnnSettings(extraction_dir=str(tmp_path / "nothing"), exp_dir=str(tmp_path), device="cpu")
    with pytest.raises(SfrikError, match=r"nothing/train_features\.npy"):
        knn_eval(settings)
