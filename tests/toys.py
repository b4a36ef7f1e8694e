"""Small data sets that several test files use."""

import pickle

import numpy as np
import torch

from sfrik.datasets.images import Images


def squares(n, seed):
    """Digits-like images in memory: class 0 is bright in the left half, class 1 in the right."""
    labels = np.arange(n) % 2
    pixels = np.random.default_rng(seed).integers(0, 60, (n, 1, 28, 28))
    pixels[labels == 0, :, 8:20, 4:11] += 180
    pixels[labels == 1, :, 8:20, 17:24] += 180
    return Images(labels.astype(np.int64), 2, str, tensor=torch.from_numpy(pixels.astype(np.uint8)))


def write_cifar10(folder, per_file=20):
    """CIFAR-10's six files, with random pixels; torchvision's check of their MD5 must be patched."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        pixels = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [(i + k) % 10 for i in range(per_file)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_stl10(folder):
    """STL10's files with 4 unlabelled, 6 training and 5 test images of random pixels; the check of MD5 must be patched."""
    folder = folder / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("unlabeled", 4), ("train", 6), ("test", 5)):
        rng.integers(0, 256, (size, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{name}_X.bin")
        (np.arange(size) % 10 + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"), encoding="utf-8")
