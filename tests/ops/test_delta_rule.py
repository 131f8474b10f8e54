"""The gated delta rule: chunks against the plain recurrence in fp64, native against both, and its bits against themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from native_builds import LEVELS
from torch.nn import functional

from psyfast.errors import BackendError
from psyfast.ops import cpu_delta, reference_delta
from psyfast.ops.cpu_attention import OPERAND
from psyfast.ops.records import Lane
from psyfast.plan.batch import Request
from tests.ops.delta_cases import (
    EPS,
    MISFITS,
    SHAPES,
    Case,
    forest,
    in_dtype,
    lone,
    make_weights,
    relative_error,
    spoilt_rows,
)

LANES = list(Lane)
LENGTHS = [1, 2, 3, 63, 64, 65, 127, 128, 129, 200]
levels = pytest.mark.parametrize("level", LEVELS, ids=str)


def native(case, level, lane, **settings):
    packed = cpu_delta.prepare_delta_rule(case.weights, lane)
    return cpu_delta.delta_rule(case.x, case.pages, packed, lane=lane, isa=level.isa, **settings)


def plain_recurrence(x, weights, lane):
    """One path, a token after the other."""
    K, H, E, V = weights.num_key_heads, weights.num_value_heads, weights.key_dim, weights.value_dim
    qkv, log_decay, write = reference_delta.projected(x, in_dtype(weights, x.dtype), lane)
    filter_CW = weights.conv_CW.to(x.dtype)
    padded = functional.pad(qkv.T[None], (filter_CW.shape[1] - 1, 0))
    qkv = functional.silu(functional.conv1d(padded, filter_CW[:, None], groups=len(filter_CW)))[0].T
    q, k, v = qkv.split([K * E, K * E, H * V], dim=-1)
    out, state = [], x.new_zeros(H, E, V)
    for t in range(len(x)):
        q_HE, k_HE = (part[t].view(K, E).repeat_interleave(H // K, 0) for part in (q, k))
        q_HE, k_HE = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q_HE, k_HE))
        state = state * log_decay[t].exp()[:, None, None]
        error = v[t].view(H, V) - torch.einsum("hev,he->hv", state, k_HE)
        state = state + torch.einsum("he,hv->hev", k_HE, write[t][:, None] * error)
        out.append(torch.einsum("hev,he->hv", state, q_HE) / E**0.5)
    o = torch.stack(out)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + EPS) * weights.head_norm.weight_D.to(x.dtype)
    return o.flatten(1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_are_the_plain_recurrence(shape):
    rng, weights = np.random.default_rng(), make_weights(shape)
    for requests in (*(lone(length, rng) for length in LENGTHS), forest(rng)):
        case = Case(requests, weights)
        got = case.reference(Lane.FP32, torch.float64)
        for rows in case.paths().values():
            truth = plain_recurrence(case.x[rows].double(), weights, Lane.FP32)
            torch.testing.assert_close(got[rows], truth, rtol=1e-8, atol=1e-9)


def test_paths_are_those_of_the_requests():
    requests = forest(np.random.default_rng(1))
    tokens = Case(requests, make_weights(SHAPES[3])).paths()
    for request in requests:
        ids = request.ids[: request.num_inputs].tolist()
        assert any(list(path[: len(ids)]) == ids for path in tokens)
        for branch in request.branches:
            ids = [*request.ids[: branch.start].tolist(), *branch.ids[:-1].tolist()]
            assert any(list(path[: len(ids)]) == ids for path in tokens)


@levels
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_against_the_truth(level, lane, shape, monkeypatch):
    level.activate(monkeypatch)
    rng = np.random.default_rng()
    for with_norm, requests in ((True, forest(rng)), (False, lone(129, rng)), (True, lone(1, rng))):
        case = Case(requests, make_weights(shape, with_norm=with_norm))
        truth, plain = case.reference(lane, torch.float64), case.reference(lane)
        got = native(case, level, lane)
        assert got.dtype == OPERAND[lane]
        # A bf16 output is rounded once; operands on a tie may round otherwise after another order of the norm's sum.
        floor = {Lane.FP32: 2e-6, Lane.BF16: 8e-3}[lane]
        assert relative_error(got, truth) <= 2 * relative_error(plain, truth) + floor


def forgetting(case, level):
    """An operator that errs: states start anew at every segment."""
    pages = replace(case.pages, derived={"parent_rows": torch.full_like(case.pages.qo_indptr[:-1], -1)})
    positions = pages.positions_T.clone()
    for start, stop in zip(pages.qo_indptr[:-1], pages.qo_indptr[1:], strict=True):
        positions[start:stop] = torch.arange(stop - start)
    packed = cpu_delta.prepare_delta_rule(case.weights, Lane.FP32)
    return cpu_delta.delta_rule(case.x, replace(pages, positions_T=positions), packed, lane=Lane.FP32, isa=level.isa)


@levels
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_a_rows_bits_depend_on_its_path_alone(level, lane, shape, monkeypatch):
    level.activate(monkeypatch)
    requests, weights = forest(np.random.default_rng()), make_weights(shape)
    together = Case(requests, weights)
    whole, paths = native(together, level, lane, num_threads=1), together.paths()
    for threads in (2, 3, 7):
        assert torch.equal(native(together, level, lane, num_threads=threads), whole)
    for others in (requests[::-1], requests[:1], requests[1:4]):
        for share in (True, False):
            case = Case(others, weights, share=share)
            got = native(case, level, lane)
            for tokens, rows in case.paths().items():
                same = next(ours for path, ours in paths.items() if path[: len(tokens)] == tokens)[: len(tokens)]
                assert torch.equal(got[rows], whole[same])
    wanted = torch.tensor([0, 5, len(whole) - 1])
    assert torch.equal(native(together, level, lane, rows_N=wanted), whole[wanted])
    if lane is Lane.FP32:
        assert not torch.equal(forgetting(together, level), whole)  # the comparison can fail


@levels
def test_forks_of_forks_by_the_thousand(level, monkeypatch):
    """Each text forks off the last token but one of the text before: a tree as deep as there are texts."""
    level.activate(monkeypatch)
    rng, weights = np.random.default_rng(3), make_weights((1, 1, 16, 16, 4), hidden=8)
    stem = rng.integers(0, 9, 400 if level.emulated else 1500)
    requests = [
        Request(np.concatenate([stem[:stop], [20 + stop % 2, 30, 31]]), np.array([stop + 2]))
        for stop in range(1, len(stem))
    ]
    case = Case(requests, weights)
    got, truth = native(case, level, Lane.FP32), case.reference(Lane.FP32, torch.float64)
    assert relative_error(got, truth) < 1e-5


@levels
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_token_spoils_nothing_before_it(level, lane, value, monkeypatch):
    level.activate(monkeypatch)
    case = Case(forest(np.random.default_rng(4)), make_weights(SHAPES[1]))
    clean = native(case, level, lane)
    bad = spoilt_rows(case, value)
    got = native(case, level, lane)
    assert torch.equal(got[~bad], clean[~bad])
    assert got[bad].isnan().any(1).all()


def test_fast_decay_keeps_its_neighbours():
    """After tokens that erase everything, sums of log decay are thousands: what follows them must not notice."""
    level = LEVELS[0]
    weights = make_weights((1, 1, 64, 64, 4))
    weights = replace(weights, log_rate_H=torch.tensor([5.0]), decay_write_proj=weights.decay_write_proj * 4)
    case = Case(lone(64, np.random.default_rng(0)), weights)
    truth = case.reference(Lane.FP32, torch.float64)
    assert relative_error(native(case, level, Lane.FP32), truth) < 3e-6


@pytest.mark.parametrize("message", MISFITS)
def test_weights_that_do_not_fit_are_refused(message):
    weights = replace(make_weights((2, 4, 6, 6, 4)), **MISFITS[message])
    with pytest.raises(BackendError, match=message):
        cpu_delta.prepare_delta_rule(weights, Lane.FP32)


def test_arguments_that_do_not_fit_are_refused():
    case = Case(lone(5, np.random.default_rng(0)), make_weights((2, 4, 6, 6, 4)))
    packed = cpu_delta.prepare_delta_rule(case.weights, Lane.FP32)
    run = cpu_delta.delta_rule
    with pytest.raises(BackendError, match="packed for lane fp32"):
        run(case.x, case.pages, packed, lane=Lane.BF16)
    with pytest.raises(BackendError, match="x has shape"):
        run(case.x[:, 1:].contiguous(), case.pages, packed, lane=Lane.FP32)
    with pytest.raises(BackendError, match="positions has shape"):
        run(case.x[1:].contiguous(), case.pages, packed, lane=Lane.FP32)
    with pytest.raises(BackendError, match="num_threads is 0"):
        run(case.x, case.pages, packed, lane=Lane.FP32, num_threads=0)
    astray = replace(case.pages, derived={"parent_rows": torch.tensor([3])})
    with pytest.raises(BackendError, match="segment 0 follows row 3"):
        run(case.x, astray, packed, lane=Lane.FP32)
