"""Figures of images, confusion matrices and training curves: they show the right values, and can be read without colours."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from legible import assert_labels_apart
from sklearn.metrics import confusion_matrix

from sfrik.datasets.images import Images, load_images
from sfrik.errors import SfrikError
from sfrik.evaluate import class_scores, evaluate, features_here, fit_lbfgs, load_features, logistic_regression
from sfrik.plots.images import (
    draw_confusion,
    image_sheet,
    largest_confusions,
    most_confused,
    neighbour_grid,
    sample_photos,
    thumbnail,
    view_grid,
)
from sfrik.plots.runs import draw_training_curves
from sfrik.pretrain.loop import pretrain
from sfrik.settings import EvaluateSettings, LogisticSettings, PretrainSettings
from sfrik.views.base import resize_for_test

RECIPE = "smoke/random_weights"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose backbone was initialised and not trained."""
    folder = tmp_path_factory.mktemp("run")
    pretrain(PretrainSettings.from_recipe(RECIPE, exp_dir=str(folder)), progress=False)
    return folder


def texts(axis):
    return {tuple(np.round(text.get_position()).astype(int)): text.get_text() for text in axis.texts}


# --- confusion matrices


def test_each_count_is_drawn_in_its_row_and_column_and_zeros_are_left_empty():
    counts = confusion_matrix([0, 0, 0, 0, 1], [0, 2, 2, 2, 1], labels=range(3))
    axis = draw_confusion({"some": counts}, names=["a", "b", "c"]).axes[0]
    assert texts(axis) == {(0, 0): "1", (2, 0): "3", (1, 1): "1"}  # (column, row)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a  (25%)", "b  (100%)", "c  (0%)"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]


def test_of_many_classes_the_most_confused_are_drawn_and_accuracies_count_all_images():
    counts = 50 * np.eye(1000, dtype=np.int64)
    counts[700, 3] = 30
    counts[9, 700] = 20
    counts[500, 501] = 10
    assert most_confused(counts, most=3).tolist() == [3, 9, 700]
    axis = draw_confusion({"many": counts}, most=3).axes[0]
    assert texts(axis) == {(0, 0): "50", (1, 1): "50", (2, 2): "50", (0, 2): "30", (2, 1): "20"}
    assert axis.get_yticklabels()[1].get_text() == "9  (71%)"  # 50 of 70
    assert "3 most confused of 1000" in axis.get_title()


def test_several_matrices_show_the_same_classes():
    first, second = 9 * np.eye(30, dtype=np.int64), 9 * np.eye(30, dtype=np.int64)
    first[4, 5], second[20, 21] = 8, 7
    axes = draw_confusion({"1 %": first, "10 %": second}, most=4).axes
    for axis in axes:
        assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "5", "20", "21"]


# --- images


def drawn(axis):
    return np.asarray(axis.images[0].get_array(), dtype=float)


def test_a_view_is_drawn_in_the_range_of_its_image():
    image = load_images("mnist5k", "train", subset=1).tensor[:1]
    (whole,) = resize_for_test(28, "mnist5k").per_batch([image], torch.Generator())
    figure = view_grid([[image[0], whole[0], 0.5 * whole[0]]], ["digit"], dataset="mnist5k")
    axes = figure.axes
    assert np.allclose(drawn(axes[0]), image[0, 0].numpy() / 255, atol=1e-6)
    assert np.allclose(drawn(axes[1]), drawn(axes[0]), atol=1e-6)
    assert drawn(axes[2]).max() < 0.6, "a darker view looks darker"
    assert all(axis.images[0].get_clim() == (0, 1) for axis in axes)


def test_the_sample_photos_need_no_download_and_views_are_drawn_with_the_original_colours():
    photos = sample_photos()
    assert [photos.name(k) for k in range(2)] == ["china.jpg", "flower.jpg"]
    first = thumbnail(photos, 0)
    assert first.size == (640, 427)
    (view,) = resize_for_test(224, "imagenet").per_image(first)
    figure = view_grid([[view, first]], ["china"])
    assert drawn(figure.axes[0]).shape == (224, 224, 3)
    middle = drawn(figure.axes[1])[:, 107:534].mean(axis=(0, 1))  # the centre crop is of 7/8 of the shorter side
    assert np.abs(drawn(figure.axes[0]).mean(axis=(0, 1)) - middle).max() < 0.05


def test_right_and_wrong_differ_in_mark_line_style_and_width_not_only_in_colour():
    images = Images(np.array([0, 1]), 2, str, tensor=torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    yes, no = image_sheet(images, [0, 1], ["zero", "one"], [True, False]).axes[:2]
    assert (yes.get_xlabel(), no.get_xlabel()) == ("zero ✓", "one ✗")
    assert yes.spines["left"].get_linestyle() != no.spines["left"].get_linestyle()
    assert yes.spines["left"].get_linewidth() < no.spines["left"].get_linewidth()


def test_a_sheet_wraps_into_rows_and_shows_each_image_once():
    greys, order = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 2), (4, 2, 0, 1, 3)
    images = Images(np.zeros(5, np.int64), 1, str, tensor=greys)
    axes = [axis for axis in image_sheet(images, order, list("abcde"), columns=2).axes if axis.images]
    assert [(axis.get_xlabel(), round(255 * drawn(axis)[0, 0])) for axis in axes] == list(zip("abcde", order, strict=True))


def test_an_empty_sheet_says_no_image():
    images = Images(np.zeros(1, np.int64), 1, str, tensor=torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    assert [text.get_text() for text in image_sheet(images, torch.empty(0, dtype=torch.long), []).texts] == ["no image"]


def test_a_neighbour_of_another_class_is_marked_wrong():
    bank = Images(np.array([0, 1, 1]), 2, str, tensor=torch.zeros(3, 1, 4, 4, dtype=torch.uint8), classes=("cat", "dog"))
    axes = neighbour_grid(bank.select([1]), bank, [0], [[2, 0]]).axes
    assert [axis.get_xlabel() for axis in axes] == ["", "dog ✓", "cat ✗"]
    assert axes[0].get_ylabel() == "class dog"


def test_training_curves_take_the_metrics_of_epochs_and_not_the_loss_terms_of_steps():
    step = {"epoch": 0, "step": 0, "loss": 3.0, "alignment": 0.001}
    epoch = {"epoch": 0, "loss": 2.0, "alignment": 1.5, "uniformity": -3.0, "effective_rank": 40.0}
    other = [{**step, "loss": 9.0}, {**epoch, "alignment": 0.1, "knn": 50.0}]
    figure = draw_training_curves({"one": [step, epoch], "two": other})
    panels = {axis.get_title(): [list(map(float, line.get_ydata())) for line in axis.lines] for axis in figure.axes[:5]}
    assert panels == {
        **{"loss": [[3.0], [9.0]], "alignment": [[1.5], [0.1]], "uniformity": [[-3.0], [-3.0]]},
        **{"effective rank": [[40.0], [40.0]], "20-NN on training images": [[], [50.0]]},
    }
    assert [text.get_text() for text in figure.axes[5].get_legend().get_texts()] == ["one", "two"]


# --- the predictions that are drawn


@pytest.mark.parametrize("given", [{}, {"val_dataset": "train"}, {"train_percent": 10, "weights": "finetune", "batch_size": 16}])
def test_the_saved_head_reproduces_the_score(folder, given):
    settings = EvaluateSettings.from_recipe(RECIPE, exp_dir=str(folder), **given)
    score = evaluate(settings, progress=False)
    scores, labels = class_scores(settings)
    assert scores.shape == (score["images"], 10)
    assert 100 * (scores.argmax(dim=1) == labels).double().mean().item() == pytest.approx(score["top1"], abs=1e-9)


def test_a_missing_head_is_named(folder):
    settings = EvaluateSettings.from_recipe(RECIPE, exp_dir=str(folder), train_percent=1, weights="freeze")
    with pytest.raises(SfrikError, match=r"head_linear1\.safetensors"):
        class_scores(settings)


def test_a_refitted_logistic_regression_has_the_same_score(folder):
    settings = LogisticSettings.from_recipe(RECIPE, exp_dir=str(folder))
    score = logistic_regression(settings)
    here = features_here(settings)
    model, (features, labels) = fit_lbfgs(load_features(here, "train"), score["C"]), load_features(here, "val")
    assert 100 * model.score(features.numpy(), labels.numpy()) == score["top1"]


def test_long_names_of_classes_below_images_do_not_overlap():
    images = Images(
        np.zeros(16, np.int64), 2, str, tensor=torch.zeros(16, 3, 8, 8, dtype=torch.uint8), classes=("automobile", "ship")
    )
    sheet = image_sheet(images, range(16), ["automobile: kNN automobile,\nlogistic airplane"] * 16, side=1.05)
    assert_labels_apart(sheet)
    assert_labels_apart(neighbour_grid(images, images, [0, 1], [range(8)] * 2))
    digits = image_sheet(images, range(16), ["3: kNN 5,\nlogistic 3"] * 16, side=1.05)
    assert len({round(axis.get_position().y0, 3) for axis in digits.axes}) == 2, "short notes leave eight in a row"


def test_the_largest_confusions_are_named_with_their_counts():
    counts = np.array([[9, 2, 0], [5, 7, 1], [0, 2, 8]])
    assert largest_confusions(counts, most=2) == "1 → 0 (5 images), 0 → 1 (2 images)"
    assert largest_confusions(counts, ["cat", "dog", "owl"], most=9).endswith("owl → dog (2 images), dog → owl (1 image)")
    assert largest_confusions(np.diag([3, 4])) == "none"
