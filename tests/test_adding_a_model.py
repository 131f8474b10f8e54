"""docs/adding-a-model.md: its diff, applied to a copy, is all that its family needs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

HELD_AGAINST_TRANSFORMERS = """
import sys
from pathlib import Path
import numpy as np
from psyfast.engine import Engine
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from psyfast.rows import EntryScores
from tests.family_cases import CASES
from tests.family_models import make_case, transformers_nlls

ids = np.random.default_rng(0).integers(2, 400, 200)
for number, case in enumerate(name for name, (architecture, _) in CASES.items() if architecture == sys.argv[1]):
    folder = make_case(Path(f"model-{number}"), case)
    model = load_model(locate(str(folder)), operators := resolve("reference", "cpu", Lane.FP32))
    plan = plan_batch([Request(ids, np.arange(1, len(ids)))])
    scores = Engine(model.traits, model.weights, operators).run(plan.batch)
    got = EntryScores.of(scores, plan.batch.target_N).token_nlls(plan.requests[0])
    print(case, np.abs(got - transformers_nlls(folder, sys.argv[1], ids.tolist()).numpy()).max(), sep="|")
"""


def the_diff():
    """The page's diff: (file, text before, text after) of each hunk."""
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/adding-a-model.md").read_text(encoding="utf-8"), re.DOTALL)
    hunks = re.findall(r"--- a/(\S+)\n\+\+\+ b/\S+\n@@\n((?:[ +-].*\n)+?)(?=---|\Z)", diff)
    for file, lines in hunks:
        body = lines.splitlines(keepends=True)
        yield file, *("".join(line[1:] for line in body if line[0] in kept) for kept in (" -", " +"))


def test_the_diff_is_short():
    added = sum(after.count("\n") - before.count("\n") for _, before, after in the_diff())
    assert 0 < added < 30


@pytest.mark.parametrize("architecture", ["Olmo2ForCausalLM"])
def test_the_page_adds_its_family(tmp_path, architecture):
    from psyfast.model.families import FAMILIES

    assert architecture not in {family.architecture for family in FAMILIES}
    shutil.copytree(ROOT / "psyfast", tmp_path / "psyfast", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for name in ("expert_cases.py", "family_cases.py", "family_models.py", "rope_cases.py", "tiny.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    files = set()
    for file, before, after in the_diff():
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"the page's lines are not in {file}"
        (tmp_path / file).write_text(text.replace(before, after), encoding="utf-8")
        files.add(file)
    assert files == {"psyfast/model/families.py", "tests/family_cases.py"}
    command = [sys.executable, "-c", HELD_AGAINST_TRANSFORMERS, architecture]
    there = {"cwd": tmp_path, "env": {"PYTHONPATH": str(tmp_path)}}
    done = subprocess.run(command, check=False, capture_output=True, text=True, **there)
    assert done.returncode == 0, done.stderr
    differences = [float(line.split("|")[1]) for line in done.stdout.splitlines()]
    assert len(differences) == 2 and max(differences) < 1e-4
