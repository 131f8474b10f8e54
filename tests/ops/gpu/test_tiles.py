"""Attention's tiles against the tables that they are made of: every row sees each key of its past once and no other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psyfast.engine import allocate_pages
from psyfast.errors import BackendError
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops import reference
from psyfast.ops.gpu.checks import HostTables, check_tables, check_writes
from psyfast.ops.gpu.kernel_set import PAGE_SLOTS
from psyfast.ops.gpu.tiles import plan_tiles, tiles_of
from psyfast.ops.records import AttentionParams, Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch
from tests.ops.plain_kernels import PlainKernels, visible
from tests.plan.random_requests import random_requests

SHAPES = [(64, 1), (33, 2), (128, 4), (1, 3)]
WINDOWS = [None, 1, 40, 129]


def host_tables(batch):
    pages = batch.pages
    return HostTables(batch.positions_T, pages.qo_indptr, pages.kv_indptr, pages.kv_indices, pages.num_pages)


def of_rows(tables, rows):
    """The tables of some rows alone, as the last layer asks for them."""
    return replace(tables, positions=tables.positions[rows], qo_indptr=np.searchsorted(rows, tables.qo_indptr))


def random_tables(seed, *, share=True):
    rng = np.random.default_rng(seed)
    tables = host_tables(plan_batch(random_requests(rng), share=share).batch)
    if seed % 3 == 2:
        tables = of_rows(tables, np.flatnonzero(rng.integers(0, 4, len(tables.positions)) == 0))
    return tables


def wanted_slots(tables, window):
    """For each row the slots of its past, in order of position."""
    wanted = []
    for s, (start, stop) in enumerate(zip(tables.qo_indptr, tables.qo_indptr[1:], strict=False)):
        path = tables.kv_indices[tables.kv_indptr[s] : tables.kv_indptr[s + 1]]
        for position in tables.positions[start:stop]:
            seen = np.arange(0 if window is None else max(0, position - window + 1), position + 1)
            wanted.append(path[seen // PAGE_SLOTS] * PAGE_SLOTS + seen % PAGE_SLOTS)
    return wanted


def seen_slots(tables, tiles, window):
    """What the tiles show each row, block after block; and each row's tile."""
    seen, S = [None] * len(tables.positions), PAGE_SLOTS * tiles.key_pages
    positions = torch.from_numpy(tables.positions)
    for (start, stop), (first, full_start, full_stop, last) in zip(
        tiles.rows_I2.tolist(), tiles.bounds_I4.tolist(), strict=True
    ):
        assert 0 < stop - start <= tiles.query_rows
        assert first <= full_start <= full_stop <= last
        mask = visible(tiles, slice(first, last), positions[start:stop], start, window).numpy()
        assert mask[:, (full_start - first) * S : (full_stop - first) * S].all()
        assert (np.diff(tiles.index_B[first:last]) >= 0).all()
        slots = (tiles.pages_BJ[first:last, :, None].numpy() * PAGE_SLOTS + np.arange(PAGE_SLOTS)).reshape(-1)
        for row in range(start, stop):
            assert seen[row] is None
            seen[row] = slots[mask[row - start]]
        # No block is there for nothing, and none that is full is left out beside the full ones.
        assert mask.reshape(stop - start, -1, S).any((0, 2)).all()
    return seen


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_every_row_sees_each_key_of_its_past_once_and_no_other(seed, shape, window):
    tables = random_tables(seed, share=seed % 2 == 0)
    check_tables(tables)
    tiles = plan_tiles(tables, *shape, window)
    seen = seen_slots(tables, tiles, window)
    for row, (got, wanted) in enumerate(zip(seen, wanted_slots(tables, window), strict=True)):
        np.testing.assert_array_equal(got, wanted, err_msg=str(row))
    counts = (tiles.bounds_I4[:, 3] - tiles.bounds_I4[:, 0]).numpy()
    assert (np.diff(counts) <= 0).all()


def one_segment(num_tokens):
    return host_tables(plan_batch([Request(np.arange(num_tokens + 1), np.array([num_tokens]))]).batch)


def test_a_long_segment_has_its_ragged_tile_first_and_masks_on_the_diagonal_alone():
    tiles = plan_tiles(one_segment(1000), 64, 1, None)
    by_row = sorted(zip(tiles.rows_I2.tolist(), tiles.bounds_I4.tolist(), strict=True))
    assert [rows for rows, _ in by_row[:3]] == [[0, 40], [40, 104], [104, 168]]
    first, full_start, full_stop, last = by_row[-1][1]  # rows 936 to 999: blocks 0 to 15, of which 14 end before 936
    assert (full_start - first, full_stop - first, last - first) == (0, 14, 16)


def test_a_window_cuts_blocks_at_both_ends():
    tiles = plan_tiles(one_segment(1000), 64, 1, 300)
    first, full_start, full_stop, last = max(zip(tiles.rows_I2.tolist(), tiles.bounds_I4.tolist(), strict=True))[1]
    # Row 936 sees from 637 on (block 9), row 999 from 700 (so block 11 is the first that it sees as a whole).
    assert tiles.index_B[first:last].tolist() == list(range(9, 16))
    assert tiles.index_B[full_start:full_stop].tolist() == [11, 12, 13]


def caterpillar(num_branches, trunk=1024, every=8):
    branches = tuple(Branch(start, np.array([7, 8, 9]), start, start + 3) for start in range(8, trunk, every))
    return Request(np.arange(trunk) % 5, np.array([trunk - 1]), branches[:num_branches])


def test_short_branches_share_tiles_and_the_blocks_of_their_trunk():
    tables = host_tables(plan_batch([caterpillar(120)]).batch)
    tiles = plan_tiles(tables, 128, 1, None)
    assert len(tiles.rows_I2) == 8 + 2  # 240 rows of branches lie in two tiles, not in 120
    (start, stop), (first, full_start, full_stop, last) = max(
        zip(tiles.rows_I2.tolist(), tiles.bounds_I4.tolist(), strict=True)
    )
    # The branches that fork at 520 and later: eight pages before all of them, seven after some, and a page of its own each.
    num_branches = (stop - start) // 2
    assert num_branches == 56
    assert (full_stop - full_start, last - first) == (8, 8 + 7 + num_branches)


def test_a_block_with_two_runs_of_readers_is_listed_twice():
    """Rows 0 and 2 read page 0, row 1 another: segments in an order that no plan gives."""
    tables = HostTables(np.array([3, 2, 1]), np.arange(4), np.arange(4), np.array([0, 1, 0]), 2)
    tiles = plan_tiles(tables, 8, 1, None)
    listed = sorted(zip(tiles.pages_BJ[:, 0].tolist(), tiles.block_rows_B2.tolist(), strict=True))
    assert listed == [(0, [0, 1]), (0, [2, 3]), (1, [1, 2])]


def test_no_rows_make_no_tiles():
    tables = of_rows(one_segment(100), np.zeros(0, np.int64))
    check_tables(tables)
    tiles = plan_tiles(tables, 64, 2, 10)
    assert tiles.rows_I2.shape == (0, 2)
    assert tiles.bounds_I4.shape == (0, 4)
    assert tiles.pages_BJ.shape == (0, 2)


def pages_of(batch, H=2, K=1, E=16, *, lane=Lane.FP32):
    traits = Traits("test", 1, 8, 8, H, K, E, 40, 4096, 1e-5, RopeTraits())
    pages = allocate_pages(batch.pages, batch.positions_T, traits, resolve("reference", "cpu", lane))
    generator = torch.Generator().manual_seed(0)
    for stored in (pages.k, pages.v):
        stored.copy_(torch.randn(stored.shape, generator=generator))
        flat = stored.view(-1, K, E)
        flat[pages.copy_to] = flat[pages.copy_from]
    return pages


PARAMS = [
    AttentionParams(0.25),
    AttentionParams(0.25, window=50),
    AttentionParams(0.25, soft_cap=2.0, sinks_H=torch.tensor([0.5, -1.0])),
]


@pytest.mark.parametrize("params", PARAMS, ids=lambda params: f"window {params.window}, cap {params.soft_cap}")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_over_tiles_is_the_references(shape, params):
    batch = plan_batch(random_requests(np.random.default_rng(7))).batch
    pages = pages_of(batch)
    q_THE = torch.randn(len(batch.token_ids_T), 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kernels = PlainKernels(query_rows=shape[0], key_pages=shape[1], compute=torch.float64)
    kv_PKSE = tuple(stored.transpose(1, 2).contiguous() for stored in (pages.k, pages.v))
    for rows in (None, torch.arange(3, len(q_THE), 5)):
        some = pages if rows is None else pages.at(rows)
        q = q_THE if rows is None else q_THE[rows]
        tiles = tiles_of(some, *shape, params.window)
        assert tiles is tiles_of(some, *shape, params.window)
        got = kernels.attention(
            q,
            kv_PKSE,
            some.positions_T,
            tiles,
            scale=params.scale,
            window=params.window,
            soft_cap=params.soft_cap,
            sinks_H=params.sinks_H,
        )
        truth = reference.attention(q, some, params, lane=Lane.FP32)
        assert (got - truth).abs().max() < 1e-12


def test_a_batch_of_262144_tokens():
    rng = np.random.default_rng(0)
    trunks = [
        Request(
            rng.integers(0, 9, 8000),
            np.array([7999]),
            tuple(Branch(start, np.array([1, 2, 3]), start, start + 3) for start in range(20, 8000, 60)),
        )
        for _ in range(32)
    ]
    tables = host_tables(plan_batch(trunks).batch)
    assert len(tables.positions) > 262_000
    assert len(tables.qo_indptr) > 4_000
    check_tables(tables)
    rows = plan_tiles(tables, 128, 1, None).rows_I2.numpy()
    assert (np.sort(rows[:, 0])[1:] == np.sort(rows[:, 1])[:-1]).all()
    assert (rows.min(), rows.max()) == (0, len(tables.positions))


TABLES = {
    "kv_indices": (lambda t: replace(t, kv_indices=t.kv_indices + t.num_pages), r"kv_indices holds \d+, expected"),
    "kv_indices below": (lambda t: replace(t, kv_indices=t.kv_indices - 1), r"kv_indices holds -1, expected"),
    "kv_indptr": (lambda t: replace(t, kv_indptr=t.kv_indptr + 1), r"kv_indptr goes from 1"),
    "kv_indptr falls": (
        lambda t: replace(t, kv_indptr=t.kv_indptr[[0, 2, 1, *range(3, len(t.kv_indptr))]]),
        "ascending",
    ),
    "qo_indptr": (lambda t: replace(t, qo_indptr=t.qo_indptr * 2), r"qo_indptr goes from 0"),
    "segments": (lambda t: replace(t, qo_indptr=np.append(t.qo_indptr, t.qo_indptr[-1])), "as many as kv_indptr"),
    "positions": (
        lambda t: replace(t, positions=t.positions + 64),
        r"stands at position \d+, expected one in its path",
    ),
    "negative": (lambda t: replace(t, positions=t.positions - 1), r"stands at position -1"),
    "order": (lambda t: replace(t, positions=t.positions * 0), r"row 1 stands at position 0, expected one after 0"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_lead_outside_are_refused(case):
    change, message = TABLES[case]
    tables = host_tables(plan_batch([caterpillar(5)]).batch)
    check_tables(tables)
    with pytest.raises(BackendError, match=message):
        check_tables(change(tables))


WRITES = {
    "slots_T": lambda p: replace(p, slots_T=p.slots_T + 64 * p.k.shape[0]),
    "slots_T has": lambda p: replace(p, slots_T=p.slots_T[1:]),
    "positions_T": lambda p: replace(p, positions_T=p.positions_T + 1),
    "copy_runs_R4's pages": lambda p: replace(p, copy_runs_R4=p.copy_runs_R4 - torch.tensor([10_000, 0, 0, 0])),
    "copy_runs_R4's slots": lambda p: replace(p, copy_runs_R4=p.copy_runs_R4 + torch.tensor([0, 0, 0, 64])),
    "copy_runs_R4 holds": lambda p: replace(p, copy_runs_R4=p.copy_runs_R4[:, [0, 1, 3, 2]]),
}


@pytest.mark.parametrize("message", WRITES)
def test_writes_outside_of_the_pages_are_refused(message):
    pages = pages_of(plan_batch([caterpillar(5)]).batch)
    check_writes(pages)
    with pytest.raises(BackendError, match=message):
        check_writes(WRITES[message](pages))
