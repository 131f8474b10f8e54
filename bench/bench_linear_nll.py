"""linear_nll against torch: checks, then times interleaved, then prints one JSON line a case.

    python bench/bench_linear_nll.py --rows 16 100 500 --vocab 49152 --hidden 576 --threads 2

`torch_mm` is the product alone; `torch_nll` adds log_softmax and gather; both without the final norm, and in the lane's
dtype. A ratio above 1 means that psyfast is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch
from measuring import commit, hardware, interleaved

from psyfast.ops import cpu, reference_head
from psyfast.ops.records import HeadWeights, Lane, Norm

DTYPE = {Lane.FP32: torch.float32, Lane.BF16: torch.bfloat16}


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    head = HeadWeights(Norm(torch.ones(args.hidden), 1e-6), torch.randn(args.vocab, args.hidden) / args.hidden**0.5)
    for lane in Lane:
        packed = cpu.pack_head(head, lane)
        for num_rows in args.rows:
            print(json.dumps(case(args, head, packed, num_rows)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 6, 16, 100, 500])
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


def case(args: argparse.Namespace, head: HeadWeights, packed: cpu.PackedHead, num_rows: int) -> dict[str, object]:
    lane = packed.lane
    x_ND, target_N = torch.randn(num_rows, args.hidden), torch.randint(0, args.vocab, (num_rows,))
    error = check(x_ND, head, packed, target_N)
    x_typed, weight_DV = x_ND.to(DTYPE[lane]), head.lm_head_VD.to(DTYPE[lane]).T

    def torch_nll() -> torch.Tensor:
        return -torch.log_softmax((x_typed @ weight_DV).float(), -1).gather(1, target_N[:, None])

    samples = interleaved(
        {
            "psyfast": lambda: cpu.linear_nll(x_ND, packed, target_N),
            "torch_mm": lambda: x_typed @ weight_DV,
            "torch_nll": torch_nll,
        },
        args.repeats,
    )
    median = {name: statistics.median(times) for name, times in samples.items()}
    quartiles = statistics.quantiles(samples["psyfast"], n=4)
    return {
        "operator": "linear_nll",
        "lane": lane.value,
        "isa": cpu.isa_name(),
        "rows": num_rows,
        "vocab": args.vocab,
        "hidden": args.hidden,
        "threads": args.threads,
        "median_ms": {name: round(seconds * 1e3, 3) for name, seconds in median.items()},
        "spread": round((quartiles[2] - quartiles[0]) / quartiles[1], 3),  # interquartile range over the median
        "gflop_per_s": round(2e-9 * num_rows * args.vocab * args.hidden / median["psyfast"], 1),
        "ratio_to_torch_mm": round(median["torch_mm"] / median["psyfast"], 2),
        "ratio_to_torch_nll": round(median["torch_nll"] / median["psyfast"], 2),
        "largest_error_nats": error,
        "repeats": args.repeats,
        "hardware": hardware(),
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
    }


def check(x_ND: torch.Tensor, head: HeadWeights, packed: cpu.PackedHead, target_N: torch.Tensor) -> float:
    """Largest error of the first rows against fp64; a wrong kernel is not timed."""
    rows = min(len(x_ND), 8)
    truth = reference_head.linear_nll(x_ND[:rows].double(), head, target_N[:rows], lane=packed.lane)
    error = (cpu.linear_nll(x_ND, packed, target_N).nll_N[:rows].double() - truth.nll_N).abs().max().item()
    if not error < 2e-3:
        raise SystemExit(f"linear_nll is wrong by {error} nats in lane {packed.lane.value}: not timed")
    return error


if __name__ == "__main__":
    main()
