"""Sums over pairs: on how many threads and on what blocks of a tile a function is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from sfrik.objectives import AUH, SFRIK, SimCLR, VICReg
from sfrik.ops.pairwise import BLOCK, max_inner_product, pair_sum, row_blocks, tiles


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "q"), [(1, 4), (2, 4), (2, 4096), (4, 4096)])
def test_a_function_is_evaluated_on_one_thread_in_blocks_that_fit_the_cache(threads, q):
    torch.set_num_threads(threads)
    z, seen = torch.randn(700, q), []

    def square(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((torch.get_num_threads(), t.numel()))
        return t.square(), 2 * t

    for gradient in (None, torch.zeros_like(z)):
        pair_sum(z[:600], [z[600:]], square, None if gradient is None else gradient[:600])
    assert {one for one, _ in seen} == {1}
    assert max(size for _, size in seen) <= BLOCK // min(2, threads)
    assert sum(size for _, size in seen) == 2 * sum((r.stop - r.start) * len(c) for r, c, _ in tiles(z[:600], [z[600:]]))
    assert torch.get_num_threads() == threads


def test_many_threads_share_a_tile_where_one_would_take_long():
    torch.set_num_threads(4)
    tile = torch.zeros(256, 2048)
    with row_blocks(tile, 1024) as blocks:
        assert blocks == [slice(0, 256)]
        assert torch.get_num_threads() == 4


def test_on_another_device_than_the_cpu_a_tile_is_not_divided():
    with row_blocks(torch.zeros(1024, 8192, device="meta"), 8192) as blocks:
        assert blocks == [slice(0, 1024)]


def test_an_error_in_the_function_leaves_the_number_of_threads_as_it_was():
    torch.set_num_threads(2)

    def fails(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("no value")

    with pytest.raises(RuntimeError, match="no value"):
        pair_sum(torch.randn(4, 3), [], fails)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("objective", [SFRIK(64), AUH(), SimCLR(), VICReg()], ids=lambda objective: type(objective).__name__)
def test_a_batch_of_256_gives_the_bits_of_undivided_tiles(objective, monkeypatch):
    """On one thread its tiles are the blocks; on two each computes one, which is how PyTorch divides a tile among them."""
    views = [torch.randn(256, 64 if objective.normalised else 512).requires_grad_() for _ in range(2)]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = []
        for divided in (True, False):
            if not divided:
                monkeypatch.setattr("sfrik.ops.pairwise.row_blocks", whole)
                monkeypatch.setattr("sfrik.ops.log_sums.row_blocks", whole)
            loss = objective(views).loss
            found.append((loss.detach(), *torch.autograd.grad(loss, views)))
        monkeypatch.undo()
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), f"{threads} threads"


@contextmanager
def whole(tile: torch.Tensor, q: int) -> Iterator[list[slice]]:
    yield [slice(0, len(tile))]


def test_the_largest_inner_product_is_that_of_two_different_rows():
    z = torch.randn(700, 5)
    gram = (z @ z.T).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(max_inner_product(z[:600], [z[600:]]), gram[:600].max())
