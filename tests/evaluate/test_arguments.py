"""Features, labels and scores: those of other tools are converted or refused, in files and as arguments, and all are finite."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from sfrik import diagnostics
from sfrik.datasets import Images
from sfrik.errors import SfrikError
from sfrik.evaluate import extract, knn_accuracy, knn_eval, load_features, weighted_knn
from sfrik.evaluate.arguments import as_features, as_labels
from sfrik.evaluate.linear_head import rate_groups, score_features, top_accuracies
from sfrik.evaluate.logistic import fit_lbfgs, logistic_lbfgs, logistic_sgd, logistic_sweep
from sfrik.evaluate.svm import average_precision, mean_average_precision
from sfrik.evaluate.transfer import logistic_by_cross_validation
from sfrik.runs.folder import Run
from sfrik.runs.records import Score
from sfrik.settings import KnnSettings, LogisticSettings
from sfrik.system.files import file_hash, write_json
from sfrik.system.records import read_record
from sfrik.views.base import resize_for_test

NAN, INF = float("nan"), float("inf")


def toy(n=60, classes=3, dim=6):
    labels = torch.arange(n) % classes
    return 3 * torch.eye(classes, dim)[labels] + 0.3 * torch.randn(n, dim, generator=torch.Generator().manual_seed(n)), labels


def write(folder, train=None, val=None, **files):
    """An extraction folder of another tool, without weights.json."""
    folder.mkdir(exist_ok=True)
    for name, (features, labels) in {"train": train or toy(), "val": val or toy(30)}.items():
        np.save(folder / f"{name}_features.npy", np.asarray(features))
        np.save(folder / f"{name}_labels.npy", np.asarray(labels))
    for name, array in files.items():
        np.save(folder / f"{name}.npy", array)
    return folder


# --- conversion


KINDS = ["<f8", ">f8", ">f4", "f2", ">f2", "g", "u1", "i1", ">u2", "u4", "<i8", ">i8", "u8"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_features_and_labels_of_any_numeric_type_and_order_score_as_float32_and_int64(tmp_path, kind, order):
    features, labels = np.rint(20 * toy()[0].numpy()) + 20, toy()[1].numpy()
    given = write(
        tmp_path / "given", train_features=np.asarray(features.astype(kind), order=order), train_labels=labels.astype(kind)
    )
    read, classes = load_features(given, "train")
    assert read.dtype in (torch.float32, torch.float64)
    assert np.array_equal(read, features)
    assert classes.dtype == torch.int64
    assert np.array_equal(classes, labels)
    test = toy(30)
    expected = logistic_sgd((torch.from_numpy(features), torch.from_numpy(labels)), test, 3, epochs=1)
    assert logistic_sgd((read, classes), test, 3, epochs=1) == expected
    assert torch.equal(weighted_knn(read, classes, test[0], 5), weighted_knn(torch.from_numpy(features), classes, test[0], 5))


def test_float32_features_of_a_file_are_mapped_and_not_copied(tmp_path):
    features, _ = load_features(write(tmp_path / "given"), "train")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert "given/train_features.npy" in maps.read()
    assert features.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.uint16, torch.int32])
def test_tensors_of_other_types_are_converted(dtype):
    features, labels = torch.arange(12).view(6, 2).to(dtype), torch.arange(6).view(6, 1).to(torch.int16)
    assert torch.equal(as_features(features, "x").float(), torch.arange(12.0).view(6, 2))
    assert torch.equal(as_labels(labels, "y"), torch.arange(6))
    assert torch.equal(as_features(features.view(6, 2, 1, 1), "x").float(), torch.arange(12.0).view(6, 2))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.ones(3, 2, 4, 4), r"contains float32 of shape \(3, 2, 4, 4\), not features: .*pool or flatten"),
        (torch.ones(3), r"contains float32 of shape \(3,\), not features"),
        (torch.ones(0, 2), "they are empty"),
        (torch.ones(2, 0), "they are empty"),
        (torch.ones(3, 2, dtype=torch.complex64), "contains complex64"),
        (torch.ones(3, 2, dtype=torch.bool), "contains bool"),
        (torch.ones(3, 2).to_sparse(), "not features"),
        (np.full((3, 2), "a"), "contains <U1 of shape"),
        (np.ones((3, 2), "V2"), r"contains \|V2 of shape"),
        (np.ones((3, 2), "M8[s]"), "contains datetime64"),
        (np.full((3, 2), 1e39), None),
        (np.full((3, 2), 1e39, "f8").astype(">f8"), None),
        (np.full((3, 2), 1e300, "g"), None),
        (torch.tensor([[1.0], [INF]]), "^x: NaN or infinite values in row 1$"),
    ],
)
def test_what_is_no_matrix_of_finite_numbers_is_refused_in_one_line(values, words):
    if words is None:  # float64 stays
        assert as_features(values, "x").dtype == torch.float64
        return
    with pytest.raises(ValueError, match=words) as caught:
        as_features(values, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1, -1], r"has label -1 in row 2: labels are whole numbers from 0 to 999999; leave out images without a label"),
        ([0.0, 1.5, 2.5], "has label 1.5 in rows 1, 2"),
        ([0.0, NAN], "has label nan in row 1"),
        ([0.0, INF], "has label inf in row 1"),
        ([0, 20231105], "has label 20231105 in row 1"),
        (np.array([0, 2**63], "u8"), r"has label 9.223372037e\+18 in row 1"),
        (["cat", "dog"], "contains <U3 of shape .*, not labels: number the classes"),
        ([b"cat"], "not labels: number the classes"),
        (np.eye(3), r"contains float64 of shape \(3, 3\), not labels: .*argmax"),
        ([], "they are empty"),
        (3, r"shape \(\)"),
    ],
)
def test_what_is_no_class_number_is_refused_in_one_line(values, words):
    with pytest.raises(ValueError, match=words) as caught:
        as_labels(np.asarray(values), "y")
    assert "\n" not in str(caught.value)
    if np.asarray(values).dtype.kind in "if" and np.asarray(values).size:
        with pytest.raises(ValueError, match=words):
            as_labels(torch.as_tensor(values), "y")


# --- arguments of the public functions


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_every_function_refuses_features_that_are_not_finite_and_names_the_row(bad):
    sound, broken = toy(), toy()
    broken[0][7, 2] = bad
    many = torch.where(torch.nn.functional.one_hot(sound[1]) > 0, 1, -1)
    calls = [
        lambda: weighted_knn(*broken, sound[0], 3),
        lambda: weighted_knn(*sound, broken[0], 3),
        lambda: knn_accuracy(*broken, *sound, 3, 3),
        lambda: logistic_sgd(broken, sound, 3, epochs=1),
        lambda: logistic_sgd(sound, broken, 3, epochs=1),
        lambda: logistic_sweep(sound, broken, None, 3, [0.1], epochs=1),
        lambda: logistic_sweep(sound, sound, broken, 3, [0.1], epochs=1),
        lambda: logistic_lbfgs(sound, sound, broken),
        lambda: logistic_lbfgs(sound, broken, sound),
        lambda: fit_lbfgs(broken, 1.0),
        lambda: logistic_by_cross_validation(broken, sound),
        lambda: logistic_by_cross_validation(sound, broken),
        lambda: mean_average_precision((broken[0], many), (sound[0], many)),
        lambda: mean_average_precision((sound[0], many), (broken[0], many)),
        lambda: top_accuracies(*broken),
        lambda: score_features(torch.nn.Linear(6, 3), *broken),
        lambda: diagnostics.measure(broken[0], sound[0]),
        lambda: diagnostics.alignment(sound[0], broken[0]),
        lambda: diagnostics.uniformity(broken[0]),
        lambda: diagnostics.effective_rank(broken[0]),
        lambda: diagnostics.rankme(broken[0]),
        lambda: diagnostics.covariance_spectrum(broken[0]),
        lambda: diagnostics.energy_per_degree(broken[0]),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ValueError, match="NaN or infinite values in row 7"):
            pytest.fail(f"call {number} returned {call()}")
    with pytest.raises(ValueError, match="finite scores"):
        average_precision(np.array([True, False]), np.array([bad, 1.0]))


@pytest.mark.parametrize("width", [5, 7])
def test_features_of_different_dimensions_are_a_value_error_with_both(width):
    other = (torch.ones(4, width), torch.arange(4))
    with pytest.raises(ValueError, match=f"features of different dimensions: training have 6, test have {width}"):
        weighted_knn(*toy(), other[0], 3)
    for call in (lambda: logistic_sgd(toy(), other, 4), lambda: logistic_lbfgs(toy(), toy(), other)):
        with pytest.raises(ValueError, match=f"features of different dimensions: train have 6.*test have {width}"):
            call()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": INF}, "temperature above 0"),
        ({"temperature": NAN}, "temperature above 0"),
        ({"num_classes": 2}, "a training label is 2, but num_classes is 2"),
        ({"num_classes": 0}, "a training label is 2, but num_classes is 0"),
        ({"train_labels": torch.arange(60) % 3 - 1}, "training labels has label -1 in rows 0, 3"),
        ({"train_features": 1e30 * torch.ones(60, 6)}, "too large for float32 in rows 0, 1"),
    ],
)
def test_weighted_knn_refuses_what_it_would_compute_wrongly(change, words):
    given = {"train_features": toy()[0], "train_labels": toy()[1], "test_features": toy(5)[0], "k": 3}
    with pytest.raises(ValueError, match=words):
        weighted_knn(**{**given, **change})


@pytest.mark.parametrize("rates", [[INF], [NAN], [0.1, -1.0], [0.0]])
def test_rates_are_finite_and_above_0(rates):
    with pytest.raises(ValueError, match="learning rates must be finite and above 0"):
        rate_groups([torch.nn.Linear(1, 1) for _ in rates], rates)


def test_a_diverged_logistic_regression_is_an_error_and_in_a_sweep_scores_0(capsys):
    train, test = (1e15 * toy()[0], toy()[1]), toy(30)
    with pytest.raises(SfrikError, match=r"logistic regression diverged at lr_head 1e\+30 in epoch \d: lower the rate"):
        logistic_sgd(train, test, 3, epochs=2, lr_head=1e30)
    with pytest.raises(SfrikError, match=r"diverged at every lr_head, 1e\+30, 1e\+31: lower them"):
        logistic_sweep(train, test, None, 3, [1e30, 1e31], epochs=2)
    score = logistic_sweep(toy(), test, None, 3, [1e38, 0.1], epochs=2)
    assert score["sweep"]["1e+38"] == 0
    assert score["lr_head"] == 0.1
    assert "lr_head 1e+38 diverged and scores 0" in capsys.readouterr().err
    assert score["top1"] == logistic_sgd(toy(), test, 3, epochs=2, lr_head=0.1)["top1"]


# --- votes and ranks


def test_a_class_without_a_vote_is_no_hit_at_any_rank():
    """With one neighbour, top-5 is top-1; random features of ten classes score about 10 %."""
    train, test = (torch.randn(500, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    labels = torch.arange(500) % 10
    top1, top5 = top_accuracies(weighted_knn(train, labels, test, 1), labels, voted=True)
    assert top1 == top5 < 20
    for k in (2, 3):
        scores = weighted_knn(train, labels, test, k)
        voted = (scores.gather(1, labels[:, None]) > 0).double().mean().item()
        assert top_accuracies(scores, labels, voted=True)[1] == pytest.approx(100 * voted)


def test_a_vote_that_rounds_to_0_is_still_a_vote():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    scores = weighted_knn(train, torch.tensor([1, 2, 3]), torch.tensor([[1.0, 0.1]]), 2, temperature=1e-4)
    assert [bool(score > 0) for score in scores[0]] == [False, True, True, False]


def test_features_of_zeros_neither_vote_nor_get_votes():
    train, labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.1]]), torch.tensor([0, 1, 2])
    scores = weighted_knn(train, labels, torch.tensor([[2.0, 0.0], [0.0, 0.0]]), 3)
    assert [bool(score > 0) for score in scores[0]] == [True, False, True]
    assert scores[1].tolist() == [0, 0, 0]
    assert knn_accuracy(torch.zeros(4, 2), torch.arange(4), torch.zeros(4, 2), torch.zeros(4).long(), 2, 4) == 0


@pytest.mark.parametrize("shape", [(60, 1), (60, 1, 1)])
def test_labels_of_a_column_count_once(shape):
    (features, labels), head = toy(), torch.nn.Linear(6, 3)
    expected = score_features(head, features, labels)
    assert score_features(head, features, labels.view(shape)) == expected
    assert top_accuracies(head(features), labels.view(shape)) == expected
    assert knn_accuracy(features, labels.view(shape), features, labels.view(shape), 1, 3) == 100
    with pytest.raises(ValueError, match=r"scores of shape \(60, 3\) do not fit 59 labels"):
        top_accuracies(head(features), labels[1:])


def test_equal_scores_rank_by_class_number_as_in_argmax():
    scores = torch.tensor([[1.0] * 7])
    ranks = [top_accuracies(scores, torch.tensor([label])) for label in range(7)]
    assert ranks == [(100.0, 100.0)] + [(0.0, 100.0)] * 4 + [(0.0, 0.0)] * 2
    assert top_accuracies(torch.zeros(1, 3), torch.tensor([2])) == (0.0, 100.0)
    assert top_accuracies(torch.zeros(1, 3), torch.tensor([3])) == (0.0, 0.0), "a class that the head does not have"


# --- files


def test_a_row_that_is_not_finite_is_refused_with_its_file_and_number(tmp_path):
    features = toy()[0].numpy().copy()
    features[[3, 41], 0] = NAN
    given = write(tmp_path / "given", train_features=features)
    for kind in (KnnSettings, LogisticSettings):
        settings = kind(extraction_dir=str(given), exp_dir=str(tmp_path / "run"), device="cpu")
        with pytest.raises(SfrikError, match=r"given/train_features\.npy: NaN or infinite values in rows 3, 41"):
            load_features(settings.extraction_dir, "train")
        assert not (tmp_path / "run").exists()
    (given / "train_names.txt").write_text("".join(f"{row}.png\n" for row in range(30)), encoding="utf-8")
    with pytest.raises(SfrikError, match=r"in rows 3, 41 \(3\.png, \?\)"):
        load_features(given, "train")


def test_zeros_that_a_power_cut_left_are_refused(tmp_path):
    features = toy()[0].numpy().copy()
    features[50:] = 0
    with pytest.raises(SfrikError, match=r"train_features\.npy has zeros only in rows 50, 51, 52, 53, 54, \.\.\. \(10 in all\)"):
        load_features(write(tmp_path / "a", train_features=features), "train")
    with pytest.raises(SfrikError, match=r"train_labels\.npy has the class 0 only"):
        load_features(write(tmp_path / "b", train_labels=np.zeros(60, int)), "train")
    assert len(load_features(write(tmp_path / "b", val_labels=np.zeros(30, int)), "val")[0]) == 30


def test_extracted_features_that_are_not_finite_name_their_images():
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(-1e9, 0))
    images = Images(np.zeros(5, np.int64), 2, "digit {}".format, tensor=torch.zeros(5, 1, 28, 28, dtype=torch.uint8))
    views = resize_for_test(28, "mnist5k")
    assert len(extract(backbone, images, views, batch_size=2)[0]) == 5
    backbone[1].forward = lambda x: x / torch.arange(len(x))[:, None]  # the first row of each batch
    with pytest.raises(SfrikError, match=r"features of a batch: NaN or infinite values in row 0 \(digit 0\): use another"):
        extract(backbone, images, views, batch_size=2)


@pytest.mark.parametrize("name", ["train_features", "val_features", "val_labels"])
def test_features_that_have_changed_since_their_extraction_are_not_scored(tmp_path, name):
    """The zeroed end of a file may be less than a row, or labels, which are class 0 then."""
    given = write(tmp_path / "given")
    digests = {path.name: file_hash(path) for path in given.glob("*.npy")}
    write_json(given / "weights.json", {"backbone_sha256": "0" * 64, "sha256": digests})
    settings = KnnSettings(extraction_dir=str(given), exp_dir=str(tmp_path / "run"), device="cpu", nb_knn=(3,))
    content = (given / f"{name}.npy").read_bytes()
    (given / f"{name}.npy").write_bytes(content[:-10] + bytes(10))
    with pytest.raises(SfrikError, match=rf"{name}\.npy has changed since it was extracted: its SHA-256 is not the one in"):
        knn_eval(settings)
    (given / f"{name}.npy").write_bytes(content)
    assert knn_eval(settings)["backbone_sha256"] == "0" * 64


def test_files_of_other_kinds_are_named_where_features_are_missing(tmp_path):
    given = write(tmp_path / "given")
    shutil.move(given / "train_features.npy", given / "trainfeat.pth")
    with pytest.raises(SfrikError, match=r"there are no features .*; that folder has train_labels\.npy, trainfeat\.pth"):
        load_features(given, "train")


def test_more_neighbours_than_images_are_reported(tmp_path, capsys):
    given = write(tmp_path / "given", train=toy(18))
    settings = KnnSettings(extraction_dir=str(given), exp_dir=str(tmp_path / "run"), device="cpu", nb_knn=(5, 20, 200))
    score = knn_eval(settings)
    assert "nb_knn 20, 200: there are only 18 training images, and all of them vote; use --nb-knn" in capsys.readouterr().err
    assert score["top1_at"]["20"] == score["top1_at"]["200"]


def test_labels_of_classes_without_training_features_are_reported(tmp_path, capsys):
    features, labels = toy(18)
    settings = {"device": "cpu", "nb_knn": (3,)}
    for name, shift in (("same", 0), ("from1", 1)):
        given = write(tmp_path / name, train=(features, labels), val=(features, labels + shift))
        score = knn_eval(KnnSettings(extraction_dir=str(given), exp_dir=str(tmp_path / f"run{name}"), **settings))
        err = capsys.readouterr().err
        assert score["top1_at"]["3"] == (0 if shift else 100)
        assert ("val labels are of classes without training features" in err) == bool(shift)
    last = int(labels.max()) + 1
    assert f"{int((labels == last - 1).sum())} of 18 val labels are of classes without training features ({last}), and" in err


@pytest.mark.parametrize("scale", [1e-14, 1e-30])
def test_features_too_short_to_be_normalised_are_refused_by_knn(scale):
    """F.normalize would make them zeros, without a vote and so without a hit."""
    features, labels = toy(18)
    with pytest.raises(SfrikError, match=r"training features are too small in rows 0, 1, .*: multiply them by a constant"):
        weighted_knn(torch.as_tensor(features) * scale, torch.as_tensor(labels), torch.as_tensor(features), k=3)


# --- scores


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("score", [{"top1": 0}, {"top1_at": {"10": 0}}, {"sweep": {"0.1": 1.0, "0.2": 0}}, {"best": [1.0, 0]}])
def test_scores_that_are_not_finite_are_neither_written_nor_read(tmp_path, value, score):
    def filled(part):
        if isinstance(part, dict):
            return {key: filled(inner) for key, inner in part.items()}
        return [filled(inner) for inner in part] if isinstance(part, list) else value if part == 0 else part

    key = next(iter(score))
    run = Run(tmp_path)
    with pytest.raises(SfrikError, match=rf"knn\.json: {key}.* is -?(nan|inf), not a finite number"):
        run.save_result("knn", KnnSettings(), filled(score), None)
    assert list(tmp_path.iterdir()) == []


def test_a_score_above_100_percent_is_neither_written_nor_read(tmp_path):
    with pytest.raises(SfrikError, match=r"knn\.json: top5: Input should be less than or equal to 100"):
        Run(tmp_path).save_result("knn", KnnSettings(), {"top5": 3000.0}, None)
    for text in ('{"top1": NaN, "protocol": "knn"}', '{"top1": 1e999, "protocol": "knn"}', '{"top5": 101, "protocol": "knn"}'):
        (tmp_path / "knn.json").write_text(text, encoding="utf-8")
        with pytest.raises(SfrikError, match=r"knn\.json: top[15]"):
            read_record(tmp_path / "knn.json", Score)
