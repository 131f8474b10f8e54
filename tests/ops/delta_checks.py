"""What the gated delta rule of a GPU backend must do, whatever its kernels are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psyfast.errors import BackendError
from psyfast.ops.gpu.delta_plan import delta_plan_of
from psyfast.ops.gpu.kernel_set import DeltaSizes
from psyfast.ops.gpu.operators import operators_over
from psyfast.ops.paths import tap_rows
from psyfast.ops.records import AttnOutWeights, Lane, LayerWeights, MlpWeights
from psyfast.plan.batch import Branch, Request
from tests.ops.delta_cases import VOCAB, Case, lone, make_weights, relative_error, spoilt_rows

CPU = torch.device("cpu")


def small_forest(rng):
    """A trunk of three chunks; branches before, at and behind borders; a fork of the trunk that goes on over a border."""
    stem = rng.integers(0, 9, 140)
    places = ((1, 3), (63, 2), (64, 2), (66, 70), (128, 2), (139, 2))
    branches = tuple(Branch(start, rng.integers(10, 30, size), start, start + size) for start, size in places)
    twig = np.concatenate([stem[:100], rng.integers(10, 19, 40)])
    return [
        Request(stem, np.array([139]), branches),
        Request(twig, np.array([139])),
        Request(stem[[5, 3]], np.array([1])),
    ]


def prepared(weights, operators):
    D, width = weights.qkv_proj.shape[1], weights.num_value_heads * weights.value_dim
    rest = AttnOutWeights(torch.zeros(D, width)), MlpWeights(None, torch.zeros(4, D), torch.zeros(D, 2))
    return operators.prepare_layer(LayerWeights(None, None, *rest, delta_rule=weights)).delta_rule


def run(kernels, case, lane, **settings):
    operators = operators_over(kernels, lane, CPU)
    return operators.delta_rule(case.x, case.pages, prepared(case.weights, operators), lane=lane, **settings)


def check_against_the_truth(kernels, shape, lane):
    rng = np.random.default_rng()
    for with_norm, requests in ((True, small_forest(rng)), (False, lone(1, rng))):
        case = Case(requests, make_weights(shape, with_norm=with_norm))
        truth, plain = case.reference(lane, torch.float64), case.reference(lane)
        got = run(kernels, case, lane)
        assert got.dtype == {Lane.FP32: torch.float32, Lane.BF16: torch.bfloat16}[lane]
        # A bf16 output is rounded once; operands on a tie may round otherwise after another order of the norm's sum.
        floor = {Lane.FP32: 2e-6, Lane.BF16: 8e-3}[lane]
        assert relative_error(got, truth) <= 2 * relative_error(plain, truth) + floor


def kernels_alone(kernels, case, max_chunks=400):
    """Without the projections, which are torch's: their results are what each row's token says."""
    weights = case.weights
    sizes = DeltaSizes(weights.num_key_heads, weights.num_value_heads, weights.key_dim, weights.value_dim)
    draw, C = torch.Generator().manual_seed(6), len(weights.conv_CW)
    qkv, log_decay, write = (torch.randn(VOCAB, size, generator=draw) for size in (C, *(2 * [sizes.num_value_heads])))
    ids, taps = torch.from_numpy(case.batch.token_ids_T), weights.conv_CW.T.contiguous()
    convolved = kernels.short_convolution(qkv[ids], tap_rows(case.pages, len(taps)), taps, sizes)
    plan = delta_plan_of(case.pages, max_chunks)
    return kernels.delta_rule(convolved, -log_decay.exp()[ids], write.sigmoid()[ids], plan, sizes).flatten(1)


def check_that_bits_depend_on_the_path_alone(kernels, shape):
    requests, weights = small_forest(np.random.default_rng()), make_weights(shape)
    together = Case(requests, weights)
    whole, paths = kernels_alone(kernels, together), together.paths()
    assert torch.equal(kernels_alone(kernels, together, max_chunks=2), whole)
    for others, share in ((requests[::-1], True), (requests[:1], False)):
        case = Case(others, weights, share=share)
        got = kernels_alone(kernels, case)
        for tokens, rows in case.paths().items():
            same = next(ours for path, ours in paths.items() if path[: len(tokens)] == tokens)[: len(tokens)]
            assert torch.equal(got[rows], whole[same])


def check_wanted_rows(kernels):
    case = Case(lone(70, np.random.default_rng()), make_weights((2, 4, 6, 6, 1)))
    wanted = torch.tensor([0, 5, 69])
    assert torch.equal(run(kernels, case, Lane.FP32, rows_N=wanted), run(kernels, case, Lane.FP32)[wanted])


def check_forks_of_forks(kernels, depth):
    """Each text forks off the last token but one of the text before: a tree as deep as there are texts."""
    rng, weights = np.random.default_rng(3), make_weights((1, 1, 16, 16, 4), hidden=8)
    stem = rng.integers(0, 9, depth)
    requests = [
        Request(np.concatenate([stem[:stop], [20 + stop % 2, 30, 31]]), np.array([stop + 2]))
        for stop in range(1, depth)
    ]
    case = Case(requests, weights)
    assert relative_error(run(kernels, case, Lane.FP32), case.reference(Lane.FP32, torch.float64)) < 1e-5


def check_that_a_bad_token_spoils_nothing_before_it(kernels, shape, value):
    case = Case(small_forest(np.random.default_rng(4)), make_weights(shape))
    clean = run(kernels, case, Lane.FP32)
    bad = spoilt_rows(case, value)
    got = run(kernels, case, Lane.FP32)
    assert torch.equal(got[~bad], clean[~bad])
    assert got[bad].isnan().any(1).all()


def check_that_fast_decay_keeps_its_neighbours(kernels):
    """After tokens that erase everything, sums of log decay are thousands: what follows them must not notice."""
    weights = make_weights((1, 1, 64, 64, 4))
    weights = replace(weights, log_rate_H=torch.tensor([5.0]), decay_write_proj=weights.decay_write_proj * 4)
    case = Case(lone(64, np.random.default_rng(0)), weights)
    truth = case.reference(Lane.FP32, torch.float64)
    assert relative_error(run(kernels, case, Lane.FP32), truth) < 3e-6


def check_that_equal_keys_are_solved_as_exactly(kernels):
    """Every token writes to the same place with nearly all its strength, and little decays: powers of the system would
    be astronomical."""
    weights = make_weights((1, 1, 32, 32, 1), with_norm=False)
    D = weights.qkv_proj.shape[1]
    strong = torch.cat([-torch.ones(1, D), torch.ones(1, D)]) / D
    weights = replace(weights, decay_write_proj=strong, log_rate_H=torch.tensor([-6.0]))
    case = Case([Request(np.full(150, 7), np.array([149]))], weights)
    case.x = 4 + case.x
    truth = case.reference(Lane.FP32, torch.float64)
    assert relative_error(run(kernels, case, Lane.FP32), truth) < 1e-5


def check_that_sizes_without_a_kernel_are_refused(kernels):
    refused = {
        "delta rule takes heads of 1 to 256, got 257; use --backend reference": (1, 1, 257, 16, 4),
        "delta rule takes heads of 1 to 256, got 300": (1, 1, 16, 300, 4),
        "the filter has 65 taps, expected 1 to 64": (1, 1, 16, 16, 65),
    }
    for message, shape in refused.items():
        with pytest.raises(BackendError, match=message):
            prepared(make_weights(shape), operators_over(kernels, Lane.FP32, CPU))
