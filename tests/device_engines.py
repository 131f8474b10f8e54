"""Whole engines over device kernels, and what their scores are held to: the reference in fp32, and its own bf16 error."""

import numpy as np
import torch

from psyfast.engine import Engine
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model
from psyfast.ops.gpu.operators import operators_over
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from tests.test_bits import scores_of

CPU = torch.device("cpu")
CASES = ("gemma2, soft caps, heads of 80", "qwen3, biases, windows, yarn")
"""Of tests.family_cases: windows, both soft caps, norms around, unit offsets; norms of q and k, biases, yarn."""
HEADS = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
"""Of a tiny Llama whose head size the kernels have."""


def engine_over(folder, kernels, lane, *, sparse=True):
    """An engine whose operators run on these kernels, on the CPU."""
    return engine_of(folder, operators_over(kernels, lane, CPU), sparse=sparse)


def engine_of(folder, operators, *, sparse=True):
    model = load_model(locate(str(folder)), operators)
    return Engine(model.traits, model.weights, operators, sparse=sparse)


def reference_scores(folder, requests, lane=Lane.FP32):
    return np.concatenate(scores_of(engine_of(folder, resolve("reference", "cpu", lane)), requests))


def assert_as_reference(got, folder, requests, lane):
    """Within 1e-4 nats in fp32; in bf16 not further from fp32 than twice the reference's own bf16 lane."""
    got, truth = np.concatenate(got), reference_scores(folder, requests)
    error = np.abs(got - truth)
    if lane is Lane.FP32:
        assert error.max() < 1e-4
        return
    allowed = np.abs(reference_scores(folder, requests, Lane.BF16) - truth)
    assert 0 < error.mean() <= 2 * allowed.mean()
    assert error.max() <= 2 * allowed.max()
