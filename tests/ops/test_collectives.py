"""The rows of other processes, on pretended processes; tests/objectives/test_distributed.py starts real ones."""

from __future__ import annotations

import pytest
import torch

from sfrik.ops import collectives


@pytest.mark.parametrize(
    ("rank", "counts", "expected"),
    [
        (0, [2, 3], [[2, 3, 4]]),
        (1, [2, 3], [[0, 1]]),
        (1, [1, 2, 2], [[0], [3, 4]]),
        (0, [5, 0], []),  # no row elsewhere
        (1, [5, 0], [[0, 1, 2, 3, 4]]),
    ],
)
def test_the_remote_rows_of_each_view_are_those_of_the_other_processes(monkeypatch, rank, counts, expected):
    gathered = torch.cat([torch.arange(5.0)[:, None].expand(5, 2), 10 + torch.arange(5.0)[:, None].expand(5, 2)], dim=1)
    monkeypatch.setattr(collectives, "world_size", lambda: len(counts))
    monkeypatch.setattr(collectives, "rank", lambda: rank)
    monkeypatch.setattr(collectives, "_gather_side_by_side", lambda views, counts: gathered)
    views = [torch.zeros(counts[rank], 2)] * 2
    first, second = collectives.gather_remote_rows(views, counts)
    assert [part[:, 0].tolist() for part in first] == expected
    assert [(part[:, 1] - 10).tolist() for part in second] == expected
