"""Feature extraction on any number of processes, and the folders that features are read from."""

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
from forks import run_on

from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.evaluate import (
    extract,
    extract_features,
    feature_files,
    features_here,
    knn_eval,
    load_features,
    logistic_regression,
    scored_images,
)
from sfrik.evaluate import features as features_module
from sfrik.evaluate.features import read_features
from sfrik.evaluate.forward import feature_batches
from sfrik.evaluate.inputs import Inputs
from sfrik.networks import build_backbone, save_weights
from sfrik.settings import FeatureSettings, KnnSettings, LogisticSettings
from sfrik.system.files import WriteError, file_hash, read_json
from sfrik.views.base import resize_for_test

CPU = {"device": "cpu", "precision": "fp32", "workers": 0}
NAMES = ["train_features", "train_labels", "val_features", "val_labels"]


# In batches of 7: 20 training and 100 tuning digits, where the last batch of each is not full; and 10 and 10, two batches, so
# that one of three processes gets none.
CASES = {"many": {"subset": 2, "val_subset": 10}, "few": {"subset": 1, "val_subset": 1}}


def settings_of(folder: Path, exp_dir: Path, case: str = "many") -> FeatureSettings:
    given = {"dataset": "mnist5k", "size": 28, "arch": "resnet8", "stem": "small", "batch_size": 7, "val_dataset": "train"}
    return FeatureSettings(exp_dir=str(exp_dir), pretrained=str(folder / "backbone.safetensors"), **given, **CASES[case], **CPU)


def work(rank: int, folder: str) -> None:
    """Extract with three processes, then with two of them."""
    torch.set_num_threads(1)
    for processes in (3, 2):
        if rank < processes:
            rendezvous = f"file://{folder}/rendezvous{processes}"
            dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
            for case in CASES:
                extract_features(settings_of(Path(folder), Path(folder) / f"{case}{processes}", case))
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights, and their features extracted by one, two and three processes."""
    folder = tmp_path_factory.mktemp("extract")
    torch.manual_seed(0)
    save_weights(build_backbone("resnet8", "small", 1), folder / "backbone.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in CASES:
        extract_features(settings_of(folder, folder / f"{case}1", case))
    torch.set_num_threads(threads)
    run_on(3, work, str(folder))
    return folder


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in NAMES), "weights.json"])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_write_the_same_files_as_one(folder, case, processes, name):
    single, several = (folder / f"{case}{n}" / "features" / name for n in (1, processes))
    assert several.read_bytes() == single.read_bytes()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_features_are_in_the_order_of_the_images(folder, processes):
    settings = settings_of(folder, folder)
    images = scored_images(settings)
    expected, _ = extract(Inputs.resolve(settings).backbone(1), images, resize_for_test(28, "mnist5k"), batch_size=100)
    features, labels = load_features(folder / f"many{processes}" / "features", "val")
    assert features.dtype == torch.float32
    assert labels.tolist() == images.targets.tolist()
    # the order of summation can depend on the batch size
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert len(torch.unique(features, dim=0)) == len(images), "no image is repeated and no row is empty"
    assert not list((folder / f"many{processes}" / "features").glob("*tmp*"))


@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (4, 4), (5, 4), (1000, 7), (23, 256)])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shards_partition_the_images_into_the_batches_of_one_process(monkeypatch, n, batch_size, processes):
    monkeypatch.setattr(features_module, "world_size", lambda: processes)
    shards = []
    for rank in range(processes):
        monkeypatch.setattr(features_module, "rank", lambda rank=rank: rank)
        shards.append(features_module._shard(n, batch_size))
    assert np.concatenate(shards).tolist() == list(range(n))
    assert all(shard[0] % batch_size == 0 for shard in shards if len(shard))


def test_features_are_written_one_batch_at_a_time_and_never_concatenated(folder, tmp_path, monkeypatch):
    sizes = []
    write = features_module.write_rows

    def watched(path, start, parts):
        write(path, start, (sizes.append(len(batch)) or batch for batch in parts))

    monkeypatch.setattr(features_module, "write_rows", watched)
    monkeypatch.setattr(torch, "cat", lambda *arguments: pytest.fail("features were concatenated"))
    extract_features(settings_of(folder, tmp_path))
    assert sizes == [7] * 14 + [2] + [7, 7, 6]  # tuning images, then training images


def test_a_process_without_images_writes_nothing():
    pictures = Images(np.zeros(3, np.int64), 2, str, open=lambda i: pytest.fail("an image was read"))
    backbone, views = build_backbone("resnet8", "small", 3), resize_for_test(16, "imagenet")
    no_indices = np.arange(0)
    assert list(feature_batches(backbone, pictures, no_indices, views, 4, torch.device("cpu"), "fp32", workers=0)) == []


def test_weights_json_is_written_last(folder, tmp_path, monkeypatch):
    settings = settings_of(folder, tmp_path)
    record = extract_features(settings) / "weights.json"
    assert read_json(record)["backbone_sha256"] == file_hash(folder / "backbone.safetensors")
    monkeypatch.setattr(features_module, "write_rows", lambda *arguments: pytest.fail("stopped here"))
    assert extract_features(settings) == record.parent, "existing features are not extracted again"
    (record.parent / "val_labels.npy").unlink()
    with pytest.raises(BaseException, match="stopped here"):
        extract_features(settings)
    assert not record.exists(), "incomplete features do not count"


@pytest.mark.parametrize(
    "content",
    [b"", b'{"backbone', b"\xff\xfe", b"[1]", b"{}", b'{"backbone_sha256": 3}', b'{"version": 2, "backbone_sha256": "0"}'],
)
def test_features_with_a_broken_weights_json_are_extracted_again_unless_the_folder_was_given(folder, tmp_path, content):
    record = extract_features(settings_of(folder, tmp_path)) / "weights.json"
    whole = record.read_bytes()
    record.write_bytes(content)
    given = settings_of(folder, tmp_path).model_copy(update={"extraction_dir": str(record.parent)})
    for read in (extract_features, lambda settings: read_features(Inputs.resolve(settings))):
        with pytest.raises(SfrikError, match=r"weights\.json") as caught:
            read(given)
        assert "\n" not in str(caught.value)
    (record.parent / "val_features.npy").write_bytes(b"older")
    assert extract_features(settings_of(folder, tmp_path)) == record.parent
    assert record.read_bytes() == whole
    for name in NAMES:
        assert (record.parent / f"{name}.npy").read_bytes() == (folder / "many1" / "features" / f"{name}.npy").read_bytes()


def test_all_features_are_flushed_to_disk_before_weights_json(folder, tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def watched(descriptor):
        sync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", watched)
    features = extract_features(settings_of(folder, tmp_path))
    places = [synced.index((features / f"{name}.npy").stat().st_ino) for name in NAMES]
    assert max(places) < synced.index((features / "weights.json").stat().st_ino)
    between = synced[max(places) + 1 : synced.index((features / "weights.json").stat().st_ino)]
    assert features.stat().st_ino in between, "the folder is flushed too"


@pytest.mark.parametrize("where", ["features", "labels"])
def test_a_full_disk_is_a_one_line_error_with_file_and_size_and_leaves_no_features(folder, tmp_path, monkeypatch, where):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((feature_files, "_write_all", full) if where == "features" else (np, "save", full)))
    with pytest.raises(
        WriteError, match=rf"val_{where}.*npy could not be written \(the disk is full; it needs .* free there"
    ) as caught:
        extract_features(settings_of(folder, tmp_path))
    assert "\n" not in str(caught.value)
    left = {path.name for path in (tmp_path / "features").iterdir()}
    assert left <= {"val_features.npy", "train_features.tmp.npy", "features.lock"}, "without weights.json they do not count"


def test_a_file_size_limit_is_reported_before_any_image_is_read(folder, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(WriteError, match=r"val_features\.tmp\.npy could not be written \(file too large; it needs 50 KiB"):
            extract_features(settings_of(folder, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- reading features


@pytest.mark.parametrize("part", ["features", "labels"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a complete .npy file"),
        (b"\x93NUMPY\x01\x00", "is not a complete .npy file"),
        (b"PK\x03\x04 an archive", r"is not a complete .npy file \(it is an archive, such as .npz or .pth\)"),
        (b"\x80\x04 a pickle", r"is not a complete .npy file \(it is a pickle\)"),
        (np.array([{"pickled": 1}], dtype=object), r"is not a complete .npy file \(.*Python objects"),
        (np.array(["text"] * 20), "contains <U4 of shape"),
        (np.ones((20, 2, 2)), "contains float64 of shape"),
        (np.ones((20, 2), dtype=bool), "contains bool of shape"),
        ("fifo", "is a FIFO and not a regular file"),
        ("device", "is a device and not a regular file"),
        ("folder", "is a folder and not a regular file"),
    ],
)
def test_a_file_that_is_not_features_is_rejected_in_one_line_that_names_it(folder, tmp_path, part, content, words):
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
def test_an_extraction_folder_is_a_features_folder_or_the_run_around_it(folder, tmp_path, inside):
    shutil.copytree(folder / "many1" / "features", tmp_path / "given" / inside)
    given = {"extraction_dir": str(tmp_path / "given"), "exp_dir": str(tmp_path / "run"), "device": "cpu"}
    given["val_dataset"] = "train"  # the split whose features these are
    settings = KnnSettings(nb_knn=(3,), **given)
    assert features_here(settings) == tmp_path / "given" / inside
    assert read_features(Inputs.resolve(settings)).weights_sha256 == file_hash(folder / "backbone.safetensors")
    score = knn_eval(settings)
    assert (score["images"], score["train_images"]) == (100, 20)
    assert score["backbone_sha256"] == file_hash(folder / "backbone.safetensors")
    assert logistic_regression(LogisticSettings(epochs=1, **given))["images"] == 100


def test_features_that_another_command_replaces_before_they_are_read_are_extracted_again(folder, tmp_path, monkeypatch):
    """The other command extracts another split of the same run right after the extraction."""
    inputs = Inputs.resolve(settings_of(folder, tmp_path))
    other = Inputs.resolve(settings_of(folder, tmp_path, "few"))
    extract_if_missing, calls = features_module._extract_if_missing, []

    def replaced(target, of, *more):
        extract_if_missing(target, of, *more)
        calls.append(of)
        if len(calls) == 1:
            extract_if_missing(target, other)

    monkeypatch.setattr(features_module, "_extract_if_missing", replaced)
    found = read_features(inputs)
    assert calls == [inputs, inputs]
    expected, labels = load_features(folder / "many1" / "features", "val")
    assert torch.equal(found.val[0], expected)
    assert torch.equal(found.val[1], labels)
    extract_if_missing(tmp_path / "features", other)
    assert torch.equal(found.val[0], expected), "open features are not changed by a later extraction"


def test_the_error_for_a_folder_without_features_names_it_as_given(tmp_path):
    settings = KnnSettings(extraction_dir=str(tmp_path / "nothing"), exp_dir=str(tmp_path), device="cpu")
    with pytest.raises(SfrikError, match=r"nothing/train_features\.npy"):
        knn_eval(settings)
