"""The core from the bare source tree, as on a GPU machine: torch, numpy and the standard library, nothing built."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ABSENT = [
    "pyarrow",
    "polars",
    "typer",
    "rich",
    "gguf",
    "safetensors",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "datasets",
    "psutil",
    "pandas",
    "altair",
]

PROGRAM = """
import sys
for name in {absent}:
    sys.modules[name] = None  # an import of it raises ImportError
sys.modules["psyfast._native"] = None

import numpy as np, torch
from psyfast.engine import Engine
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops.gpu import availability, operators, pinned, tiles
from psyfast.ops.records import *
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch
import psyfast.kernels

traits = Traits("LlamaForCausalLM", 2, 32, 48, 4, 2, 8, 50, 512, 1e-6, RopeTraits())
rope = Rope(traits.rope.inv_freq(8))
draw = torch.Generator().manual_seed(0)
matrix = lambda rows, columns: torch.randn(rows, columns, generator=draw) / columns**0.5
norm = Norm(torch.ones(32), 1e-6)

class Weights:
    def embed(self, ids): return table[ids]
    def layer(self, idx): return layers[idx]
    def head(self): return HeadWeights(norm, table)

table = matrix(50, 32)
layers = [PreparedLayer(AttnInWeights(norm, matrix(64, 32), None, 4, 2, 8, rope), AttentionParams(8**-0.5),
          AttnOutWeights(matrix(32, 32)), MlpWeights(norm, matrix(96, 32), matrix(32, 48))) for _ in range(2)]
ids = np.arange(90) % 50
plan = plan_batch([Request(ids, np.arange(1, 90), (Branch(40, np.array([3, 4]), 40, 42),))])
scores = Engine(traits, Weights(), resolve("reference", "cpu", Lane.FP32)).run(plan.batch)
assert torch.isfinite(scores.nll_N).all() and len(scores.nll_N) >= 89
loaded = [name for name in {absent} if sys.modules.get(name)]
assert not loaded, loaded
print("scored", len(scores.nll_N), "why not triton:", availability.why_not("triton") is not None)
"""


def test_an_engine_runs_with_torch_and_numpy_alone():
    program = PROGRAM.replace("{absent}", repr(ABSENT))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("scored ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make gpu-check runs")
def test_gpu_check_says_that_there_is_no_gpu():
    """Exit code 3, from the bare tree, in a sentence."""
    program = "import sys\nfor name in %r: sys.modules[name] = None\nimport runpy; runpy.run_module('bench.gpu_check', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program % (ABSENT,)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "no GPU" in done.stdout + done.stderr) == (3, True), done.stderr
