"""The seeds of random number generators."""

from __future__ import annotations

from sfrik.system.random import derived_seed


def test_derived_seeds_differ_and_fit_in_63_bits():
    seeds = [derived_seed(seed, epoch, index) for seed in range(4) for epoch in range(4) for index in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, 2) == derived_seed(1, 2) != derived_seed(2, 1)
