"""What keeps a GPU backend from running is said in a sentence, before any work."""

import os
import subprocess
import sys

import pytest
import torch

from psyfast.doctor import diagnose, doctor_table
from psyfast.errors import BackendError
from psyfast.ops.gpu import availability
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from tests.test_doctor import printed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def without(monkeypatch, module):
    """As if a module were not installed."""
    found = availability.find_spec
    monkeypatch.setattr(availability, "find_spec", lambda name: None if name == module else found(name))


def test_triton_that_is_not_installed(monkeypatch):
    without(monkeypatch, "triton")
    assert availability.why_not("triton") == 'Triton is not installed: pip install "triton>=3.6"'
    with pytest.raises(BackendError, match=r"'triton' cannot be used: Triton is not installed.*--backend reference"):
        resolve("triton", "cpu")


def test_kernels_that_were_not_compiled(monkeypatch):
    monkeypatch.setitem(sys.modules, "psyfast._cuda", None)
    assert "psyfast._cuda cannot be loaded" in availability.why_not("cuda")
    with pytest.raises(BackendError, match="build it with nvcc"):
        resolve("cuda", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    assert availability.why_not("triton") == "torch sees no CUDA device here"
    with pytest.raises(BackendError, match="the device is cpu: give --device cuda"):
        resolve("triton", "cpu")
    with pytest.raises(BackendError, match="torch sees no CUDA device"):
        resolve("triton", "cuda")


def test_a_device_that_is_too_old(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert (
        availability.why_not("triton", torch.device("cuda"))
        == "the device's compute capability is 7.5, and 8.0 is the least"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert availability.why_not("triton", torch.device("cuda")) is None


def test_a_torch_that_is_too_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.1+cu126")
    assert availability.why_not("cuda") == "torch 2.8.1+cu126 is too old for its products: 2.9 is the least"


def test_the_interpreter_runs_on_the_cpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert availability.why_not("triton", CPU) is None
    assert availability.why_not("cuda", CPU) is not None


def test_doctor_says_which_backends_there_are():
    findings = diagnose(lane="bf16", device="cpu", backend="auto")
    assert set(findings["gpu_backends"]) == {"triton", "cuda"}
    text = printed(doctor_table(findings))
    assert "backend triton" in text and "backend cuda" in text
    assert max(map(len, text.splitlines())) <= 80
    some = findings | {"gpu_backends": {"triton": None, "cuda": "it is not there"}}
    text = " ".join(printed(doctor_table(some)).split())
    assert "never run on a GPU" in text and "no: it is not there" in text


def test_auto_takes_neither():
    assert set(resolve("auto", "cpu", Lane.BF16).backend_of.values()) == {"cpu"}


def test_psyfast_starts_without_triton():
    """Nothing of the command line or the registry imports Triton before it is asked for."""
    code = "import sys; sys.modules['triton'] = None; from psyfast.ops.registry import resolve; print(resolve().isa)"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
