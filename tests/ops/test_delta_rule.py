"""The gated delta rule: chunks against the plain recurrence in fp64, native against both, and its bits against themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from native_builds import LEVELS
from torch.nn import functional

from psyfast.engine import allocate_pages
from psyfast.errors import BackendError
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops import cpu_delta, reference_delta
from psyfast.ops.cpu_attention import OPERAND
from psyfast.ops.paths import rows_before
from psyfast.ops.records import DeltaRuleWeights, Lane, Norm
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch

LANES = list(Lane)
VOCAB = 40
# Key heads, value heads, key size, value size, taps: whole panels, narrow ones, sizes that spill over, one tap.
SHAPES = [(2, 2, 128, 128, 4), (1, 3, 24, 40, 4), (3, 3, 80, 100, 2), (2, 4, 6, 6, 1), (1, 1, 200, 64, 7)]
LENGTHS = [1, 2, 3, 63, 64, 65, 127, 128, 129, 200]
levels = pytest.mark.parametrize("level", LEVELS, ids=str)


EPS = 1e-2
"""Of the heads' norm, so large that it does not blow up what is left of outputs that cancel: a bound on errors would
depend on the draw. The models' own 1e-6 is tested with whole models."""


def make_weights(shape, hidden=56, with_norm=True):
    K, H, E, V, taps = shape
    C = 2 * K * E + H * V
    return DeltaRuleWeights(
        norm=Norm(torch.rand(hidden) - 0.5, 1e-6, unit_offset=True) if with_norm else None,
        qkv_proj=torch.randn(C, hidden) / hidden**0.5,
        decay_write_proj=torch.randn(2 * H, hidden) / hidden**0.5,
        conv_CW=torch.randn(C, taps) / taps**0.5,
        log_rate_H=torch.empty(H).uniform_(0.01, 16).log(),
        time_bias_H=torch.randn(H) - 2,
        head_norm=Norm(torch.rand(V) + 0.5, EPS),
        num_key_heads=K,
        num_value_heads=H,
        key_dim=E,
        value_dim=V,
    )


def forest(rng):
    """Trunks that share prefixes; branches before, at and behind borders, of branches too; one that goes on over borders."""
    stem = rng.integers(0, 9, 300)
    places = ((1, 3), (63, 2), (64, 5), (65, 2), (66, 140), (127, 2), (128, 2), (200, 2), (200, 70), (299, 2))
    branches = tuple(Branch(start, rng.integers(10, 30, size), start, start + size) for start, size in places)
    twig = np.concatenate([stem[:130], rng.integers(10, 19, 70)])
    return [
        Request(stem, np.array([299]), branches),
        Request(twig, np.array([199])),
        Request(np.concatenate([twig[:150], rng.integers(20, 29, 60)]), np.array([209])),
        Request(np.concatenate([twig[:192], rng.integers(20, 29, 3)]), np.array([194])),
        Request(np.concatenate([stem[:64], [9, 1, 2]]), np.array([66])),
        Request(np.array([31, 3]), np.array([1])),
    ]


def lone(length, rng):
    return [Request(rng.integers(0, VOCAB, length + 1), np.array([length]))]


class Case:
    """A forest whose rows hold what their token says, as every backend takes it."""

    def __init__(self, requests, weights, *, share=True):
        self.weights, hidden = weights, weights.qkv_proj.shape[1]
        self.batch = plan_batch(requests, share=share).batch
        self.table = torch.randn(VOCAB, hidden, generator=torch.Generator().manual_seed(5))
        self.x = self.table[torch.from_numpy(self.batch.token_ids_T)]
        traits = Traits("test", 1, hidden, 8, 1, 1, 8, VOCAB, 4096, 1e-6, RopeTraits())
        self.pages = allocate_pages(self.batch.pages, self.batch.positions_T, traits, resolve("reference", "cpu"))

    def native(self, level, lane, **settings):
        packed = cpu_delta.prepare_delta_rule(self.weights, lane)
        return cpu_delta.delta_rule(self.x, self.pages, packed, lane=lane, isa=level.isa, **settings)

    def reference(self, lane, dtype=torch.float32):
        return reference_delta.delta_rule(self.x.to(dtype), self.pages, in_dtype(self.weights, dtype), lane=lane)

    def paths(self):
        """The rows of each path that no other goes on from, by the tokens along it."""
        before = rows_before(self.pages).tolist()
        found = {}
        for leaf in set(range(len(before))) - set(before):
            rows = []
            while leaf >= 0:
                rows.append(leaf)
                leaf = before[leaf]
            rows.reverse()
            found[tuple(self.batch.token_ids_T[rows].tolist())] = rows
        return found


def in_dtype(weights, dtype):
    return replace(weights, qkv_proj=weights.qkv_proj.to(dtype), decay_write_proj=weights.decay_write_proj.to(dtype))


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


def relative_error(got, truth):
    """Of the largest output, or of 1, which a few rows' outputs may all fall short of by chance."""
    return ((got.double() - truth).abs().max() / truth.abs().max().clamp(min=1)).item()


@levels
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_against_the_truth(level, lane, shape, monkeypatch):
    level.activate(monkeypatch)
    rng = np.random.default_rng()
    for with_norm, requests in ((True, forest(rng)), (False, lone(129, rng)), (True, lone(1, rng))):
        case = Case(requests, make_weights(shape, with_norm=with_norm))
        truth, plain = case.reference(lane, torch.float64), case.reference(lane)
        got = case.native(level, lane)
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
    whole, paths = together.native(level, lane, num_threads=1), together.paths()
    for threads in (2, 3, 7):
        assert torch.equal(together.native(level, lane, num_threads=threads), whole)
    for others in (requests[::-1], requests[:1], requests[1:4]):
        for share in (True, False):
            case = Case(others, weights, share=share)
            got = case.native(level, lane)
            for tokens, rows in case.paths().items():
                same = next(ours for path, ours in paths.items() if path[: len(tokens)] == tokens)[: len(tokens)]
                assert torch.equal(got[rows], whole[same])
    wanted = torch.tensor([0, 5, len(whole) - 1])
    assert torch.equal(together.native(level, lane, rows_N=wanted), whole[wanted])
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
    got, truth = case.native(level, Lane.FP32), case.reference(Lane.FP32, torch.float64)
    assert relative_error(got, truth) < 1e-5


@levels
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_token_spoils_nothing_before_it(level, lane, value, monkeypatch):
    level.activate(monkeypatch)
    case = Case(forest(np.random.default_rng(4)), make_weights(SHAPES[1]))
    clean = case.native(level, lane)
    spoilt = case.batch.token_ids_T == 30 - 1  # tokens of branches alone
    assert spoilt.any()
    case.x[torch.from_numpy(spoilt)] = value
    got, before = case.native(level, lane), rows_before(case.pages).tolist()
    bad = spoilt.tolist()
    for row, parent in enumerate(before):
        bad[row] = bad[row] or (parent >= 0 and bad[parent])
    bad = torch.tensor(bad)
    assert torch.equal(got[~bad], clean[~bad])
    assert got[bad].isnan().any(1).all()


def test_fast_decay_keeps_its_neighbours():
    """After tokens that erase everything, sums of log decay are thousands: what follows them must not notice."""
    level = LEVELS[0]
    weights = make_weights((1, 1, 64, 64, 4))
    weights = replace(weights, log_rate_H=torch.tensor([5.0]), decay_write_proj=weights.decay_write_proj * 4)
    case = Case(lone(64, np.random.default_rng(0)), weights)
    truth = case.reference(Lane.FP32, torch.float64)
    assert relative_error(case.native(level, Lane.FP32), truth) < 3e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_value_heads": 3}, "3 value heads do not share 2 key heads evenly"),
        ({"qkv_proj": torch.zeros(5, 56)}, "qkv_proj has shape"),
        ({"decay_write_proj": torch.zeros(5, 56)}, "decay_write_proj has shape"),
        ({"log_rate_H": torch.zeros(3)}, "log_rate has shape"),
        ({"conv_CW": torch.zeros(3, 4)}, "the filter has shape"),
        ({"conv_CW": torch.zeros(48, 65)}, "the filter has 65 taps, expected 1 to 64; use --backend reference"),
        ({"head_norm": Norm(torch.ones(3), 1e-6)}, "heads' norm weight has shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit_are_refused(changes, message):
    weights = replace(make_weights((2, 4, 6, 6, 4)), **changes)
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
