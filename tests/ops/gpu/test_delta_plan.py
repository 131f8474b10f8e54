"""The plan of the delta rule: every row once, at its place, behind its path's rows, from a state that is there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psyfast.errors import BackendError
from psyfast.ops.gpu.delta_plan import PIECE_CHUNKS, delta_plan_of
from psyfast.ops.gpu.operators import operators_over
from psyfast.ops.paths import rows_before, tap_rows
from psyfast.ops.records import Lane
from psyfast.plan.batch import Request
from tests.ops import delta_checks
from tests.ops.delta_cases import SHAPES, Case, forest, lone, make_weights
from tests.ops.plain_kernels import PlainKernels

WEIGHTS = make_weights((1, 1, 8, 8, 4), hidden=8)


def path_of(row, before):
    rows = []
    while row >= 0:
        rows.append(row)
        row = before[row]
    return rows[::-1]


def check_plan(plan, pages):
    """Follows the groups as the kernels do, with the rows of a path in the place of a state."""
    before, states, written = rows_before(pages).tolist(), {}, []
    piece_stop = chunk_stop = 0
    for group in plan.groups:
        assert (group.first_piece, group.first_chunk) == (piece_stop, chunk_stop)
        piece_stop, chunk_stop = piece_stop + group.num_pieces, chunk_stop + group.num_chunks
        chunk, kept = group.first_chunk, {}
        for start, stop, source in plan.pieces_P3[group.first_piece : piece_stop].tolist():
            assert start == chunk < stop
            rows = list(states[source]) if source >= 0 else []
            for chunk in range(start, stop):
                places = plan.rows_N64[chunk].tolist()
                own = [row for row in places if row >= 0]
                assert places == own + [-1] * (64 - len(own)) and len(rows) % 64 == 0
                known, number = plan.chunks_N2[chunk].tolist()
                rows += own
                assert rows == path_of(rows[-1], before)
                written += own[known:]
                if number >= 0:
                    assert len(own) == 64 and number not in kept
                    kept[number] = list(rows)
            chunk = stop
        assert chunk == chunk_stop
        states |= kept
    assert sorted(written) == list(range(len(before)))
    assert plan.num_states == len(states)


@pytest.mark.parametrize("max_chunks", [1, 2, 5, 1000])
@pytest.mark.parametrize("share", [True, False])
def test_every_row_is_written_once_behind_its_path(max_chunks, share):
    rng = np.random.default_rng()
    for requests in (
        forest(rng),
        delta_checks.small_forest(rng),
        lone(1, rng),
        lone(64, rng),
        lone(65, rng),
        lone(5000, rng),
    ):
        case = Case(requests, WEIGHTS, share=share)
        plan = delta_plan_of(case.pages, max_chunks)
        check_plan(plan, case.pages)
        assert all(group.num_chunks <= max_chunks for group in plan.groups)
        lengths = plan.pieces_P3[:, 1] - plan.pieces_P3[:, 0]
        assert lengths.max() <= min(PIECE_CHUNKS, max_chunks)


def test_paths_of_one_level_are_one_group():
    """Six texts of two pieces each: all first pieces, then all second ones."""
    rng = np.random.default_rng(0)
    requests = [Request(np.concatenate([[20 + i], rng.integers(0, 9, 64 * 70)]), np.array([64 * 70])) for i in range(6)]
    plan = delta_plan_of(Case(requests, WEIGHTS).pages, 10_000)
    assert [(group.num_pieces, group.num_chunks) for group in plan.groups] == [(6, 384), (6, 36)]
    assert plan.num_states == 6


def test_states_that_nobody_reads_any_more_make_room():
    plan = delta_plan_of(Case(lone(64 * 640, np.random.default_rng(0)), WEIGHTS).pages, 1000)
    assert len(plan.groups) == 10 and plan.num_states == 2


def test_the_taps_of_a_row_are_the_rows_before_it_on_its_path():
    pages = Case(forest(np.random.default_rng()), WEIGHTS).pages
    before, taps = rows_before(pages).tolist(), tap_rows(pages, 5)
    assert taps.dtype == torch.int32
    for row, found in enumerate(taps.T.tolist()):
        path = path_of(row, before)[-5:]
        assert found == [-1] * (5 - len(path)) + path


def test_gaps_are_refused():
    case = Case(forest(np.random.default_rng()), WEIGHTS)
    forgetful = replace(case.pages, derived={"parent_rows": torch.full_like(case.pages.qo_indptr[:-1], -1)})
    with pytest.raises(BackendError, match="expected an earlier row at 0 on its path, got -1; a state has no gaps"):
        delta_plan_of(forgetful, 400)
    later = replace(case.pages, derived={"parent_rows": torch.full_like(case.pages.qo_indptr[:-1], len(case.x) - 1)})
    with pytest.raises(BackendError, match="a state has no gaps"):
        delta_plan_of(later, 400)


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_kernels_are_the_reference(shape, lane):
    """The operator around the kernels, and the oracle that they are held to."""
    delta_checks.check_against_the_truth(PlainKernels(), shape, lane)
    delta_checks.check_wanted_rows(PlainKernels())
    delta_checks.check_forks_of_forks(PlainKernels(), 200)


def test_no_rows_are_no_rows():
    case = Case(lone(3, np.random.default_rng(0)), WEIGHTS)
    operators = operators_over(PlainKernels(), Lane.FP32, delta_checks.CPU)
    pages = replace(
        case.pages,
        positions_T=case.pages.positions_T[:0],
        slots_T=case.pages.slots_T[:0],
        qo_indptr=torch.zeros(1, dtype=torch.int64),
        kv_indptr=torch.zeros(1, dtype=torch.int64),
        kv_indices=case.pages.kv_indices[:0],
        derived={},
    )
    weights = delta_checks.prepared(WEIGHTS, operators)
    assert operators.delta_rule(case.x[:0], pages, weights, lane=Lane.FP32).shape == (0, 8)
