"""A model of 70B's shape in nf4 with LoRAs over it, a few layers of it, under a memory limit: what a layer costs, part by part.

    python bench/bench_large.py --data TRANSCRIPTS.jsonl --memory-limit 6GB

Makes a model folder of random codes and scales (4 layers: 5.9 GB, deleted afterwards) and adapters, and scores the transcripts
by the command line. Then one layer's parts by themselves, in one thread, as the thread does that prepares a layer while
another is run: reading its bytes, de-quantising and merging, packing. Prints one JSON line, with what 80 layers would take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import commit, hardware
from nf4_model import SHAPES, make_adapter, make_model

from psyfast.model.load.assembly import Assembler
from psyfast.model.load.locate import locate
from psyfast.model.load.model import open_model
from psyfast.ops.records import Lane, in_memory
from psyfast.ops.registry import resolve

LAYERS_OF_70B = 80


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="psyfast-large-") as name:
        folder = Path(name)
        make_model(folder / "model", args.layers, SHAPES["70b"])
        for adapter_idx in range(args.adapters):
            make_adapter(folder / f"lora-{adapter_idx}", args.layers, args.rank, SHAPES["70b"])
        parts = time_parts(f"{folder / 'model'} + {folder / 'lora-0'}")
        manifest = score(folder, args)
    print(json.dumps(line(manifest, parts, args)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="transcripts, as psyfast score takes them")
    parser.add_argument("--limit", type=int, default=1, help="transcripts")
    parser.add_argument("--memory-limit", default="6GB")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=1, help="over the one base, in one run")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where the model is made; default: the system's folder for temporary files")
    return parser.parse_args()


def time_parts(name: str) -> dict[str, float]:
    """Seconds of one thread for a layer: its bytes read again from the page cache, its values, and all of it packed."""
    torch.set_num_threads(1)
    operators = resolve("auto", "cpu", Lane.BF16)
    traits, files = open_model(locate(name))
    layer = Assembler(files, traits, Lane.BF16, torch.device("cpu"), name).layer(1)
    shard = next(path for path in files.files if path.name == "model-layer-1.safetensors")
    seconds = {}
    for part in ("first read", "read"):
        start = time.perf_counter()
        with shard.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
        seconds[part] = time.perf_counter() - start
    for matrix in (layer.attn_in.qkv_proj, layer.attn_out.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj):
        start = time.perf_counter()
        in_memory(matrix)
        seconds["read, de-quantise, merge"] = seconds.get("read, de-quantise, merge", 0) + time.perf_counter() - start
    start = time.perf_counter()
    operators.prepare_layer(layer, num_threads=1)
    seconds["all, packed"] = time.perf_counter() - start
    return seconds


def score(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own; its manifest."""
    out = folder / "run"
    command = [sys.executable, "-m", "psyfast", "score", args.data, "--limit", str(args.limit), "-o", str(out)]
    command += [
        "--model",
        str(folder / "model"),
        "--adapter",
        ",".join(str(folder / f"lora-{adapter_idx}") for adapter_idx in range(args.adapters)),
        "--memory-limit",
        args.memory_limit,
    ]
    command += ["--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}\n{done.stderr[-2000:]}")
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def line(manifest: dict[str, Any], parts: dict[str, float], args: argparse.Namespace) -> dict[str, Any]:
    model = manifest["models"]["model+lora-0"]
    engine = manifest["seconds"]["engine"]
    tokens = manifest["tokens"]["model+lora-0"]["plain"]["total"]
    # Of the last layer only the rows that are scored are computed as a whole: the arithmetic tells how much that spares.
    peak = manifest["peak"]
    whole_layers = args.layers * (1 - peak["spared_gflop"] / peak["required_gflop"])
    a_layer = engine / whole_layers / args.adapters
    all_layers = a_layer * (LAYERS_OF_70B - args.layers + whole_layers)
    return {
        "case": "70B's shape, nf4 + LoRA",
        "layers": args.layers,
        "adapters": args.adapters,
        "tokens": tokens,
        "window_slots": model["window_slots"],
        "read_ahead": model["memory"]["read_ahead"],
        "memory_limit": args.memory_limit,
        "peak_rss_bytes": manifest["peak_rss_bytes"],
        "share_of_peak": manifest["peak"]["share"],
        "engine_s": round(engine, 1),
        "engine_s_a_whole_layer": round(a_layer, 2),
        "layer_parts_s": {part: round(seconds, 2) for part, seconds in parts.items()},
        "extrapolated_s_of_80_layers": round(all_layers, 0),
        "extrapolated_tok_per_s": round(tokens / all_layers, 2),
        "threads": args.threads,
        "hardware": hardware(),
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
    }


if __name__ == "__main__":
    main()
