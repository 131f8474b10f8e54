"""How much work each kernel must do, and which of a GPU's limits that meets first (docs/roofline.md).

    matrix   floating-point operations of the products by the tensor cores' rate
    memory   bytes by the bandwidth of the device's memory: every input once, every output once, nothing in between
    exp      exponentials by the rate of the special function units (one for each score of attention and each logit)

The three run at the same time on different units, so no kernel takes less than the largest of the three: the bound. Its
own time by that is the fraction of the roofline. Counts are exact for what a kernel is asked for, and know nothing of
how it is tiled: masked keys, padded tiles and partial results are the kernel's own affair and lower its fraction.
"""

from __future__ import annotations

from dataclasses import dataclass

IDS_BYTES = 8  # int64 positions, slots, targets and options
FP32_BYTES = 4


@dataclass(frozen=True)
class Work:
    """What a call must do at least: operations of products, bytes to and from memory, exponentials."""

    flop: float
    num_bytes: float
    num_exps: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flop + other.flop, self.num_bytes + other.num_bytes, self.num_exps + other.num_exps)

    @property
    def intensity(self) -> float:
        """Operations a byte; a GPU whose ridge point is above it waits for memory."""
        return self.flop / self.num_bytes


@dataclass(frozen=True)
class Limits:
    """A GPU's rates. flop_per_s: dense, of the operand type in question. exp_per_s: None where it is not known."""

    bytes_per_s: float
    flop_per_s: float
    exp_per_s: float | None = None

    @property
    def ridge(self) -> float:
        """Operations a byte at which products and memory take equally long."""
        return self.flop_per_s / self.bytes_per_s

    def seconds(self, work: Work) -> dict[str, float]:
        """Of each limit alone."""
        found = {"matrix": work.flop / self.flop_per_s, "memory": work.num_bytes / self.bytes_per_s}
        if self.exp_per_s is not None:
            found["exp"] = work.num_exps / self.exp_per_s
        return found

    def bound(self, work: Work) -> tuple[str, float]:
        """The limit that binds, and its seconds: no kernel can be faster."""
        times = self.seconds(work)
        name = max(times, key=times.__getitem__)
        return name, times[name]


@dataclass(frozen=True)
class Datasheet:
    """What a vendor prints about a GPU: leads, which gpu-check replaces by what it measures.

    exps_a_clock: of all special function units of a multiprocessor. clock_hz: the boost clock at which the printed matrix rate
    holds. link_bytes_per_s: host to device, one direction.
    """

    name: str
    bytes_per_s: float
    bf16_flop_per_s: float
    num_multiprocessors: int
    clock_hz: float
    l2_bytes: int
    link_bytes_per_s: float
    exps_a_clock: int = 16

    @property
    def limits(self) -> Limits:
        """As rates, for the bf16 lane."""
        return Limits(
            self.bytes_per_s, self.bf16_flop_per_s, self.num_multiprocessors * self.exps_a_clock * self.clock_hz
        )


# NVIDIA's data sheets of the SXM boards (80 GB, 80 GB, 141 GB), dense rates, which are half of the printed ones "with sparsity";
# multiprocessors, clock and L2 from the architecture whitepapers. Special function units: 16 results a clock and
# multiprocessor, the CUDA programming guide's table of arithmetic throughput for capability 8.0 and 9.0.
DATASHEETS = (
    Datasheet("A100", 2.039e12, 312e12, 108, 1.410e9, 40 * 2**20, 32e9),
    Datasheet("H100", 3.35e12, 989.4e12, 132, 1.830e9, 50 * 2**20, 64e9),
    Datasheet("H200", 4.8e12, 989.4e12, 132, 1.830e9, 50 * 2**20, 64e9),
)


def matmul(num_rows: int, inner: int, columns: int, operand_bytes: int, result_bytes: int) -> Work:
    """[rows, inner] · [inner, columns]."""
    read = (num_rows + columns) * inner * operand_bytes
    return Work(2.0 * num_rows * inner * columns, read + num_rows * columns * result_bytes)


def linear_nll(num_rows: int, hidden: int, vocab: int, num_options: int, operand_bytes: int) -> Work:
    """Hidden rows, LM head, target and options in; nll, arg max, rank, entropy and options out. One exp a logit."""
    operands = (num_rows + vocab) * hidden * operand_bytes
    ids = num_rows * (1 + num_options) * IDS_BYTES
    results = num_rows * (2 * FP32_BYTES + 2 * IDS_BYTES + num_options * FP32_BYTES)
    return Work(2.0 * num_rows * hidden * vocab, operands + ids + results, float(num_rows) * vocab)


def attention(
    num_rows: int, pairs: int, num_pages: int, num_heads: int, num_kv_heads: int, head_dim: int, operand_bytes: int
) -> Work:
    """pairs: of a row and a position that it sees (psyfast.plan.flops.causal_pairs). q in, o out, pages read once."""
    rows = 2 * num_rows * num_heads * head_dim * operand_bytes + num_rows * IDS_BYTES
    pages = 2 * num_pages * 64 * num_kv_heads * head_dim * operand_bytes
    return Work(4.0 * head_dim * num_heads * pairs, rows + pages, float(num_heads) * pairs)


def norm_rows(num_rows: int, hidden: int, operand_bytes: int) -> Work:
    """Rows fp32 in, operands out, the weight once."""
    return Work(0.0, num_rows * hidden * (FP32_BYTES + operand_bytes) + hidden * FP32_BYTES)


def heads(
    num_rows: int, num_heads: int, num_kv_heads: int, head_dim: int, rotated_pairs: int, operand_bytes: int
) -> Work:
    """The projection's row fp32 in; q, k and v out; cos and sin of each row's position, its position and slot."""
    columns = (num_heads + 2 * num_kv_heads) * head_dim
    a_row = columns * (FP32_BYTES + operand_bytes) + 2 * rotated_pairs * FP32_BYTES + 2 * IDS_BYTES
    return Work(0.0, float(num_rows * a_row))


def copy_slots(num_slots: int, num_kv_heads: int, head_dim: int, operand_bytes: int) -> Work:
    """K and V of each slot, read and written."""
    return Work(0.0, 4.0 * num_slots * num_kv_heads * head_dim * operand_bytes)


def add_rows(num_rows: int, hidden: int) -> Work:
    """X and y in, x out, all fp32."""
    return Work(0.0, 3.0 * num_rows * hidden * FP32_BYTES)


def gated(num_rows: int, width: int, operand_bytes: int) -> Work:
    """Gate and up fp32 in, operands out; one exp a value (silu, or tanh as an exp)."""
    return Work(0.0, num_rows * width * (2.0 * FP32_BYTES + operand_bytes), float(num_rows) * width)


def short_convolution(num_rows: int, channels: int, num_taps: int) -> Work:
    """Channels in and out, fp32, the rows of the taps' and the filter once; one exp a value."""
    num_bytes = 2.0 * num_rows * channels * FP32_BYTES + num_taps * (num_rows + channels) * FP32_BYTES
    return Work(0.0, num_bytes, float(num_rows) * channels)


def delta_rule(num_rows: int, channels: int, num_value_heads: int, key_dim: int, value_dim: int) -> Work:
    """Q, k, v, decay and write strength in, outputs out, fp32; a state's three products a row and head, Sᵀ k, k uᵀ and Sᵀ q.

    The products are fp32: their share of the tensor cores' rate is small whatever a kernel does.
    """
    num_bytes = num_rows * FP32_BYTES * (channels + num_value_heads * (2.0 + value_dim))
    return Work(6.0 * num_rows * num_value_heads * key_dim * value_dim, num_bytes, float(num_rows) * num_value_heads)


def tokens_that_hide_a_layer(flop_per_s: float, link_bytes_per_s: float, weight_bytes: int) -> float:
    """Tokens whose products with a layer take as long as its transfer: 2 · weights · T / rate = weights · bytes / link."""
    return flop_per_s * weight_bytes / (2.0 * link_bytes_per_s)


def product_tile_intensity(rows: int, columns: int, operand_bytes: int) -> float:
    """Operations a byte that a tile of a product draws from L2: 2 · r · c · k by (r + c) · k · bytes."""
    return 2.0 * rows * columns / ((rows + columns) * operand_bytes)


def attention_tile_intensity(query_rows: int, operand_bytes: int) -> float:
    """The same for a tile of queries of one head: 4 · r · E operations a key by its K and V, 2 · E · bytes."""
    return 2.0 * query_rows / operand_bytes
