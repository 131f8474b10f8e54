"""gpu-check's tasks, report and command: what dies is written down, what has no time is said, and without a GPU it says so."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

from bench.gpu_check import __main__ as command
from bench.gpu_check import building, check, machine, report, sanitizer, tasks, worker
from bench.gpu_check.cases import GROUPS, OPERATORS, all_cases
from bench.gpu_check.tasks import Outcome, Runner, Task, run_task

ROOT = Path(__file__).resolve().parents[2]
FOUND = {
    "device": "NVIDIA H100 80GB HBM3",
    "capability": [9, 0],
    "multiprocessors": 132,
    "memory_bytes": 80 * 10**9,
    "free_memory_bytes": 79 * 10**9,
    "l2_bytes": 50 * 2**20,
    "driver": "580.1",
    "power_limit": "700 W",
    "cuda": "13.0",
    "nvcc": None,
    "python": "3.12.1",
    "host": "16 cores, x86_64",
    "versions": {"torch": "2.11.0", "triton": "3.5.1"},
}


def fake_worker(tmp_path, body):
    """A program that stands before the worker, as a sanitizer does: it gets the worker's command and does something else."""
    path = tmp_path / "instead.py"
    path.write_text(
        f"import json, os, sys, time\njob = json.load(open(sys.argv[-1]))\nout = open(job['rows'], 'w')\n{body}"
    )
    return (sys.executable, str(path))


def test_rows_of_a_task_that_dies_count(tmp_path):
    body = """
out.write('{"case": "a", "passed": true}\\n{"case": "b", "passed": fal')
out.flush()
print("CUDA error: an illegal memory access was encountered", flush=True)
os.abort()
"""
    outcome = run_task(Task("numerics", "x y", 20.0, {}, fake_worker(tmp_path, body)), tmp_path, 20.0)
    assert [row["case"] for row in outcome.rows] == ["a"]
    assert outcome.failed
    assert "exit code -6" in outcome.error
    assert "illegal memory access" in outcome.error
    assert "FAILED" in outcome.line()


def test_a_task_that_never_ends_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "GRACE_S", 0.2)
    body = """
import subprocess
child = subprocess.Popen(["sleep", "60"])
out.write(json.dumps({"case": "a", "passed": True, "child": child.pid}) + "\\n")
out.flush()
time.sleep(60)
"""
    started = time.monotonic()
    outcome = run_task(Task("engine", "x", 1.0, {}, fake_worker(tmp_path, body)), tmp_path, 1.0)
    assert time.monotonic() - started < 20
    assert outcome.error == "killed after 1 s"
    child = outcome.rows[0]["child"]
    for _ in range(50):  # the init process may take a moment to take it down
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child lives")


def test_what_there_is_no_time_for_is_not_run_and_said(tmp_path):
    lines = []
    outcome = Runner(tmp_path, time.monotonic() + 3, lines.append).run(Task("engine", "x", 60.0, {}))
    assert outcome.skipped
    assert not outcome.failed
    assert "no time was left" in lines[0]


def test_a_sanitizers_finding_is_quoted(tmp_path):
    body = """
out.write('{"case": "a", "passed": true}\\n'); out.close()
print("========= Invalid __global__ read of size 4 bytes")
print("========= ERROR SUMMARY: 3 errors")
sys.exit(86)
"""
    task = sanitizer.task("/bin/compute-sanitizer", "memcheck", "cuda", {}, 20.0)
    assert task.prefix[:3] == ("/bin/compute-sanitizer", "--tool", "memcheck")
    changed = Task(task.part, task.name, 20.0, task.job, fake_worker(tmp_path, body), explain=task.explain)
    outcome = run_task(changed, tmp_path, 20.0)
    assert outcome.failed
    assert outcome.error.startswith("ERROR SUMMARY: 3 errors; first: Invalid __global__ read of size 4 bytes")
    quiet = body.replace("sys.exit(86)", "").replace("3 errors", "0 errors")
    outcome = run_task(Task("s", "t", 20.0, {}, fake_worker(tmp_path, quiet), explain=task.explain), tmp_path, 20.0)
    assert not outcome.failed
    assert outcome.note == "ERROR SUMMARY: 0 errors"


def rows_of_worker(tmp_path, **job):
    path = tmp_path / "job.json"
    base = {"torch_device": "cpu", "native": str(tmp_path), "seed": 3, "budget_s": 60.0, "rows": str(tmp_path / "rows")}
    path.write_text(json.dumps({**base, **job}))
    worker.main(str(path))
    return tasks.read_rows(tmp_path / "rows")


def test_the_worker_writes_a_row_a_case(tmp_path, monkeypatch):
    from tests.ops.plain_kernels import PlainKernels

    monkeypatch.setattr(worker, "kernels_of", lambda backend: PlainKernels())
    monkeypatch.setattr(worker.psyfast, "__path__", [*worker.psyfast.__path__])
    rows = rows_of_worker(tmp_path, part="numerics", backend="plain", group="heads")
    assert {row["operator"] for row in rows} == {"heads", "copy_slots"}
    assert all(row["passed"] for row in rows)
    rows = rows_of_worker(tmp_path, part="numerics", backend="plain", group="rows", budget_s=0.0)
    assert all(row["left_out"] for row in rows)


def test_json_has_neither_nan_nor_infinities():
    assert worker.plain({"a": [float("inf"), 1.0], "b": (float("nan"),)}) == {"a": ["inf", 1.0], "b": ["nan"]}


def finished(tmp_path):
    runner = Runner(tmp_path, time.monotonic() + 60, lambda line: None)
    checked = check.Check(runner, FOUND, seed=5)
    checked.ceilings = {"bytes_per_s": 3e12, "flop_per_s": 7e14, "link_bytes_per_s": 5.5e10}
    timing = {"median_s": 1e-3, "spread": 0.1, "flop": 7e11, "flop_per_s": 7e14, "bytes_per_s": 1e12, "seed": 5}
    timing |= {"bound_by": "matrix", "share_of_roofline": 0.875, "errors": {"nll": 1e-6}, "passed": True}
    engine = {
        "num_tokens": 24000,
        "num_scored_rows": 900,
        "tok_per_s": 1e5,
        "spread": 0.1,
        "share_of_matrix_rate": 0.61,
    }
    engine |= {f"{of}_error_{kind}": 0.01 for of in ("nll", "reference_bf16") for kind in ("mean", "max")}
    case = {"operator": "linear_nll", "case": "bf16 ties", "seed": 9}
    wrong = {"output": "rank", "passed": False, "error": 3.0, "torch_error": 0.0, "bound": 0.0}
    runner.add(Outcome("numerics", "triton linear_nll", 1.0, [
        {**case, "passed": True, "share_of_bound": 0.4}, {**case, "passed": False, "share_of_bound": "inf", "outputs": [wrong]},
        {**case, "left_out": True},
    ]))  # fmt: skip
    runner.add(Outcome("determinism", "triton linear_nll", 1.0, [{**case, "passed": True}]))
    runner.add(Outcome("throughput", "linear_nll", 1.0, [
        {"operator": "linear_nll", "case": "Qwen3-8B, 256 rows", "contender": "triton", "ours": True, **timing},
        {"operator": "linear_nll", "case": "Qwen3-8B, 256 rows", "contender": "torch", "ours": False, **timing, "median_s": 2e-3},
    ]))  # fmt: skip
    runner.add(Outcome("engine", "Qwen3-8B", 1.0, [
        {"case": "Qwen3-8B", "contender": "triton", "weights": "resident", "passed": True, **engine}
    ]))  # fmt: skip
    runner.add(Outcome("build", "cuda", 0.0, note="only Triton is checked: no nvcc | at all", skipped=True))
    return {
        "command": "python3 -m bench.gpu_check", "commit": "abc", "started": "now", "seconds": 99.0, "seed": 5,
        "machine": checked.machine, "ceilings": checked.ceilings, "notes": checked.notes,
        "outcomes": [outcome.to_dict() for outcome in runner.outcomes],
    }  # fmt: skip


def test_the_report_says_what_failed_what_was_left_out_and_how_fast_it_was(tmp_path):
    document = finished(tmp_path)
    as_text, as_json = report.write(document, tmp_path / "out")
    text = as_text.read_text()
    assert json.loads(as_json.read_text()) == document
    assert "**1 of 5 tasks failed; 1 not run**" in text
    assert "copy 3,000 GB/s (read + write), bf16 matrix product 700 TFLOP/s, from pinned memory 55.0 GB/s" in text
    assert "triton 3.5.1 is older than 3.6" in text
    assert "seed 9: rank is off by 3.0 (bound 0.0, torch 0.0)" in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["numerics", "triton linear_nll", "FAILED", "2", "1", "1", "1.0", ""] in cells
    assert ["build", "cuda", "not run", "0", "0", "0", "0.0", "only Triton is checked: no nvcc / at all"] in cells
    assert ["triton", "linear_nll", "2", "1", "inf", "bf16 ties", "1 of 1"] in cells
    timing = next(row for row in cells if row[0] == "linear_nll" and row[2] == "triton")
    assert timing[3:] == ["1.000", "0.10", "700.0", "1,000", "matrix", "88%", "nll 1.0e-06", "2.00"]
    assert any(row[:6] == ["Qwen3-8B", "triton", "resident", "24,000", "900", "100,000"] for row in cells)
    assert report.last_tables(document).endswith("1 of 5 tasks failed; 1 not run")


def test_sizes_shrink_on_a_small_gpu(tmp_path):
    runner = Runner(tmp_path, time.monotonic() + 60, lambda line: None)
    checked = check.Check(runner, {**FOUND, "free_memory_bytes": 15 * 10**9}, seed=1)
    assert checked.num_tokens == 8192
    assert "15 GB are free: sizes were shrunk, to 8,192 tokens" in checked.notes
    assert check.Check(runner, FOUND, seed=1).num_tokens == 16_384


def test_every_case_is_in_a_group():
    assert {case.group for case in all_cases()} == set(GROUPS)


def test_the_page_has_the_number_of_cases_and_the_time():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert f"| `numerics` | {len(list(all_cases()))} cases" in page
    assert f"--minutes {command.parse([]).minutes}" in page
    assert set(report.PARTS) == set(re.findall(r"^\| `(\w+)` \|", page.partition("## make gpu-check")[2], re.MULTILINE))


def test_somebody_elses_crash_is_no_failure(tmp_path):
    runner = Runner(tmp_path, time.monotonic() + 60, lambda line: None)
    body = """out.write('{"case": "torch"}\\n'); out.flush(); os.abort()"""
    outcome = runner.run(Task("others", "x", 20.0, {}, fake_worker(tmp_path, body), ours=False))
    assert not outcome.failed
    assert outcome.note.startswith("left out: exit code -6")
    assert outcome.rows == [{"case": "torch"}]


class Recorder(Runner):
    """Runs nothing, and says that everything passed."""

    def __init__(self, folder, ceilings_fail=False):
        super().__init__(folder, time.monotonic() + 60, lambda line: None)
        self.tasks, self.ceilings_fail = [], ceilings_fail

    def run(self, task):
        self.tasks.append(task)
        error = "exit code 1: out of memory" if self.ceilings_fail and task.part == "ceilings" else None
        rows = [{"case": "c", "passed": True, "flop_per_s": 1.0}]
        return self.add(Outcome(task.part, task.name, 0.1, [] if error else rows, error))


@pytest.fixture
def without_tools(monkeypatch):
    monkeypatch.setattr(machine, "why_no_cuda_build", lambda: "no nvcc")
    monkeypatch.setattr(machine, "why_no_triton", lambda: None)
    monkeypatch.setattr(machine, "tool", lambda name: None)


ALL = set(report.PARTS[2:])


def test_without_nvcc_triton_alone_is_checked(tmp_path, without_tools):
    runner = Recorder(tmp_path)
    check.Check(runner, FOUND, seed=1).run(ALL)
    assert {task.job.get("backend", "triton") for task in runner.tasks} == {"triton"}
    assert runner.tasks[0].part == "ceilings"
    assert {task.part for task in runner.tasks} == {
        "ceilings",
        "others",
        "numerics",
        "determinism",
        "throughput",
        "engine",
    }
    notes = [outcome.note for outcome in runner.outcomes if outcome.skipped]
    assert notes == ["only Triton is checked: no nvcc", "no compute-sanitizer in the CUDA toolkit here"]
    assert {task.job["group"] for task in runner.tasks if task.part == "numerics"} == set(GROUPS)
    operators = [name for task in runner.tasks if task.part == "throughput" for name in task.job["operators"]]
    assert sorted(operators) == sorted(OPERATORS)
    assert all(task.job["others"] == ["c"] for task in runner.tasks if task.part == "throughput")


def test_everything_is_planned_where_everything_is_there_and_fits_into_eight_minutes(
    tmp_path, without_tools, monkeypatch
):
    monkeypatch.setattr(machine, "why_no_cuda_build", lambda: None)
    monkeypatch.setattr(building, "build", lambda *arguments: None)
    monkeypatch.setattr(machine, "tool", lambda name: f"/cuda/{name}")
    runner = Recorder(tmp_path)
    check.Check(runner, FOUND, seed=1).run(ALL)
    assert sum(task.part == "sanitizer" for task in runner.tasks) == 8
    assert {task.job["backend"] for task in runner.tasks if task.part == "numerics"} == {"triton", "cuda"}
    assert all(task.job["backends"] == ["triton", "cuda"] for task in runner.tasks if task.part == "engine")
    assert command.parse([]).minutes * 60 + tasks.GRACE_S < 8 * 60


def test_with_neither_backend_the_check_fails(tmp_path, without_tools, monkeypatch):
    monkeypatch.setattr(machine, "why_no_triton", lambda: "Triton is not installed")
    runner = Recorder(tmp_path)
    check.Check(runner, FOUND, seed=1).run(ALL)
    assert [outcome.error for outcome in runner.outcomes if outcome.failed] == [
        "neither Triton nor psyfast._cuda is there: nothing to check"
    ]


def test_a_failed_build_fails_and_triton_goes_on(tmp_path, without_tools, monkeypatch):
    monkeypatch.setattr(machine, "why_no_cuda_build", lambda: None)
    monkeypatch.setattr(building, "build", lambda *arguments: "building psyfast._cuda failed: no such option")
    runner = Recorder(tmp_path)
    check.Check(runner, FOUND, seed=1).run(ALL)
    assert [(o.part, o.name) for o in runner.outcomes if o.failed] == [("build", "cuda")]
    assert {task.part for task in runner.tasks} >= {"numerics", "engine"}


def test_without_ceilings_nothing_is_timed(tmp_path, without_tools):
    runner = Recorder(tmp_path, ceilings_fail=True)
    check.Check(runner, FOUND, seed=1).run(ALL)
    assert {task.part for task in runner.tasks} == {"ceilings", "others", "numerics", "determinism"}


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "80"), ((8, 9), "89"), ((9, 0), "90a"), ((10, 0), "100a")])
def test_the_build_is_for_the_gpu_that_is_here(capability, name, tmp_path):
    assert building.architecture(capability) == name
    configure, build = building.commands(capability, tmp_path, 4)
    assert f"-DCMAKE_CUDA_ARCHITECTURES={name}" in configure
    assert f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tmp_path / 'native'}" in configure
    assert build[-4:] == ["--target", "_cuda", "-j", "4"]


def test_a_build_that_fails_says_what_the_compiler_said(tmp_path, monkeypatch):
    failing = [sys.executable, "-c", "print('error: no operator matches'); raise SystemExit(2)"]
    monkeypatch.setattr(building, "commands", lambda *arguments: [failing])
    said = building.build((9, 0), tmp_path, 20.0)
    assert "error: no operator matches" in said
    assert "build.log" in said
