"""What memory there is: cgroups of both versions, sizes as people write them, and a process that keeps its limit."""

import json
import mmap
import re
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch

from psyfast.config import bytes_of
from psyfast.errors import UsageError
from psyfast.process_memory import available_bytes, default_limit, peak_bytes, resident_bytes
from tests.family_models import make_case
from tests.tiny import make_llama

GB = 10**9


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("3GB", 3 * GB),
        ("3gb", 3 * GB),
        ("1.5 GB", 1_500_000_000),
        ("2GiB", 2 * 1024**3),
        ("512MiB", 512 * 1024**2),
        ("300MB", 300_000_000),
        ("700kB", 700_000),
        ("12345", 12345),
        ("12345B", 12345),
        (" 4 MB ", 4_000_000),
        (1_000_000, 1_000_000),
    ],
)
def test_sizes(written, meant):
    assert bytes_of(written) == meant


@pytest.mark.parametrize(
    "written", ["", "GB", "3 G", "-1GB", "1e9", "three", "0", 0, -5, "0.1B", "3GBB", True, 3e9, "nan"]
)
def test_what_is_no_size(written):
    with pytest.raises(UsageError, match="is not a size; give a number of bytes"):
        bytes_of(written)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(str(content))


def test_the_tightest_cgroup_counts(tmp_path):
    root = tmp_path / "cgroup"
    write(root, memory__stat="inactive_file 7\n")  # the root has no limit
    write(root / "job", memory__max=GB, memory__current=GB // 2, memory__stat=f"anon 5\ninactive_file {GB // 4}\n")
    write(root / "job" / "step", memory__max="max", memory__current=5, memory__stat="inactive_file 0\n")
    (tmp_path / "self").write_text("0::/job/step\n")
    assert available_bytes(tmp_path / "self", root) == GB - GB // 2 + GB // 4


def test_cgroups_of_the_first_version(tmp_path):
    root = tmp_path / "cgroup"
    stat = f"inactive_file 1\ntotal_inactive_file {GB // 10}\n"
    group = root / "memory" / "docker"
    write(group, memory__limit_in_bytes=GB, memory__usage_in_bytes=GB // 5, memory__stat=stat)
    write(root / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=9 * GB, memory__stat=stat)
    (tmp_path / "self").write_text("9:name=systemd:/\n4:memory:/docker\n1:cpu,cpuacct:/\n")
    assert available_bytes(tmp_path / "self", root) == GB - GB // 5 + GB // 10


def test_without_cgroups_the_system_says(tmp_path):
    free = psutil.virtual_memory().available
    assert available_bytes(tmp_path / "none", tmp_path) == pytest.approx(free, rel=0.2)


def test_a_process_knows_itself():
    before = resident_bytes()
    kept = mmap.mmap(-1, 200_000_000)  # of the system itself: an allocator may have kept as much from earlier tests
    np.frombuffer(kept, np.uint8)[:] = 1
    assert resident_bytes() > before + 150_000_000
    assert peak_bytes() is None or peak_bytes() >= resident_bytes() - 2_000_000
    assert default_limit() > resident_bytes()
    kept.close()


def score(model, data, out, *more):
    command = [sys.executable, "-m", "psyfast", "score", str(data), "--model", str(model), "-o", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def dense_model(folder):
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 6, "num_key_value_heads": 6}
    return make_llama(folder, num_hidden_layers=16, max_position_embeddings=4096, dtype=torch.bfloat16, **shape)


def model_with_experts(folder):
    shape = {"hidden_size": 512, "moe_intermediate_size": 384, "num_experts": 32, "num_experts_per_tok": 4}
    case = "qwen3 moe, normalised, rows of whole blocks"
    return make_case(folder, case, num_hidden_layers=8, max_position_embeddings=4096, dtype=torch.bfloat16, **shape)


@pytest.mark.slow
@pytest.mark.parametrize("make", [dense_model, model_with_experts])
def test_the_limit_that_a_refusal_names_is_enough_and_is_kept(tmp_path, make):
    """Weights of 300 MB: streamed under the limit, the peak below it, and the bits of the resident run."""
    model = make(tmp_path / "model")
    text = "You choose. " + "You press <<A>>. You win 3.\n" * 150
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text, "participant": i}) for i in range(2)) + "\n")
    refused = score(model, data, tmp_path / "run", "--memory-limit", "200MB")
    assert refused.returncode == 2 and not (tmp_path / "run").exists()
    limit = re.search(r"give --memory-limit ([\d.]+GB) or more", refused.stderr)[1]
    held = score(model, data, tmp_path / "run", "--memory-limit", limit)
    if held.returncode:  # the first refusal guesses at the tokenizer; what is loaded by now is known
        limit = re.search(r"give --memory-limit ([\d.]+GB) or more", held.stderr)[1]
        held = score(model, data, tmp_path / "run", "--memory-limit", limit, "--resume")
    assert held.returncode == 0, held.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    memory = manifest["models"]["model"]["memory"]
    assert memory["weights"] == "streamed" and memory["limit_bytes"] == bytes_of(limit)
    assert manifest["peak_rss_bytes"] <= memory["limit_bytes"]
    again = score(model, data, tmp_path / "all", "--weights", "resident", "--window-slots", str(memory["window_slots"]))
    assert again.returncode == 0, again.stderr
    from psyfast.store.reading import compare_runs

    assert compare_runs(tmp_path / "run", tmp_path / "all").same_bits
