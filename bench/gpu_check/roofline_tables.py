"""The tables of docs/roofline.md, from the formulas that gpu-check counts with: `python3 -m bench.gpu_check.roofline_tables`."""

from __future__ import annotations

from collections.abc import Callable

from bench.gpu_check import roofline
from bench.gpu_check.report import table
from bench.gpu_check.roofline import DATASHEETS, Work
from bench.gpu_check.shapes import MODELS
from psyfast.model.traits import Traits

BF16 = 2
NUM_TOKENS, NUM_ROWS = 8192, 1024


def datasheets() -> str:
    """What the vendor prints, and what follows."""
    head = ["", *(sheet.name for sheet in DATASHEETS)]
    lines: list[tuple[str, Callable[[roofline.Datasheet], str]]] = [
        ("memory, GB/s", lambda s: f"{s.bytes_per_s / 1e9:,.0f}"),
        ("bf16 products, dense, TFLOP/s", lambda s: f"{s.bf16_flop_per_s / 1e12:,.0f}"),
        ("multiprocessors, GHz", lambda s: f"{s.num_multiprocessors}, {s.clock_hz / 1e9:.2f}"),
        ("exponentials, 10¹²/s", lambda s: f"{s.num_multiprocessors * s.exps_a_clock * s.clock_hz / 1e12:.2f}"),
        ("L2, MiB", lambda s: f"{s.l2_bytes / 2**20:.0f}"),
        ("host to device, GB/s", lambda s: f"{s.link_bytes_per_s / 1e9:.0f}"),
        ("ridge, operations a byte", lambda s: f"{s.limits.ridge:.0f}"),
        ("operations an exponential", lambda s: f"{s.bf16_flop_per_s / (s.limits.exp_per_s or 1):.0f}"),
        (
            "tokens that hide a streamed layer",
            lambda s: f"{roofline.tokens_that_hide_a_layer(s.bf16_flop_per_s, s.link_bytes_per_s, BF16):,.0f}",
        ),
    ]
    return table(head, [[name, *map(of, DATASHEETS)] for name, of in lines])


def kernel_work(traits: Traits) -> dict[str, Work]:
    """Each kernel's and each projection's work: one transcript of 8,192 tokens, 1,024 scored rows, one layer."""
    T, D, F, E = NUM_TOKENS, traits.hidden_size, traits.intermediate_size, traits.head_dim
    H, K = traits.num_heads, traits.num_kv_heads
    return {
        "linear_nll": roofline.linear_nll(NUM_ROWS, D, traits.vocab_size, 4, BF16),
        "attention": roofline.attention(T, T * (T + 1) // 2, T // 64, H, K, E, BF16),
        "norm_rows": roofline.norm_rows(T, D, BF16),
        "heads": roofline.heads(T, H, K, E, E // 2, BF16),
        "copy_slots, 300 runs of 32": roofline.copy_slots(300 * 32, K, E, BF16),
        "add_rows": roofline.add_rows(T, D),
        "gated": roofline.gated(T, F, BF16),
        "qkv_proj (cuBLAS)": roofline.matmul(T, D, (H + 2 * K) * E, BF16, 4),
        "o_proj (cuBLAS)": roofline.matmul(T, H * E, D, BF16, 4),
        "gate_up_proj (cuBLAS)": roofline.matmul(T, D, 2 * F, BF16, 4),
        "down_proj (cuBLAS)": roofline.matmul(T, F, D, BF16, 4),
    }


def kernels(traits: Traits) -> str:
    """Work, and on each GPU the bound in µs with the limit that binds."""
    head = ["kernel", "GFLOP", "MB", "10⁶ exp", "operations a byte", *(f"{sheet.name}, µs" for sheet in DATASHEETS)]
    lines = []
    for name, work in kernel_work(traits).items():
        line = [name, f"{work.flop / 1e9:,.1f}", f"{work.num_bytes / 1e6:,.1f}", f"{work.num_exps / 1e6:,.0f}"]
        line.append(f"{work.intensity:,.0f}")
        for sheet in DATASHEETS:
            limit, seconds = sheet.limits.bound(work)
            line.append(f"{seconds * 1e6:,.1f} {limit}")
        lines.append(line)
    return table(head, lines)


def layer() -> str:
    """A layer's bounds added up: products, attention, and the passes over rows between them."""
    head = ["", "part", *(f"{sheet.name}, µs" for sheet in DATASHEETS)]
    lines = []
    for name, traits in MODELS.items():
        found = kernel_work(traits)
        passes = [found[kernel] for kernel in ("norm_rows", "norm_rows", "heads", "add_rows", "add_rows", "gated")]
        parts = {
            "four products": [work for kernel, work in found.items() if "cuBLAS" in kernel],
            "attention": [found["attention"]],
            "six passes over rows": passes,
        }
        times = {part: [sum(s.limits.bound(w)[1] for w in works) for s in DATASHEETS] for part, works in parts.items()}
        lines += [[name, part, *(f"{1e6 * seconds:,.0f}" for seconds in found)] for part, found in times.items()]
        shares = [
            sum(w.flop for works in parts.values() for w in works) / s.bf16_flop_per_s / sum(column)
            for s, column in zip(DATASHEETS, zip(*times.values(), strict=True), strict=True)
        ]
        lines.append([name, "share of the matrix rate at best", *(f"{share:.0%}" for share in shares)])
    return table(head, lines)


def head_rows() -> str:
    """How many scored rows it takes until the LM head's product, and not its reading, is what takes the time."""
    sizes = (1, 16, 64, 128, 256, 512, 1024, 4096)
    head = ["rows", "operations a byte", *(sheet.name for sheet in DATASHEETS)]
    lines = []
    for num_rows in sizes:
        work = roofline.linear_nll(num_rows, 4096, 151_936, 4, BF16)
        bounds = [sheet.limits.bound(work) for sheet in DATASHEETS]
        line = [f"{num_rows:,}", f"{work.intensity:,.0f}"]
        lines.append([*line, *(f"{limit}, {seconds * 1e6:,.0f} µs" for limit, seconds in bounds)])
    return table(head, lines)


def head_sizes() -> str:
    """Attention's exponentials beside its products: time of the one in units of the other's."""
    head = ["head size", "operations an exponential", *(sheet.name for sheet in DATASHEETS)]
    lines = []
    for head_dim in (64, 80, 96, 128, 256):
        work = roofline.attention(8192, 8192 * 8193 // 2, 128, 8, 8, head_dim, BF16)
        shares = []
        for sheet in DATASHEETS:
            times = sheet.limits.seconds(work)
            shares.append(f"{times['exp'] / times['matrix']:.2f}")
        lines.append([str(head_dim), f"{work.flop / work.num_exps:.0f}", *shares])
    return table(head, lines)


def tiles() -> str:
    """What a tile draws from L2, if nothing else is shared, at the full matrix rate."""
    head = ["tile", "operations a byte of L2", *(f"{sheet.name}, TB/s from L2" for sheet in DATASHEETS)]
    found = {
        f"product, {rows} x {columns}": roofline.product_tile_intensity(rows, columns, BF16)
        for rows, columns in ((64, 64), (64, 128), (128, 128), (128, 256), (256, 256))
    }
    found |= {f"attention, {rows} queries": roofline.attention_tile_intensity(rows, BF16) for rows in (64, 128, 256)}
    lines = [
        [name, f"{intensity:.0f}", *(f"{s.bf16_flop_per_s / intensity / 1e12:.1f}" for s in DATASHEETS)]
        for name, intensity in found.items()
    ]
    return table(head, lines)


def all_tables() -> dict[str, str]:
    """By title."""
    return {
        "data sheets": datasheets(),
        **{f"kernels, {name}": kernels(traits) for name, traits in MODELS.items()},
        "a layer": layer(),
        "linear_nll by rows": head_rows(),
        "attention by head size": head_sizes(),
        "tiles": tiles(),
    }


if __name__ == "__main__":
    print("\n\n".join(f"{title}\n\n{text}" for title, text in all_tables().items()))
