"""What gpu-check needs of a machine: why it has no GPU, and that nothing beyond torch and numpy is imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu_check import __main__ as command
from bench.gpu_check import machine

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_exits_with_3(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", "--output", tmp_path / "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("no GPU: ")
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cuda", "available", "capability", "wanted"),
    [
        (None, False, None, "no GPU: this torch"),
        ("13.0", False, None, "no GPU: torch .* sees no CUDA device"),
        ("13.0", True, (7, 5), "no GPU that fits: Old has compute capability 7.5, expected 8.0"),
        ("13.0", True, (9, 0), None),
    ],
)
def test_reasons_for_no_gpu(cuda, available, capability, wanted, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    said = machine.why_no_gpu()
    if wanted is None:
        assert said is None
    else:
        assert re.match(wanted, said)


def test_an_old_driver_is_named(monkeypatch):
    import warnings

    def available():
        warnings.warn("CUDA initialization: The NVIDIA driver on your system\n is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", available)
    assert machine.why_no_gpu().endswith("CUDA initialization: The NVIDIA driver on your system is too old")


FORBIDDEN = (
    "pyarrow",
    "polars",
    "typer",
    "rich",
    "gguf",
    "safetensors",
    "transformers",
    "tokenizers",
    "datasets",
    "psutil",
)


def test_nothing_beyond_torch_and_numpy_is_imported_and_no_tests_of_others(tmp_path):
    for name in ("tests", "bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    code = f"""
import sys
sys.path.append({str(tmp_path)!r})
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN!r} or name == "psyfast._native":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
import bench.gpu_check.__main__, bench.gpu_check.worker
from psyfast.plan.batch import plan_batch
from bench.gpu_check.random_model import transcripts
print(len(plan_batch(transcripts(300, 99, 1)).batch.token_ids_T) > 200)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_without_torch_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.main([]) == 2
    assert capsys.readouterr().out.startswith("torch is not installed for ")
