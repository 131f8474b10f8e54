"""Forests and weights for the gated delta rule's tests, of every backend."""

from dataclasses import replace

import numpy as np
import torch

from psyfast.engine import allocate_pages
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops import reference_delta
from psyfast.ops.paths import rows_before
from psyfast.ops.records import DeltaRuleWeights, Norm
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch

VOCAB = 40
# Key heads, value heads, key size, value size, taps: whole panels, narrow ones, sizes that spill over, one tap.
SHAPES = [(2, 2, 128, 128, 4), (1, 3, 24, 40, 4), (3, 3, 80, 100, 2), (2, 4, 6, 6, 1), (1, 1, 200, 64, 7)]
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


MISFITS = {
    "3 value heads do not share 2 key heads evenly": {"num_value_heads": 3},
    "4 value heads do not share 0 key heads evenly": {"num_key_heads": 0},
    "qkv_proj has shape": {"qkv_proj": torch.zeros(5, 56)},
    "decay_write_proj has shape": {"decay_write_proj": torch.zeros(5, 56)},
    "log_rate has shape": {"log_rate_H": torch.zeros(3)},
    "time_bias has shape": {"time_bias_H": torch.zeros(5)},
    "the filter has shape": {"conv_CW": torch.zeros(3, 4)},
    "the filter has 65 taps, expected 1 to 64; use --backend reference": {"conv_CW": torch.zeros(48, 65)},
    "norm": {"norm": Norm(torch.ones(3), 1e-6)},
    "heads' norm": {"head_norm": Norm(torch.ones(3), 1e-6)},
}
"""What no backend may prepare, as changes of make_weights((2, 4, 6, 6, 4)), by what it must say."""


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

    def reference(self, lane, dtype=torch.float32):
        """In fp64 the truth of the fp32 lane. In the bf16 lane products are summed in fp32, and so is what follows."""
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


def spoilt_rows(case, value):
    """Gives one token, which branches alone have, a bad input; bool_T of the rows that have it on their path."""
    spoilt = case.batch.token_ids_T == 29
    assert spoilt.any() and not spoilt.all()
    case.x[torch.from_numpy(spoilt)] = value
    bad = spoilt.tolist()
    for row, parent in enumerate(rows_before(case.pages).tolist()):
        bad[row] = bad[row] or (parent >= 0 and bad[parent])
    return torch.tensor(bad)


def in_dtype(weights, dtype):
    return replace(weights, qkv_proj=weights.qkv_proj.to(dtype), decay_write_proj=weights.decay_write_proj.to(dtype))


def relative_error(got, truth):
    """Of the largest output, or of 1, which a few rows' outputs may all fall short of by chance."""
    return ((got.double() - truth).abs().max() / truth.abs().max().clamp(min=1)).item()
