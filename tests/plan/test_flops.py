"""Required floating-point operations: by hand for small batches, and against a count of everything one by one."""

from dataclasses import replace

import numpy as np
import pytest

from psyfast.plan.batch import Branch, Request, plan_batch
from psyfast.plan.flops import NO_FLOP, DeltaShape, ExpertShape, ModelShape, RequiredFlop, causal_pairs, required_flop
from tests.plan.random_requests import random_requests

# q and o: 4·2·6 = 48 weights; k and v: 4·2·2 = 16; gate, up, down: 3·4·5 = 60.
SHAPE = ModelShape(4, 5, 3, 1, 2, vocab_size=10, windows=(None, None))


def test_weights_of_a_layer() -> None:
    assert (SHAPE.layer_params, SHAPE.kv_params) == (124, 16)


def test_smollm2_takes_what_is_known_of_it() -> None:
    """212 MFLOP a token in its layers, 57 for a scored row."""
    shape = ModelShape(576, 1536, 9, 3, 64, 49_152, (None,) * 30)
    batch = plan_batch([Request(np.arange(11), np.array([10]))]).batch
    found = required_flop(batch, shape)
    assert found.linear == 10 * 212_336_640
    assert found.attention == 4 * 64 * 9 * 30 * 55
    assert found.head == 56_623_104


def test_one_sequence_by_hand() -> None:
    """Five tokens, of which the rows of positions 1 and 3 predict; the token at 4 is never an input."""
    found = required_flop(plan_batch([Request(np.arange(5), np.array([2, 4]))]).batch, SHAPE)
    pairs = 1 + 2 + 3 + 4
    assert found.linear == 2 * 124 * 2 * 4
    assert found.attention == 4 * 2 * 3 * 2 * pairs
    assert found.head == 2 * 4 * 10 * 2
    unscored_pairs = 1 + 3  # of positions 0 and 2
    assert found.spared == 2 * (124 - 16) * 2 + 4 * 2 * 3 * unscored_pairs
    assert found.total == found.linear + found.attention + found.head


def test_options_of_one_token_and_shared_prefixes_cost_nothing() -> None:
    ids = np.arange(5)
    plain = Request(ids, np.array([2, 4]))
    options = tuple(Branch(4, np.array([token]), 4, 5) for token in range(100, 300))
    once = required_flop(plan_batch([plain]).batch, SHAPE)
    assert required_flop(plan_batch([Request(ids, plain.scored_positions, options), plain, plain]).batch, SHAPE) == once


def test_windows_hide_keys_layer_by_layer() -> None:
    batch = plan_batch([Request(np.arange(7), np.array([6]))]).batch
    windowed = ModelShape(4, 5, 3, 1, 2, 10, windows=(None, 2, 100))
    everything, two = 1 + 2 + 3 + 4 + 5 + 6, 1 + 2 + 2 + 2 + 2 + 2
    assert required_flop(batch, windowed).attention == 4 * 2 * 3 * (2 * everything + two)
    last_hidden = ModelShape(4, 5, 3, 1, 2, 10, windows=(None, 2))
    assert required_flop(batch, last_hidden).spared == 2 * 108 * 5 + 4 * 2 * 3 * (two - 2)


def test_nothing_to_score_takes_nothing() -> None:
    empty = np.zeros(0, np.int64)
    assert required_flop(plan_batch([Request(np.arange(3), empty)]).batch, SHAPE) == NO_FLOP
    assert causal_pairs(empty) == causal_pairs(empty, 3) == 0


def test_sums() -> None:
    assert RequiredFlop(1, 2, 3, 1) + RequiredFlop(10, 20, 30, 10) == RequiredFlop(11, 22, 33, 11)
    assert (NO_FLOP + RequiredFlop(1, 2, 3, 1)).total == 6
    assert RequiredFlop(1, 2, 3, 1, 5) + RequiredFlop(0, 0, 0, 0, 2) == RequiredFlop(1, 2, 3, 1, 7)


@pytest.mark.parametrize("is_last", [True, False])
def test_a_hybrid_counts_both_kinds_of_layer(is_last):
    delta = DeltaShape(3, is_last, num_channels=22, num_value_heads=2, key_dim=4, value_dim=3)
    hybrid = replace(SHAPE, gated=True, delta=delta)
    batch = plan_batch([Request(np.arange(10), np.array([5, 9]))]).batch  # 9 tokens, 2 of them scored rows
    found, plain = required_flop(batch, hybrid), required_flop(batch, SHAPE)
    gate, mixer = 4 * 3 * 2, 4 * (22 + 2 * 2 + 2 * 2 * 3)
    assert found.linear == plain.linear + 2 * 9 * (2 * gate + 3 * (mixer + 3 * 4 * 5))
    assert found.delta_rule == 3 * 9 * 6 * 4 * 3 * 2
    assert (found.attention, found.head) == (plain.attention, plain.head)
    if is_last:
        assert found.spared == 2 * 7 * 4 * (2 * 2 * 3 + 3 * 5)
    else:
        assert found.spared == plain.spared + 2 * 7 * gate


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("is_last", [True, False])
def test_of_experts_the_router_and_those_that_a_token_uses_count(num_layers, is_last):
    """Two layers of attention, one or both with 7 experts of width 6, of which a token uses 2."""
    experts = ExpertShape(num_layers, is_last, num_experts=7, num_used=2, intermediate_size=6)
    batch = plan_batch([Request(np.arange(10), np.array([5, 9]))]).batch  # 9 tokens, 2 of them scored rows
    found, plain = required_flop(batch, replace(SHAPE, experts=experts)), required_flop(batch, SHAPE)
    q_and_o, kv, mlp, of_experts = 48, 16, 60, 4 * 7 + 2 * (3 * 4 * 6)
    layers = [q_and_o + kv + mlp] * (2 - num_layers) + [q_and_o + kv + of_experts] * num_layers
    assert found.linear == 2 * 9 * sum(layers)
    assert found.spared - plain.spared == (2 * 7 * (of_experts - mlp) if is_last else 0)
    assert (found.attention, found.head, found.delta_rule) == (plain.attention, plain.head, 0)


@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("seed", range(20))
def test_against_a_count_of_every_token_once(seed: int, window: int | None) -> None:
    """A token is a distinct past of its own; it sees as many positions as its past is long, or the window."""
    rng = np.random.default_rng(seed)
    requests = random_requests(rng, num=8, vocab=3, longest=120)
    computed: set[bytes] = set()
    scored: set[bytes] = set()

    def past(ids: np.ndarray, length: int) -> bytes:
        return np.asarray(ids[:length], np.int64).tobytes()

    for request in requests:
        computed |= {past(request.ids, length) for length in range(1, request.num_inputs + 1)}
        scored |= {past(request.ids, position) for position in request.scored_positions.tolist()}
        for branch in request.branches:
            ids = np.concatenate([request.ids[: branch.start], branch.ids])
            computed |= {past(ids, length) for length in range(1, branch.start + branch.num_own_tokens + 1)}
            scored |= {past(ids, position) for position in range(branch.score_start, branch.score_stop)}
    assert scored <= computed

    def seen(pasts: set[bytes]) -> int:
        lengths = [len(one) // 8 for one in pasts]
        return sum(lengths if window is None else [min(length, window) for length in lengths])

    shape = ModelShape(4, 5, 3, 1, 2, 10, windows=(window,) * 3)
    assert required_flop(plan_batch(requests).batch, shape) == RequiredFlop(
        linear=3 * 2 * 124 * len(computed),
        attention=3 * 4 * 2 * 3 * seen(computed),
        head=2 * 4 * 10 * len(scored),
        spared=2 * 108 * len(computed - scored) + 4 * 2 * 3 * seen(computed - scored),
    )
