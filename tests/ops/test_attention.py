"""Native attention against the reference in fp64, and its bits against themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from native_builds import LEVELS
from packed_pages import pack_pages, unpack_pages

from psyfast.engine import allocate_pages
from psyfast.errors import BackendError
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops import cpu_attention, native, reference
from psyfast.ops.records import AttentionParams, Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch

pytestmark = pytest.mark.parametrize("level", LEVELS, ids=str)
LANES = list(Lane)
# Heads, kv heads, head size: groups of 1 to 5, sizes that fill panels, spill over them and fall short of a vector.
SHAPES = [(6, 2, 64), (2, 2, 16), (5, 1, 128), (2, 1, 80), (2, 1, 96), (1, 1, 256), (2, 2, 6)]


@pytest.fixture(autouse=True)
def _activate(level, monkeypatch):
    level.activate(monkeypatch)


def forest(rng):
    """Trunks that share prefixes; branches at the ends of pages and blocks; segments of one token; a long root."""
    stem = rng.integers(0, 9, 300)
    branches = tuple(
        Branch(start, rng.integers(10, 30, size), start, start + size)
        for start, size in (
            (1, 3),
            (63, 2),
            (64, 5),
            (65, 2),
            (255, 9),
            (256, 2),
            (257, 2),
            (280, 2),
            (280, 4),
            (299, 2),
        )
    )
    return [
        Request(stem, np.array([299]), branches),
        Request(np.concatenate([stem[:130], rng.integers(10, 19, 70)]), np.array([199])),
        Request(np.concatenate([stem[:64], [9, 1, 2]]), np.array([66])),
        Request(np.array([31, 3]), np.array([1])),
    ]


class Case:
    """Random queries, keys and values over a planned batch, as the reference and as the native operator take them."""

    def __init__(self, requests, shape, lane, seed, *, share=True):
        H, K, E = shape
        traits = Traits("test", 1, 8, 8, H, K, E, 40, 4096, 1e-5, RopeTraits())
        self.plan = plan_batch(requests, share=share)
        self.lane, self.batch = lane, self.plan.batch
        operand = cpu_attention.OPERAND[lane]
        self.pages = allocate_pages(self.batch.pages, self.batch.positions_T, traits, resolve("reference", "cpu", lane))
        # Rows depend on the token, its position and nothing else, so that batches of the same sequences agree.
        T = len(self.batch.token_ids_T)
        rows = [
            torch.randn((H + 2 * K) * E, generator=torch.Generator().manual_seed(hash((seed, int(t), int(p)))))
            for t, p in zip(self.batch.token_ids_T, self.batch.positions_T, strict=True)
        ]
        values = torch.stack(rows) if rows else torch.zeros(0, (H + 2 * K) * E)
        q, k, v = values.split([H * E, K * E, K * E], dim=1)
        self.q = q.reshape(T, H, E).to(operand).contiguous()
        for pages, written in ((self.pages.k, k), (self.pages.v, v)):
            flat = pages.view(-1, K, E)
            flat[self.pages.slots_T] = written.reshape(T, K, E).to(operand)
            flat[self.pages.copy_to] = flat[self.pages.copy_from]
        packed = pack_pages(self.pages.k, self.pages.v, lane)
        self.packed = replace(self.pages, k=packed[0], v=packed[1])

    def native(self, level, params, **settings):
        return cpu_attention.attention(self.q, self.packed, params, lane=self.lane, isa=level.isa, **settings)

    def truth(self, params):
        return reference.attention(self.q.double(), self.pages, params, lane=Lane.FP32)

    def torchs(self, params):
        return reference.attention(self.q.float(), self.pages, params, lane=Lane.FP32)


def assert_close(case, params, got):
    """At most twice torch's own error in fp32, and the rounding of weights and result in the bf16 lane."""
    truth = case.truth(params)
    own, error = case.torchs(params) - truth, got.double() - truth
    floor = 1e-6 if case.lane is Lane.FP32 else 2**-8
    assert error.abs().max() <= 2 * own.abs().max() + 2 * floor * truth.abs().max()
    assert error.square().mean().sqrt() <= 2 * own.square().mean().sqrt() + floor * truth.square().mean().sqrt()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_reference(level, shape, lane):
    case = Case(forest(np.random.default_rng(1)), shape, lane, seed=1)
    params = AttentionParams(shape[2] ** -0.5)
    assert_close(case, params, case.native(level, params))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 127, 129, 256, 257, 321])
def test_any_length(level, num_tokens, lane):
    case = Case([Request(np.arange(num_tokens + 1), np.array([num_tokens]))], (3, 1, 32), lane, seed=2)
    params = AttentionParams(32**-0.5)
    assert_close(case, params, case.native(level, params))


PARAMS = [
    AttentionParams(0.125, window=1),
    AttentionParams(0.125, window=40),
    AttentionParams(0.125, window=257),
    AttentionParams(0.125, soft_cap=3.0),
    AttentionParams(0.3, sinks_H=torch.tensor([-60.0, 0.0, 3.0, 200.0])),
    AttentionParams(0.125, window=100, soft_cap=20.0, sinks_H=torch.tensor([0.5, 0.0, -1.0, 1.0])),
]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("params", PARAMS, ids=range(len(PARAMS)))
def test_windows_caps_and_sinks(level, params, lane):
    case = Case(forest(np.random.default_rng(3)), (4, 2, 32), lane, seed=3)
    truth = case.truth(params)
    got = case.native(level, params)
    assert (got.double() - truth).abs().max() <= truth.abs().max() * (2e-6 if lane is Lane.FP32 else 2**-7) + 1e-30


@pytest.mark.parametrize("lane", LANES)
def test_scores_that_move_the_reference(level, lane):
    case = Case(forest(np.random.default_rng(4)), (4, 2, 32), lane, seed=4)
    # Later blocks exceed earlier ones by far: keys grow with their position.
    growth = torch.linspace(0.1, 60.0, 300)
    num_slots = case.pages.k.shape[1]
    position = (case.pages.page_index_P[:, None] * num_slots + torch.arange(num_slots)).clamp(max=299)
    case.pages.k.mul_(growth[position][:, :, None, None].to(case.pages.k.dtype))
    k, v = pack_pages(case.pages.k, case.pages.v, lane)
    case.packed = replace(case.packed, k=k, v=v)
    params = AttentionParams(1.0)
    truth = case.truth(params)
    got = case.native(level, params)
    own = (case.torchs(params) - truth).abs().max()
    # Scores of thousands: an fp32 score is off by its own rounding, and so is its weight.
    assert (got.double() - truth).abs().max() <= 2 * own + truth.abs().max() * (1e-4 if lane is Lane.FP32 else 2**-7)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_bits_do_not_depend_on_threads_or_tiles(level, num_threads, lane):
    case = Case(forest(np.random.default_rng(5)), (3, 1, 64), lane, seed=5)
    params = AttentionParams(0.125, window=300)
    expected = case.native(level, params, num_threads=1)
    assert torch.equal(case.native(level, params, num_threads=num_threads), expected)
    assert torch.equal(case.native(level, params, num_threads=num_threads, join_segments=False), expected)


@pytest.mark.parametrize("lane", LANES)
def test_bits_do_not_depend_on_sharing_or_company(level, lane):
    requests, params = forest(np.random.default_rng(6)), AttentionParams(0.125)
    shared, alone = Case(requests, (3, 1, 64), lane, seed=6), Case(requests, (3, 1, 64), lane, seed=6, share=False)
    assert len(shared.q) < len(alone.q)
    outs = shared.native(level, params), alone.native(level, params)
    for request_idx in range(len(requests)):
        rows = [case.batch.rows_N[case.plan.requests[request_idx].entry] for case in (shared, alone)]
        assert torch.equal(outs[0][rows[0]], outs[1][rows[1]])
        for shared_place, own_place in zip(
            shared.plan.branches[request_idx], alone.plan.branches[request_idx], strict=True
        ):
            rows = [shared.batch.rows_N[shared_place.entry], alone.batch.rows_N[own_place.entry]]
            assert torch.equal(outs[0][rows[0]], outs[1][rows[1]])
    lone = Case(requests[1:2], (3, 1, 64), lane, seed=6)
    of_lone = lone.native(level, params)[lone.batch.rows_N]
    assert torch.equal(of_lone, outs[0][shared.batch.rows_N[shared.plan.requests[1].entry]])
    other = Case(requests[1:2], (3, 1, 64), lane, seed=7).native(level, params)
    assert not torch.equal(other[lone.batch.rows_N], of_lone)  # the comparison can fail


@pytest.mark.parametrize("lane", LANES)
def test_some_queries_alone(level, lane):
    case, params = Case(forest(np.random.default_rng(8)), (3, 1, 64), lane, seed=8), AttentionParams(0.125)
    everything = case.native(level, params)
    rows = torch.tensor([0, 5, 6, 7, 254, 255, 256, 310, len(case.q) - 1])
    some = cpu_attention.attention(case.q[rows], case.packed.at(rows), params, lane=lane, isa=level.isa)
    assert torch.equal(some, everything[rows])
    none = torch.zeros(0, dtype=torch.int64)
    assert cpu_attention.attention(case.q[none], case.packed.at(none), params, lane=lane, isa=level.isa).shape == (
        0,
        192,
    )


@pytest.mark.parametrize("lane", LANES)
def test_a_query_that_is_nan_stays_alone(level, lane):
    case, params = Case(forest(np.random.default_rng(9)), (3, 1, 64), lane, seed=9), AttentionParams(0.125)
    clean = case.native(level, params)
    case.q[17, 1] = float("nan")
    case.q[290, 0, 3] = float("inf")
    out = case.native(level, params).unflatten(1, (3, 64))
    assert out[17, 1].isnan().all()
    assert out[290, 0].isnan().all()
    kept = torch.ones(len(case.q), 3, dtype=torch.bool)
    kept[17, 1] = kept[290, 0] = False
    assert torch.equal(out[kept], clean.unflatten(1, (3, 64))[kept])


def test_packing_is_undone_by_unpacking(level):
    for lane in LANES:
        case = Case(forest(np.random.default_rng(10)), (4, 2, 80), lane, seed=10)
        k, v = unpack_pages(case.packed.k, case.packed.v, 80, lane)
        assert torch.equal(k, case.pages.k)
        assert torch.equal(v, case.pages.v)


@pytest.mark.parametrize(("lane", "bound"), [(Lane.FP32, 3e-7), (Lane.BF16, 1.3e-4)])
def test_exp2_is_as_exact_as_it_says(level, lane, bound):
    x = torch.cat([torch.linspace(-125.9, 64.5, 400_000), torch.rand(2**16) * 2 - 1])
    x = x[: len(x) // 16 * 16].contiguous()
    out = torch.empty_like(x)
    native.load().exp2(level.isa, lane.value, x.data_ptr(), out.data_ptr(), x.numel())
    assert ((out.double() / x.double().exp2()) - 1).abs().max() < bound
    special = torch.tensor([-1e30, -1e4, -200.0, float("-inf"), float("nan"), 0.0, -0.0, 64.0] * 2)
    if level.isa.startswith("avx512"):
        special[[3, 11]] = -1e30  # vrndscaleps of −inf minus itself is NaN; no score is −inf: hidden ones are −1e30
    out = torch.empty_like(special)
    native.load().exp2(level.isa, lane.value, special.data_ptr(), out.data_ptr(), 16)
    assert (out[:4] == 0).all()
    assert out[4].isnan()
    assert (out[5:7] - 1).abs().max() < bound


def call(level, case, **changes):
    pages = replace(case.packed, **{key: value for key, value in changes.items() if hasattr(case.packed, key)})
    params = changes.get("params", AttentionParams(0.125))
    return cpu_attention.attention(changes.get("q", case.q), pages, params, lane=case.lane, isa=level.isa)


def test_bad_input_is_refused(level):
    case = Case(forest(np.random.default_rng(11)), (4, 2, 16), Lane.FP32, seed=11)
    T = len(case.q)
    far = case.packed.positions_T.clone()
    far[-1] = 10**6
    outside = case.packed.kv_indices.clone()
    outside[3] = 10**6
    falling = case.packed.qo_indptr.clone()
    falling[1] = T + 5
    for changes, message in (
        ({"q": case.q[:-1]}, "positions has shape"),
        ({"q": case.q.double()}, "q is torch.float64"),
        ({"q": case.q[:, :3].contiguous()}, "multiple of the kv heads"),
        ({"q": case.q.transpose(0, 1).contiguous().transpose(0, 1)}, "strides"),
        ({"k": case.packed.k[:, :, :3].contiguous()}, "pages of K has shape"),
        ({"v": case.packed.v[:-1]}, "pages of V has shape"),
        ({"positions_T": far}, "position 1000000"),
        ({"kv_indices": outside}, "kv_indices"),
        ({"qo_indptr": falling}, "qo_indptr falls"),
        ({"params": AttentionParams(-1.0)}, "scale"),
        ({"params": AttentionParams(1.0, window=-2)}, "window"),
        ({"params": AttentionParams(1.0, sinks_H=torch.zeros(3))}, "sinks has shape"),
    ):
        with pytest.raises(BackendError, match=message):
            call(level, case, **changes)
    with pytest.raises(BackendError, match="64"):
        cpu_attention.allocate_kv(2, 32, 1, 8, lane=Lane.FP32)
