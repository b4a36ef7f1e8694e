"""The seeds of random number generators."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sfrik.datasets import batches
from sfrik.datasets.images import Images
from sfrik.ops.random import STREAMS, derived_seed
from sfrik.views import Views


def test_seeds_of_all_streams_parts_and_lengths_differ_and_fit_in_63_bits():
    parts = [part for length in range(1, 5) for part in itertools.product(range(4), repeat=length)]
    seeds = [derived_seed(stream, *part) for stream in STREAMS for part in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_each_time():
    assert derived_seed("image", 1, 2) == derived_seed("image", 1, 2) != derived_seed("image", 2, 1)


def test_an_unknown_stream_and_a_negative_part_are_refused():
    with pytest.raises(ValueError, match="index"):
        derived_seed("images", 1)
    with pytest.raises(ValueError, match="non-negative"):
        derived_seed("image", -1)


def drawn_by_image(image):
    return (torch.rand(4),)


def drawn_by_batch(tensors, generator):
    return [tensors[0], torch.rand(4, generator=generator)]


def test_an_image_and_a_step_of_the_same_number_draw_different_numbers():
    images = Images(np.zeros(6, dtype=np.int64), 1, str, open=str)
    views = Views(drawn_by_image, drawn_by_batch)
    steps = [view for view, _, _ in batches(images, np.arange(6), views, 1, seeds=(0, 0))]
    for number, (by_image, by_batch) in enumerate(steps):
        assert not torch.equal(by_image[0], by_batch), f"image {number} and step {number}"
