"""Small data sets that several test files use."""

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from PIL import Image

from sfrik.datasets.images import Images
from sfrik.runs.correctness import unpack
from sfrik.runs.folder import Run


@contextmanager
def interrupted_at(step):
    """A context in which a training is interrupted when it logs a step, and that expects this."""
    log = Run.log

    def log_or_stop(self, line):
        if line.get("step") == step:
            raise KeyboardInterrupt
        log(self, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", log_or_stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def accuracy_of_bits(score):
    """`top1` of a score, or `top1_at` of kNN, from its bits of correctly classified images."""
    if "correct_at" in score:
        return {k: accuracy_of_bits({"images": score["images"], "correct": bits}) for k, bits in score["correct_at"].items()}
    return 100 * (unpack(score["correct"], score["images"]).sum() / score["images"])


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


def cifar_archive(kind, rows=2):
    """A small archive like those of torchvision's CIFAR10 or CIFAR100 (the class `kind`), and the MD5 sums that class then needs.

    Returns the bytes and the values of `train_list`, `test_list`, `meta` and `tgz_md5`.
    """
    rng, whole, sums = np.random.default_rng(1), io.BytesIO(), {}
    fine = kind.meta["key"] == "fine_label_names"
    classes = 100 if fine else 10
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name in (*(name for name, _ in kind.train_list + kind.test_list), kind.meta["filename"]):
            labels = [row % classes for row in range(rows * classes)]
            content = {"data": rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)}
            content |= {"fine_labels": labels, "coarse_labels": [0] * len(labels)} if fine else {"labels": labels}
            if name == kind.meta["filename"]:
                content = {kind.meta["key"]: [f"class{label:02d}" for label in range(classes)]}
            data = pickle.dumps(content)
            sums[name] = hashlib.md5(data).hexdigest()
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    parts = {part: [[name, sums[name]] for name, _ in getattr(kind, part)] for part in ("train_list", "test_list")}
    meta = {**kind.meta, "md5": sums[kind.meta["filename"]]}
    return whole.getvalue(), {**parts, "meta": meta, "tgz_md5": hashlib.md5(whole.getvalue()).hexdigest()}


@contextmanager
def web_server(content):
    """A server on 127.0.0.1 for the paths of a dictionary; what it does wrong is set in its attributes.

    Attributes:
        asked: the paths that were asked for.
        missing: bytes that are announced and never sent.
        pause: an event that is waited for after the first half of the bytes.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            running.asked.append(self.path)
            if self.path not in content:
                self.send_error(404)
                return
            body = content[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + running.missing))
            self.end_headers()
            with suppress(OSError):  # the client was killed
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                running.pause.wait()
                self.wfile.write(body[len(body) // 2 :])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.missing, running.pause = [], 0, threading.Event()
        running.pause.set()
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running
        finally:
            running.pause.set()
            running.shutdown()
            thread.join()


def write_stl10(folder):
    """STL10's files with 4 unlabelled, 6 training and 5 test images of random pixels; the check of MD5 must be patched."""
    folder = folder / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("unlabeled", 4), ("train", 6), ("test", 5)):
        rng.integers(0, 256, (size, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{name}_X.bin")
        (np.arange(size) % 10 + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"), encoding="utf-8")


def write_photos(folder, per_class=24):
    """Images of CIFAR's size with random pixels: train/ with `per_class` of each of 10 classes, and val/ with one."""
    rng = np.random.default_rng(0)
    for part, count in (("train", per_class), ("val", 1)):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / str(label) / f"{k}.png")
