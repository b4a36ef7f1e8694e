"""Standardised features before a linear head: the folded head, scales, small batches, and the setting `head_norm`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import squares

from sfrik.errors import SfrikError
from sfrik.evaluate import linear_probe
from sfrik.evaluate.head_norm import build_head_norm, fold
from sfrik.evaluate.logistic import logistic_sgd
from sfrik.networks import build_pixels
from sfrik.settings import EvaluateSettings, LogisticSettings, TransferSettings


def probe(train, scale=1.0, **given):
    """A probe of pixels; the features of every other pixel are `scale` times as large."""
    settings = EvaluateSettings(dataset="mnist5k", size=28, epochs=2, workers=0, **{"batch_size": 16, **given})
    backbone = build_pixels(28, 1)
    scales = torch.ones(784)
    scales[::2] = scale
    backbone.register_forward_hook(lambda module, inputs, features: features * scales)
    return linear_probe(backbone, train, squares(30, 1), settings, torch.device("cpu"), progress=False)


def test_the_folded_head_equals_the_head_on_normalised_features():
    torch.manual_seed(0)
    features = torch.randn(200, 5) * torch.tensor([1e-3, 1.0, 30.0, 1.0, 1.0]) + torch.tensor([0.0, 5.0, -3.0, 1.0, 0.0])
    features[:, 3:] = torch.tensor([1.0, 0.0])  # constant
    norm, head = build_head_norm("batchnorm", 5), nn.Linear(5, 3)
    for batch in features.split(50):
        norm(batch)
    torch.testing.assert_close(fold(head, norm)(features), head(norm.eval()(features)), rtol=1e-4, atol=1e-4)
    assert fold(head, norm).weight[:, 3:].eq(0).all(), "of a feature that never varied"
    torch.testing.assert_close(norm.running_mean, features.mean(dim=0))
    assert fold(head, build_head_norm("none", 5)) is head


def test_the_scale_of_the_features_does_not_matter_with_batchnorm_and_does_without():
    train, scale = squares(64, 0), 2.0**-4
    for norm, same in (("batchnorm", True), ("none", False)):
        (_, head), (_, scaled) = (probe(train, factor, head_norm=norm, lr_head=0.01) for factor in (1.0, scale))
        expected = head.weight.detach().clone()
        expected[:, ::2] /= scale
        distance = (scaled.weight - expected).norm() / expected.norm()
        assert (distance < 1e-2).item() == same, "0.0006 with batchnorm, by EPS and rounding, and 0.97 without"


def test_a_batch_of_one_image_is_skipped_with_batchnorm_and_one_image_is_too_few():
    probe(squares(17, 0), head_norm="batchnorm")
    with pytest.raises(SfrikError, match="BatchNorm needs at least 2 labelled images, got 1"):
        probe(squares(1, 0), head_norm="batchnorm")
    features, labels = torch.randn(17, 4), torch.arange(17) % 2
    logistic_sgd((features, labels), (features, labels), 2, epochs=2, batch_size=16, head_norm="batchnorm")


@pytest.mark.parametrize("kind", ["None", "layernorm", ""])
def test_an_unknown_head_norm_is_refused(kind):
    features, labels = torch.randn(17, 4), torch.arange(17) % 2
    with pytest.raises(ValueError, match=f'head_norm must be "none" or "batchnorm", got {kind!r}'):
        logistic_sgd((features, labels), (features, labels), 2, epochs=1, batch_size=16, head_norm=kind)


def test_head_norm_is_for_frozen_backbones():
    with pytest.raises(
        SfrikError, match="head_norm batchnorm is for the features of a frozen backbone: use it with weights freeze"
    ):
        EvaluateSettings.parse({"weights": "finetune", "head_norm": "batchnorm"})
    with pytest.raises(SfrikError, match="head_norm"):
        EvaluateSettings.parse({"head_norm": "layernorm"})


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (EvaluateSettings, {}),
        (LogisticSettings, {"solver": "sgd"}),
        (TransferSettings, {"target": "places205"}),
    ],
)
def test_only_a_head_norm_that_is_used_changes_the_identity_of_a_score(kind, given):
    settings = kind(**given)
    assert "head_norm" not in settings.what()
    assert kind(**given, head_norm="batchnorm").what() == {**settings.what(), "head_norm": "batchnorm"}
    idle = {LogisticSettings: {"solver": "lbfgs"}, TransferSettings: {"target": "voc07"}}.get(kind)
    if idle:
        assert kind(**idle, head_norm="batchnorm").hash() == kind(**idle).hash()
