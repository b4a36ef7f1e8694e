"""The listing of an image folder: equal to ImageFolder's, cached, and never out of date."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sfrik.datasets import listing
from sfrik.datasets.entries import EXTENSIONS
from sfrik.datasets.images import image_files, images_of_folder, load_images
from sfrik.datasets.listing import cache_folder, images_below, list_images, pack_names
from sfrik.errors import SfrikError

ROOT = Path(__file__).parents[2]

# Every extension, capitals, files that are not images, names whose order differs by bytes, by case and by path, and
# nested folders: "deep-er" sorts between "deep" and "deep/er" in some orders and not in others.
FILES = [
    *(f"n02/{k}{extension}" for k, extension in enumerate(EXTENSIONS)),
    *("n02/B.JPEG", "n02/a.JPEG", "n02/10.JPEG", "n02/9.JPEG", "n02/notes.txt", "n02/list.csv", "n02/ä ö.jpg"),
    *("n01/deep/er/1.png", "n01/deep/2.png", "n01/deep-er/3.png", "n01/z.png", "n01/deep/er/no.md"),
    "N03/x.Jpg",
]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    settle(tmp_path / "train")
    return tmp_path / "train"


def settle(folder):
    """Set the modification time of all folders long before now, as after a finished copy."""
    for place, _, _ in os.walk(folder):
        os.utime(place, (1000, 1000))


def content(folder):
    found = list_images(folder)
    return found.classes, list(zip(map(os.fsdecode, found.names), found.labels.tolist(), strict=True))


def image_folder(folder):
    """The listing of torchvision's ImageFolder with our suffixes, in the form of `content`."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(folder), is_valid_file=lambda path: path.lower().endswith(EXTENSIONS))
    return found.classes, [(Path(path).relative_to(folder).as_posix(), label) for path, label in found.samples]


def forbid_walk(monkeypatch):
    def walk(folder, name):
        raise AssertionError(f"{name} was listed")

    monkeypatch.setattr(listing, "_walk", walk)


# --- listing


def test_classes_files_and_their_order_are_those_of_imagefolder(folder, monkeypatch):
    expected = image_folder(folder)
    assert len(expected[1]) == len(FILES) - 3, "three files are not images"
    assert content(folder) == expected
    forbid_walk(monkeypatch)
    assert content(folder) == expected, "from the cache too"


def test_linked_class_folders_are_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    (folder / "n00").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert content(folder) == image_folder(folder)
    assert content(folder)[1][1] == ("n00/1.png", 1)


def test_an_empty_class_folder_is_an_error_that_names_the_class(folder):
    (folder / "n00").mkdir()
    (folder / "n00" / "notes.txt").touch()
    with pytest.raises(SfrikError, match=r"no images in the class folders n00 \(looked for \.jpg"):
        list_images(folder)


def test_a_folder_without_class_folders_and_one_that_cannot_be_listed_are_rejected_by_name(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(SfrikError, match=r"val holds no class folders: put the images of each class"):
        list_images(tmp_path / "val")
    for read in (list_images, images_below):
        with pytest.raises(SfrikError, match=r"cannot list the folder .*gone: No such file"):
            read(tmp_path / "gone")


# --- what is no image and no class

LEFTOVERS = [
    *("n01/._1.png", "n01/.DS_Store.jpg", "n01/Thumbs.db", "n01/desktop.ini", "n01/.hidden.jpg"),
    *("n01/.ipynb_checkpoints/1-checkpoint.png", "n01/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "n02/__MACOSX/n02/._0.jpg"),
    *(".Trash-1000/files/1.jpg", "__MACOSX/n01/1.png", ".ipynb_checkpoints/1.png", "lost+found/1.png", "@eaDir/1.png"),
    *("System Volume Information/1.png", "$RECYCLE.BIN/1.png", ".git/1.png"),
]


def test_hidden_entries_and_what_systems_leave_behind_are_neither_images_nor_classes(folder):
    expected, unlabelled = content(folder), images_below(folder)
    for name in LEFTOVERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert content(folder) == expected
    assert images_below(folder) == unlabelled


def test_a_folder_that_several_links_lead_to_counts_once(folder, tmp_path, capsys):
    for name, target in (
        *(("n01/again", "n01/deep"), ("n01/a_first", "n01/deep-er"), ("n01/loop", "n01"), ("n02/up", "."), ("n02/out", "..")),
        *(("n02/other", "n01/deep/er"), ("alias", "n02"), ("self", "."), ("whole", ".."), ("under", "n01/deep")),
    ):
        (folder / name).symlink_to(folder / target, target_is_directory=True)
    (tmp_path / "val" / "n01").mkdir(parents=True)
    (tmp_path / "val" / "n01" / "1.png").touch()
    (folder / "under" / "more").symlink_to(tmp_path / "val")  # not listed elsewhere
    names = [name for name in FILES if not name.endswith(("txt", "csv", "md"))]
    assert list(images_below(folder)) == sorted([*names, "n01/deep/more/n01/1.png"])
    with pytest.raises(SfrikError, match="no images in the class folders under"):
        content(folder)
    (folder / "under").unlink()
    classes, images = content(folder)
    assert classes == ["N03", "n01", "n02"]
    assert sorted(name for name, _ in images) == sorted([*names, "n01/deep/more/n01/1.png"])
    assert f"{folder / 'alias'} is a link to a folder that is counted already: left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["n00", "n01/deep/part"])
def test_a_dangling_link_that_may_be_a_folder_is_an_error_and_one_to_an_image_is_not(folder, name):
    (folder / "n02" / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "n02" / "notes").with_suffix(".txt").unlink()
    (folder / "n02" / "notes.txt").symlink_to("nowhere.txt")
    assert ("n02/gone.jpg", 2) in content(folder)[1]
    for target in ("/unmounted/data", name.rsplit("/", 1)[-1]):  # the second is a link to itself
        (folder / name).symlink_to(target)
        with pytest.raises(SfrikError, match=rf"{name} is a link to {target}, which cannot be reached"):
            content(folder)
        (folder / name).unlink()


def test_images_that_are_left_out_are_reported_also_from_the_cache(folder, capsys, monkeypatch):
    (folder / "cover.jpg").touch()
    for name in ("n01/a.gif", "n01/b.GIF", "n02/c.heic"):
        (folder / name).touch()
    settle(folder)
    for _ in range(2):
        monkeypatch.setattr("sfrik.system.terminal._printed", set())
        content(folder)
        err = capsys.readouterr().err
        assert f"{folder}: left out images that are in no class folder: cover.jpg\n" in err
        assert f"{folder}: left out 2 .gif, 1 .heic: convert them" in err
        forbid_walk(monkeypatch)
    monkeypatch.undo()
    assert images_below(folder)
    assert "left out 2 .gif, 1 .heic" in capsys.readouterr().err
    (folder / "n03").mkdir()
    (folder / "n03" / "a.gif").touch()
    with pytest.raises(SfrikError, match=r"class folders n03 \(looked for .*; they have 1 \.gif\): fill or remove"):
        content(folder)
    with pytest.raises(SfrikError, match=r"n03 holds no images \(looked for .*; it has 1 \.gif\)"):
        images_below(folder / "n03")


def test_files_that_may_be_images_under_another_name_are_reported(folder, capsys):
    for name in ("a.jpg_large", "b.jpeg.1", "c.png~", "d.JPG.part", "IMG1", "README", "notes.txt", "._x.jpg.part"):
        (folder / "n01" / name).touch()
    before = content(folder)[1]
    err = capsys.readouterr().err
    assert "left out 1 .JPG.part, 1 .jpeg.1, 1 .jpg_large, 1 .png~, 1 without a suffix: convert them" in err
    assert len(before) == len(FILES) - 3


@pytest.mark.parametrize(
    ("training", "held_out"),
    [("train2017", "val2017"), ("seg_train", "seg_test"), ("Trainset", "testset"), ("x/train_images", "x/test_images")],
)
def test_folders_named_like_splits_are_not_pretrained_on_together(tmp_path, training, held_out):
    for name in (f"{training}/a/1.png", f"{held_out}/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(SfrikError, match=rf"{Path(training).name}/ and {Path(held_out).name}/: set --data-dir to .*{training},"):
        load_images("image_folder", "pretrain", tmp_path)
    assert "/" in training or images_of_folder(tmp_path).classes is None, "splits are no classes"
    (tmp_path / held_out).rename(tmp_path / "test tubes")
    assert len(load_images("image_folder", "pretrain", tmp_path)) == 2


def test_training_images_are_not_scored_as_test_images_and_a_single_class_is_reported(tmp_path, capsys):
    for name in ("train/a/1.png", "val/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    load_images("image_folder", "test", tmp_path)
    assert "val holds a single class folder, a: the accuracy of any classifier is 100 %" in capsys.readouterr().err
    for place, target in (("val/a", "../train/a"), ("val", "train")):
        shutil.rmtree(tmp_path / place)
        (tmp_path / place).symlink_to(target)
        with pytest.raises(SfrikError, match=rf"{place} is the same folder as in .*train: the score would be"):
            load_images("image_folder", "test", tmp_path)
        if place == "val/a":
            (tmp_path / place).unlink()
            (tmp_path / place).mkdir()


# --- cache


def test_the_second_start_lists_no_class_folder_and_stats_each_folder_and_a_sample_of_the_files_once(folder, monkeypatch):
    expected = content(folder)
    forbid_walk(monkeypatch)
    monkeypatch.setattr(listing, "SAMPLE", 3)
    statted = []
    stat = os.stat

    def counted(path, *arguments, **keywords):
        statted.append(str(path))
        return stat(path, *arguments, **keywords)

    monkeypatch.setattr(os, "stat", counted)
    assert content(folder) == expected
    inside = [path for path in statted if path.startswith(f"{folder}{os.sep}")]
    sample = [expected[1][k][0] for k in (0, (len(expected[1]) - 1) // 2, -1)]
    assert sorted(inside) == sorted(
        str(folder / name) for name in ("N03", "n01", "n01/deep", "n01/deep/er", "n01/deep-er", "n02", *sample)
    )


def test_nothing_is_written_into_the_data_folder(folder, cache):
    before = sorted(folder.parent.rglob("*"))
    content(folder)
    new = set(folder.parent.rglob("*")) - set(before)
    assert len(list((cache / "listings").iterdir())) == 1
    assert all(path.is_relative_to(cache) for path in new)


@pytest.mark.parametrize(
    "change",
    {
        "a file is added": lambda folder: (folder / "n02" / "new.png").touch(),
        "a file is removed": lambda folder: (folder / "n02" / "a.JPEG").unlink(),
        "a file is renamed": lambda folder: (folder / "n02" / "a.JPEG").rename(folder / "n02" / "zz.JPEG"),
        "a file is added to a nested folder": lambda folder: (folder / "n01" / "deep" / "er" / "new.png").touch(),
        "a nested folder is moved away": lambda folder: (folder / "n01" / "deep-er").rename(folder.parent / "away"),
        "a class is renamed": lambda folder: (folder / "n02").rename(folder / "n00"),
        "two classes swap their files": lambda folder: (
            (folder / "N03").rename(folder / "aside"),
            (folder / "n02").rename(folder / "N03"),
            (folder / "aside").rename(folder / "n02"),
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_every_change_of_the_folder_is_noticed(folder, change):
    # different times: a class folder that is moved keeps its time
    for k, name in enumerate(("N03", "n01", "n02")):
        os.utime(folder / name, (2000 + k, 2000 + k))
    before = content(folder)
    change[1](folder)
    after = content(folder)
    assert after != before
    assert after == image_folder(folder)
    settle(folder)
    assert content(folder) == after
    assert content(folder) == after


def test_another_version_with_the_same_times_is_noticed(folder, monkeypatch):
    """Archives keep the times of folders."""
    before = content(folder)
    (folder / "n02" / "a.JPEG").rename(folder / "n02" / "b.JPEG")
    settle(folder)
    assert content(folder) == image_folder(folder) != before
    monkeypatch.setattr(listing, "_times", lambda folder, names: recorded[tuple(names)])  # as of an image of a disk
    recorded = {}
    with np.load(next((cache_folder() / "listings").iterdir())) as file:
        recorded[tuple(map(os.fsdecode, file["folders"]))] = file["times"].tolist()
    forbidden, walk = [], listing._walk
    monkeypatch.setattr(listing, "_walk", lambda *arguments: forbidden.append(1) or walk(*arguments))
    content(folder)
    assert not forbidden, "nothing has changed"
    (folder / "n01" / "z.png").write_bytes(b"longer")
    content(folder)
    assert forbidden, "the size of a file"
    settle(folder)
    (folder / "n01" / "z.png").rename(folder / "n01" / "y.png")
    assert content(folder) == image_folder(folder), "the name of a file"


def test_a_missing_image_deletes_the_cached_listing_and_its_message_names_it(folder, cache, monkeypatch):
    content(folder)
    (cached,) = (cache / "listings").iterdir()
    images = load_images("image_folder", "train", folder.parent)
    (folder / "n01" / "z.png").unlink()
    place = next(i for i in range(len(images)) if images.name(i) == "n01/z.png")
    for read in (images.open, images.pixels):
        cached.touch()
        with pytest.raises(SfrikError, match=r"z\.png: the file was removed .* \(the cached listing .*npz is deleted"):
            read(place)
        assert not cached.exists()


def test_a_folder_that_was_modified_just_now_is_not_cached(folder, cache):
    os.utime(folder / "n01" / "deep")  # now: a file could follow within the same tick of the file system's clock
    content(folder)
    assert not cache.exists()


def test_two_folders_of_the_same_name_have_separate_caches(folder, tmp_path, cache):
    other = tmp_path / "other" / "train"
    for name in ("N03", "n01", "n02"):
        (other / name).mkdir(parents=True)
        (other / name / "1.png").touch()
    settle(other)
    assert len(content(folder)[1]) != len(content(other)[1]) == 3
    assert len(content(folder)[1]) != len(content(other)[1]) == 3
    assert len(list((cache / "listings").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_error(folder, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "file" / "cache"))
    assert content(folder) == image_folder(folder)
    assert content(folder) == image_folder(folder)


def test_a_damaged_cache_is_replaced_from_the_folder(folder, cache):
    expected = content(folder)
    (cached,) = (cache / "listings").iterdir()
    whole = cached.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"PK", b"text", whole[:100], whole[:-30], whole[100:], whole + whole]
    for place in rng.choice(len(whole), 60, replace=False):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
    for damaged_content in damaged:
        cached.write_bytes(damaged_content)
        assert content(folder) == expected
    cached.write_bytes(whole[:100])
    content(folder)
    assert len(cached.read_bytes()) == len(whole), "the cache is complete again"


def test_a_cache_of_the_first_format_is_replaced(folder, cache):
    """Its names were one array of bytes, each name ended by a zero byte."""
    expected = content(folder)
    (cached,) = (cache / "listings").iterdir()
    with np.load(cached) as file:
        record = dict(file)
    packed = {name: np.frombuffer(b"".join(record[name].tolist()), np.uint8) for name in ("classes", "names", "folders")}
    np.savez_compressed(cached, **{**record, **packed, "format": np.int64(1)})
    first = cached.read_bytes()
    assert content(folder) == expected
    assert cached.read_bytes() != first
    with np.load(cached) as file:
        assert file["format"] == listing.FORMAT


def test_a_cache_of_another_format_version_is_not_read(folder, monkeypatch):
    expected = content(folder)
    monkeypatch.setattr(listing, "FORMAT", listing.FORMAT + 1)
    walked = []
    walk = listing._walk
    monkeypatch.setattr(listing, "_walk", lambda place, name: walked.append(name) or walk(place, name))
    assert content(folder) == expected
    assert sorted(walked) == ["N03", "n01", "n02"]


def test_processes_that_start_at_the_same_time_all_get_the_listing_and_leave_one_file(folder, cache):
    code = "import sys; from sfrik.datasets.listing import list_images; print(list_images(sys.argv[1]).names.tolist())"
    command = [sys.executable, "-c", code, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="utf-8") for _ in range(3)]
    printed = [process.communicate(timeout=300)[0] for process in started]
    expected = [os.fsencode(name) for name, _ in image_folder(folder)[1]]
    assert [text.strip() for text in printed] == [str(expected)] * 3
    assert [path.suffix for path in (cache / "listings").iterdir()] == [".npz"]


def test_images_are_opened_by_the_cached_listing(folder):
    from PIL import Image

    (folder / "n02" / "a.JPEG").unlink()
    Image.new("RGB", (4, 4), (0, 0, 255)).save(folder / "n02" / "a.JPEG")
    settle(folder)
    for _ in range(2):
        images = load_images("image_folder", "train", folder.parent)
        names = [images.name(i) for i in range(len(images))]
        assert images.open(names.index("n02/a.JPEG")).getpixel((0, 0))[2] > 200


# --- parts


def test_packed_names_are_the_bytes_of_the_names_even_where_they_are_not_utf_8():
    names = ["a/b.JPEG", "", "ä ö/c.png", os.fsdecode(b"\xff\xfe.jpg"), "last"]
    packed = pack_names(names)
    assert [os.fsdecode(name) for name in packed] == names
    assert packed.dtype == "S11"
    assert pack_names([]).tolist() == []
    images = image_files(Path("folder"), packed, np.zeros(5, np.int64), num_classes=1)
    assert [images.name(i) for i in range(5)] == names


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SFRIK_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "sfrik"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sfrik"


def test_the_benchmark_runs_and_prints_three_times(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "listing.py"), "--classes", "3", "--files", "2", "--repetitions", "1"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    first, *lines = done.stdout.splitlines()
    assert first.startswith("3 classes of 2 files")
    assert [line.split("  ")[0] for line in lines] == [
        "torchvision's ImageFolder",
        "read from the folder and cached",
        "read from the cache",
    ]
    assert not any(path.name != "cache" for path in tmp_path.iterdir()), "its files are removed"
