"""The operator benchmarks run, check before they time, and make a table; how fast anything is, is not tested here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def bench(*options):
    command = [sys.executable, "-m", "pytest", "bench/operators", "-q", "--benchmark-quiet", *map(str, options)]
    # Beside others' processes pytest-benchmark times nothing, and knows of them by these.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=alone)


def test_every_operator_is_checked_timed_and_put_into_the_table(tmp_path):
    path = tmp_path / "operators.json"
    few = ("--shapes", "135M", "--tokens", "20", "--isas", "portable", "--lanes", "bf16", "--num-threads", "1")
    done = bench(*few, "--benchmark-json", path)
    assert done.returncode == 0, done.stdout
    found = [benchmark["extra_info"] for benchmark in json.loads(path.read_text())["benchmarks"]]
    operators = ["attn_in", "attention", "attn_out", "mlp", "experts", "linear_nll"]
    assert [(info["operator"], info["backend"]) for info in found] == [
        (operator, backend) for operator in operators for backend in ("native", "torch", "reference")
    ]
    native = found[::3]
    assert all(info["share"] == info["gflop_per_s"] / info["peak_gflop_per_s"] > 0 for info in native)
    assert native[3]["gflop"] == pytest.approx(2e-9 * 20 * 3 * 576 * 1536)
    assert native[4]["gflop"] == pytest.approx(2e-9 * 20 * 576 * (3 * 1536 + 8))
    command = [sys.executable, "bench/operators/table.py", path]
    table = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [cells[0].removeprefix("| ") for cells in lines] == ["operator", "---", *operators]
    assert len({len(cells) for cells in lines}) == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--shapes", "7B", "--shapes: '7B' is not known here; choose from 135M, 0.6B, 1B, OLMoE"),
        ("--isas", "sse9", "--isas: 'sse9' is not known here; choose from portable"),
        ("--tokens", "0", "--tokens: '0' is not known here; choose from positive whole numbers"),
    ],
)
def test_a_slip_in_an_option_is_named(option, value, message):
    done = bench(option, value)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
