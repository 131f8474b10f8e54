"""A model whose weights are twice the memory limit: streamed under the limit against resident without one.

    python bench/bench_streaming.py

Makes a Llama of random weights with a byte-level tokenizer (2.7 GB by default, deleted afterwards) and transcripts of
random words, then scores them by the command line in processes of their own, in turns: `--weights resident`, and
`--memory-limit` half the weights. Before anything is compared, the runs' bits are: they must be the same. Prints one JSON
line: tokens/s of the engine (the manifest's tokens over its seconds in it), CPU seconds of the whole process, and the
peak of resident memory, touched pages of files included. --rlimit also lets the kernel refuse more data (RLIMIT_DATA) than the limit to the streamed process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import commit, hardware

from psyfast.api import load_result


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="psyfast-streaming-") as name:
        folder = Path(name)
        model, data = folder / "model", folder / "data.jsonl"
        make_model(model, args)
        make_transcripts(data, args)
        weights_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        limit = args.memory_limit or weights_bytes // 2
        runs: dict[str, list[dict[str, Any]]] = {"resident": [], "streamed": []}
        for repeat in range(args.repeats):
            for weights, done in runs.items():
                done.append(score(folder, model, data, weights, limit, repeat, args))
        check(folder, args.repeats)
        print(json.dumps(line(runs, limit, weights_bytes, args)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--feed-forward", type=int, default=5632)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--transcripts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=2_000, help="of a transcript, one a character")
    parser.add_argument("--memory-limit", type=int, help="bytes; default: half the weights' file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rlimit", action="store_true")
    parser.add_argument("--folder", help="where the model is made; default: the system's folder for temporary files")
    return parser.parse_args()


def make_model(folder: Path, args: argparse.Namespace) -> None:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir()
    D, F, E = args.hidden, args.feed_forward, args.hidden // args.heads
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": args.layers,
        "hidden_size": D,
        "intermediate_size": F,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "vocab_size": args.vocab,
        "max_position_embeddings": 1 << 17,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=torch.bfloat16).normal_(0, columns**-0.5, generator=generator)

    ones = torch.ones(D, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": matrix(args.vocab, D), "lm_head.weight": matrix(args.vocab, D)}
    tensors["model.norm.weight"] = ones
    for layer_idx in range(args.layers):
        layer = f"model.layers.{layer_idx}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{norm}.weight"] = ones.clone()
        for name, heads in (("q", args.heads), ("k", args.kv_heads), ("v", args.kv_heads)):
            tensors[f"{layer}self_attn.{name}_proj.weight"] = matrix(heads * E, D)
        tensors[f"{layer}self_attn.o_proj.weight"] = matrix(D, args.heads * E)
        tensors[f"{layer}mlp.gate_proj.weight"] = matrix(F, D)
        tensors[f"{layer}mlp.up_proj.weight"] = matrix(F, D)
        tensors[f"{layer}mlp.down_proj.weight"] = matrix(D, F)
    save_file(tensors, folder / "model.safetensors")


def make_transcripts(path: Path, args: argparse.Namespace) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(400)]
    with path.open("w") as file:
        for participant in range(args.transcripts):
            text = f"Participant {participant}."
            while len(text) < args.tokens:
                text += f" {' '.join(draw.choices(words, k=6))}. You press <<{draw.choice('JF')}>>."
            file.write(json.dumps({"text": text, "participant": participant}) + "\n")


def score(
    folder: Path, model: Path, data: Path, weights: str, limit: int, repeat: int, args: argparse.Namespace
) -> dict[str, Any]:
    """One run in a process of its own; its manifest."""
    out = folder / f"{weights}-{repeat}"
    command = [sys.executable, "-m", "psyfast", "score", str(data), "--model", str(model), "-o", str(out)]
    command += ["--threads", str(args.threads), "--weights", weights]
    before = None
    if weights == "streamed":
        command += ["--memory-limit", str(limit)]
        if args.rlimit:
            before = partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit))
    environment = {**os.environ, "PSYFAST_LOG": "info"}
    used = cpu_seconds()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, preexec_fn=before)
    if done.returncode:
        raise SystemExit(f"{weights}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return {**manifest, "cpu_s": cpu_seconds() - used}


def cpu_seconds() -> float:
    """Of the processes that were run and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check(folder: Path, repeats: int) -> None:
    """Runs whose bits differ are not timed. Their windows differ, so they are compared as a whole, not part by part."""
    expected = load_result(folder / "resident-0").responses
    assert expected.num_rows
    for repeat in range(repeats):
        assert load_result(folder / f"streamed-{repeat}").responses.equals(expected), f"other bits in run {repeat}"


def line(
    runs: dict[str, list[dict[str, Any]]], limit: int, weights_bytes: int, args: argparse.Namespace
) -> dict[str, Any]:
    rates = {
        weights: [manifest["tokens"]["model"]["plain"]["total"] / manifest["seconds"]["engine"] for manifest in done]
        for weights, done in runs.items()
    }
    peaks = {weights: max(manifest["peak_rss_bytes"] for manifest in done) for weights, done in runs.items()}
    ratios = [streamed / resident for streamed, resident in zip(rates["streamed"], rates["resident"], strict=True)]
    plans = {weights: done[0]["models"]["model"]["memory"] for weights, done in runs.items()}
    return {
        "case": "streaming",
        "weights_bytes": weights_bytes,
        "memory_limit": limit,
        "tok_per_s": {weights: [round(rate, 1) for rate in found] for weights, found in rates.items()},
        "streamed_over_resident": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_s": {weights: [round(manifest["cpu_s"], 1) for manifest in done] for weights, done in runs.items()},
        "peak_rss_bytes": peaks,
        "peak_over_limit": round(peaks["streamed"] / limit, 3),
        "planned_bytes": {weights: plan["bytes_of"] for weights, plan in plans.items()},
        "window_slots": {weights: plan["window_slots"] for weights, plan in plans.items()},
        "same_bits": True,
        "rlimit_data": args.rlimit,
        "threads": args.threads,
        "hardware": hardware(),
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
    }


if __name__ == "__main__":
    main()
