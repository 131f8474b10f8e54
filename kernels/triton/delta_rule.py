"""delta_rule: the gated delta rule along every path of a forest, in chunks of 64 positions at fixed borders.

For each value head a state S [E, V] goes along a path (the equations are in psyfast/ops/reference_delta.py). With c the running
sum of log decay inside a chunk, D[i, j] = exp(c_i − c_j) for j ≤ i, A = tril(β K Kᵀ ∘ D, −1) and L = (1 + A)⁻¹, no row of

    U₀ = L β V     W = L β exp(c) K     M = Q Kᵀ ∘ D        chunk_kernel

needs the state, so they are made for all chunks and heads at once. What is left goes from chunk to chunk:

    U = U₀ − W S     O = exp(c) Q S + M U     S ← exp(c₆₃) S + (exp(c₆₃ − c) K)ᵀ U        state_kernel

T rows, H value heads, E and V a head's dimensions of keys and values, C channels, N chunks. Everything is fp32 but the running
sum, which is fp64 and kept as a sum of two fp32: differences of sums in the thousands must stay exact. Products are FMAs, whose
operands are all in registers, so each is taken 16 deep, and what is sliced (S, U, A, L) lies in memory of the program's own, small enough
for the L2 cache. L is lower triangular: its diagonal blocks of 16 are solved row by row, the rest follows from products.

A row's bits hang on its path alone: it stands at one place of one chunk, and is summed in one order. Zeros above a diagonal do
not keep NaN out of a product, so where the right side of one is not finite, zero is multiplied in its place, and the rows from there on are made NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from psyfast.kernels.triton.build import FUSION, Build, build_of
from psyfast.kernels.triton.launch import num_programs

CHUNK = tl.constexpr(64)
DEPTH = tl.constexpr(16)  # of a product, and rows of a block of A and L
LOG2E = tl.constexpr(1.4426950408889634)

MAX_DIM = 256
_PROGRAMS_A_MULTIPROCESSOR = 4


@triton.jit
def _faded_product(x, k, row_at, there, high, low, E: tl.constexpr):
    """(X Kᵀ) ∘ D of a chunk's rows, [64, 64]; what stands above the diagonal is not of use."""
    product = tl.zeros([CHUNK, CHUNK], tl.float32)
    for start in tl.range(0, E, DEPTH):
        e = start + tl.arange(0, DEPTH)[None, :]
        mask = there[:, None] & (e < E)
        right = tl.trans(tl.load(k + row_at[:, None] + e, mask=mask, other=0.0))
        left = tl.load(x + row_at[:, None] + e, mask=mask, other=0.0)
        product = tl.dot(left, right, product, input_precision="ieee")
    return product * tl.exp2(((high[:, None] - high[None, :]) + (low[:, None] - low[None, :])) * LOG2E)


@triton.jit
def _invert(system, inverse):
    """L = (1 + A)⁻¹ of A [64, 64], strictly lower triangular, both in memory; blocks above L's diagonal are not written."""
    block, r = tl.arange(0, CHUNK // DEPTH)[:, None, None] * DEPTH, tl.arange(0, DEPTH)
    at = (block + r[None, :, None]) * CHUNK + block + r[None, None, :]
    a = tl.load(system + at)
    x = tl.where(r[None, :, None] == r[None, None, :], 1.0, tl.zeros_like(a))
    for n in tl.range(1, DEPTH):  # row n of every diagonal block: those before it are done, those behind it still of 1
        here = (r == n)[None, :, None]
        a_n = tl.sum(tl.where(here, a, 0.0), 1)
        x -= tl.where(here, tl.sum(a_n[:, :, None] * x, 1)[:, None, :], 0.0)
    tl.store(inverse + at, x)
    column = tl.arange(0, CHUNK)
    for low in tl.static_range(DEPTH, CHUNK, DEPTH):  # L[b, :b] = −L[b, b] Σ A[b, m] L[m, :b]
        tl.debug_barrier()
        strip = tl.zeros([DEPTH, CHUNK], tl.float32)
        for before in tl.static_range(0, low, DEPTH):
            left = tl.load(system + (low + r)[:, None] * CHUNK + before + r[None, :])
            at_before = (before + r)[:, None] * CHUNK + column[None, :]
            right = tl.load(inverse + at_before, mask=(column < before + DEPTH)[None, :], other=0.0)
            strip = tl.dot(left, right, strip, input_precision="ieee")
        finite = tl.abs(strip) < float("inf")
        bad = tl.min(tl.where(finite, CHUNK, r[:, None]), 0)  # each column's first row that is not
        diagonal = tl.load(inverse + (low + r)[:, None] * CHUNK + low + r[None, :])
        strip = tl.dot(diagonal, tl.where(finite, -strip, 0.0), input_precision="ieee")
        strip = tl.where(r[:, None] >= bad[None, :], float("nan"), strip)
        tl.store(inverse + (low + r)[:, None] * CHUNK + column[None, :], strip, mask=(column < low)[None, :])
    tl.debug_barrier()


@triton.jit
def _solved(inverse, x, rows, factors, C, out, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """L (factor · x) of a chunk's rows of one head of x, [64, SIZE], into `out`."""
    place, r = tl.arange(0, CHUNK), tl.arange(0, DEPTH)
    for start in tl.range(0, SIZE, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        y = tl.zeros([CHUNK, COLUMNS], tl.float32)
        bad = tl.full([COLUMNS], CHUNK, tl.int32)
        for before in tl.range(0, CHUNK, DEPTH):
            row = tl.load(rows + before + r)
            mask = (row >= 0)[:, None] & (column < SIZE)[None, :]
            right = tl.load(x + row.to(tl.int64)[:, None] * C + column[None, :], mask=mask, other=0.0)
            right *= tl.load(factors + before + r)[:, None]
            finite = tl.abs(right) < float("inf")
            bad = tl.minimum(bad, tl.min(tl.where(finite, CHUNK, before + r[:, None]), 0))
            at = place[:, None] * CHUNK + before + r[None, :]
            left = tl.load(inverse + at, mask=(place // DEPTH * DEPTH >= before)[:, None], other=0.0)
            y = tl.dot(left, tl.where(finite, right, 0.0), y, input_precision="ieee")
        y = tl.where(place[:, None] >= bad[None, :], float("nan"), y)
        tl.store(out + place[:, None] * SIZE + column[None, :], y, mask=(column < SIZE)[None, :])


@triton.jit(do_not_specialize=["first_chunk", "num_chunks", "H", "group"])
def chunk_kernel(
    qkv,  # [T, C] fp32: q / √E and k of unit length, v
    log_decay,  # [T, H] fp32
    write,  # [T, H] fp32
    rows,  # [N, 64] int32: the row at each place of a chunk, −1: none
    w,  # [chunks, H, 64, E] fp32
    u0,  # [chunks, H, 64, V] fp32
    mixing,  # [chunks, H, 64, 64] fp32
    fading,  # [chunks, H, 2, 64] fp32: exp(c), exp(c₆₃ − c)
    memory,  # [programs, 2 · 64 · 64 + 2 · 64] fp32
    first_chunk,
    num_chunks,
    C,
    H,
    group,  # value heads of a key head
    E: tl.constexpr,
    V: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What needs no state, of some chunks, for every value head. A group's results are few enough for int32 to number."""
    system = memory + tl.program_id(0) * (2 * CHUNK * CHUNK + 2 * CHUNK)
    inverse = system + CHUNK * CHUNK
    factors = inverse + CHUNK * CHUNK
    place = tl.arange(0, CHUNK)
    square = place[:, None] * CHUNK + place[None, :]
    for work in tl.range(tl.program_id(0), num_chunks * H, tl.num_programs(0)):
        head = work % H
        of_chunk = rows + (first_chunk + work // H) * CHUNK
        q = qkv + head // group * E
        k = q + H // group * E
        v = qkv + 2 * (H // group) * E + head * V
        row = tl.load(of_chunk + place).to(tl.int64)
        there = row >= 0
        c = tl.cumsum(tl.load(log_decay + row * H + head, mask=there, other=0.0).to(tl.float64), 0)
        beta = tl.load(write + row * H + head, mask=there, other=0.0)
        high = c.to(tl.float32)
        low = (c - high).to(tl.float32)
        tl.debug_barrier()  # the last work's L and factors are read
        faded = _faded_product(k, k, row * C, there, high, low, E)
        tl.store(system + square, tl.where(place[:, None] > place[None, :], faded * beta[:, None], 0.0))
        faded = _faded_product(q, k, row * C, there, high, low, E)
        tl.store(mixing + work * CHUNK * CHUNK + square, tl.where(place[:, None] >= place[None, :], faded, 0.0))
        decay = tl.exp2((high + low) * LOG2E)
        c_last = tl.sum(tl.where(place == CHUNK - 1, c, 0.0), 0)
        tl.store(fading + work * 2 * CHUNK + place, decay)
        tl.store(fading + (work * 2 + 1) * CHUNK + place, tl.exp2((c_last - c).to(tl.float32) * LOG2E))
        tl.store(factors + place, beta)
        tl.store(factors + CHUNK + place, beta * decay)
        tl.debug_barrier()
        _invert(system, inverse)
        _solved(inverse, v, of_chunk, factors, C, u0 + work * CHUNK * V, V, COLUMNS)
        _solved(inverse, k, of_chunk, factors + CHUNK, C, w + work * CHUNK * E, E, COLUMNS)


@triton.jit
def _next_state(state, k, rows, fading, u, bad, shrink, C, E: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """S ← shrink · S + (fade · K)ᵀ U, in memory; NaN in the columns that are `bad`."""
    r, column = tl.arange(0, DEPTH), tl.arange(0, COLUMNS)
    for start in tl.range(0, E, ROWS):
        e = start + tl.arange(0, ROWS)
        at = e[:, None] * COLUMNS + column[None, :]
        s = tl.load(state + at, mask=(e < E)[:, None], other=0.0) * shrink
        for before in tl.range(0, CHUNK, DEPTH):
            row = tl.load(rows + before + r)
            mask = (row >= 0)[:, None] & (e < E)[None, :]
            left = tl.load(k + row.to(tl.int64)[:, None] * C + e[None, :], mask=mask, other=0.0)
            left *= tl.load(fading + CHUNK + before + r)[:, None]
            right = tl.load(u + (before + r)[:, None] * COLUMNS + column[None, :])
            s = tl.dot(tl.trans(left), right, s, input_precision="ieee")
        tl.store(state + at, tl.where(bad[None, :], float("nan"), s), mask=(e < E)[:, None])


@triton.jit
def _keep(state, kept, wanted, E: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr):
    """Copies a program's columns of S to their place among the states that are kept."""
    column = tl.arange(0, COLUMNS)[None, :]
    for start in tl.range(0, E, DEPTH):
        e = (start + tl.arange(0, DEPTH))[:, None]
        s = tl.load(state + e * COLUMNS + column, mask=e < E)
        tl.store(kept + e * V + column, s, mask=wanted & (e < E))


@triton.jit(do_not_specialize=["first_piece", "num_pieces", "first_chunk", "H", "group"])
def state_kernel(
    qkv,  # [T, C] fp32, as above
    rows,  # [N, 64] int32
    w,  # [chunks, H, 64, E] fp32
    u0,  # [chunks, H, 64, V] fp32
    mixing,  # [chunks, H, 64, 64] fp32
    fading,  # [chunks, H, 2, 64] fp32
    pieces,  # [pieces, 3] int32: first chunk, chunk after the last, number of the state to start from (−1: zeros)
    chunks,  # [N, 2] int32: places before a segment's own rows, number under which the state after it is kept (−1: not)
    states,  # [kept, H, E, V] fp32
    o,  # [T, H, V] fp32
    memory,  # [programs, (E + 64) · COLUMNS] fp32: S, then U
    first_piece,
    num_pieces,
    first_chunk,  # the one that w, u0, mixing and fading begin with
    C,
    H,
    group,
    E: tl.constexpr,
    V: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Some pieces of paths, none of which starts from a state that another one makes: (piece, head, columns) by turns."""
    PARTS: tl.constexpr = (V + COLUMNS - 1) // COLUMNS
    state = memory + tl.program_id(0) * ((E + CHUNK) * COLUMNS)
    u_here = state + E * COLUMNS
    place, r, column = tl.arange(0, CHUNK), tl.arange(0, DEPTH), tl.arange(0, COLUMNS)
    for work in tl.range(tl.program_id(0), num_pieces * H * PARTS, tl.num_programs(0)):
        start_column = work % PARTS * COLUMNS
        wanted = (start_column + column < V)[None, :]
        head = work // PARTS % H
        piece = pieces + 3 * (first_piece + work // PARTS // H)
        q = qkv + head // group * E
        k = q + H // group * E
        kept = states + head * E * V + start_column
        source = tl.load(piece + 2).to(tl.int64)
        source_rows = tl.where(source >= 0, E, 0)  # none where it starts from zeros
        for start in tl.range(0, E, DEPTH):
            e = (start + tl.arange(0, DEPTH))[:, None]
            mask = wanted & (e < source_rows)
            s = tl.load(kept + source * H * E * V + e * V + column[None, :], mask=mask, other=0.0)
            tl.store(state + e * COLUMNS + column[None, :], s, mask=e < E)
        tl.debug_barrier()
        stop_chunk = tl.load(piece + 1)
        for chunk in tl.range(tl.load(piece), stop_chunk):
            at = (chunk - first_chunk) * H + head
            of_chunk = rows + chunk * CHUNK
            row = tl.load(of_chunk + place).to(tl.int64)
            there = row >= 0
            fade = fading + at * 2 * CHUNK
            u = tl.load(u0 + (at * CHUNK + place[:, None]) * V + start_column + column[None, :], mask=wanted, other=0.0)
            y = tl.zeros([CHUNK, COLUMNS], tl.float32)
            for start in tl.range(0, E, DEPTH):
                e = start + tl.arange(0, DEPTH)
                right = tl.load(state + e[:, None] * COLUMNS + column[None, :], mask=(e < E)[:, None], other=0.0)
                left = tl.load(w + (at * CHUNK + place[:, None]) * E + e[None, :], mask=(e < E)[None, :], other=0.0)
                u = tl.dot(-left, right, u, input_precision="ieee")
                mask = there[:, None] & (e < E)[None, :]
                left = tl.load(q + row[:, None] * C + e[None, :], mask=mask, other=0.0)
                y = tl.dot(left, right, y, input_precision="ieee")
            y *= tl.load(fade + place)[:, None]
            finite = tl.abs(u) < float("inf")
            bad = tl.min(tl.where(finite, CHUNK, place[:, None]), 0)
            tl.store(u_here + place[:, None] * COLUMNS + column[None, :], tl.where(finite, u, 0.0))
            tl.debug_barrier()
            for before in tl.range(0, CHUNK, DEPTH):
                left = tl.load(mixing + (at * CHUNK + place[:, None]) * CHUNK + before + r[None, :])
                right = tl.load(u_here + (before + r)[:, None] * COLUMNS + column[None, :])
                y = tl.dot(left, right, y, input_precision="ieee")
            y = tl.where(place[:, None] >= bad[None, :], float("nan"), y)
            is_own = there & (place >= tl.load(chunks + 2 * chunk))
            out = (row[:, None] * H + head) * V + start_column + column[None, :]
            tl.store(o + out, y, mask=is_own[:, None] & wanted)
            number = tl.load(chunks + 2 * chunk + 1).to(tl.int64)
            if (number >= 0) | (chunk + 1 < stop_chunk):  # else nobody goes on from here
                shrink = tl.load(fade + CHUNK - 1)
                _next_state(state, k, of_chunk, fade, u_here, bad < CHUNK, shrink, C, E, COLUMNS, ROWS)
                tl.debug_barrier()  # S is whole; U may be written again
                if number >= 0:
                    _keep(state, kept + number * H * E * V, wanted, E, V, COLUMNS)
        tl.debug_barrier()  # the last state is copied before the next work's is written


def delta_rule(qkv_TC: Tensor, log_decay_TH: Tensor, write_TH: Tensor, plan: Any, sizes: Any) -> Tensor:
    """Outputs of the value heads, o_THV fp32. qkv_TC: q / √E and k of unit length, v.

    plan, sizes: a DeltaPlan and DeltaSizes of psyfast.ops.gpu.kernel_set.
    """
    T, C = qkv_TC.shape
    H, E, V = sizes.num_value_heads, sizes.key_dim, sizes.value_dim
    group = H // sizes.num_key_heads
    o_THV = qkv_TC.new_empty(T, H, V)
    states = qkv_TC.new_empty(max(1, plan.num_states), H, E, V)
    most = max((part.num_chunks for part in plan.groups), default=0)
    w, u0, mixing, fading = (qkv_TC.new_empty(most * H * numbers) for numbers in sizes.chunk_numbers)
    programs = _PROGRAMS_A_MULTIPROCESSOR * num_programs(qkv_TC)
    of_chunks, of_states = chunk_options(E, V), state_options(E, V)
    columns = of_states["COLUMNS"]
    memory = qkv_TC.new_empty(programs * max(2 * 64 * 64 + 2 * 64, (E + 64) * columns))
    for part in plan.groups:
        chunk_kernel[(min(programs, part.num_chunks * H),)](
            qkv_TC, log_decay_TH, write_TH, plan.rows_N64, w, u0, mixing, fading, memory, part.first_chunk,
            part.num_chunks, C, H, group, **of_chunks,
        )  # fmt: skip
        state_kernel[(min(programs, part.num_pieces * H * triton.cdiv(V, columns)),)](
            qkv_TC, plan.rows_N64, w, u0, mixing, fading, plan.pieces_P3, plan.chunks_N2, states, o_THV, memory,
            part.first_piece, part.num_pieces, part.first_chunk, C, H, group, **of_states,
        )  # fmt: skip
    return o_THV


def chunk_options(key_dim: int, value_dim: int) -> dict[str, Any]:
    """A head's sizes, and how many columns of U₀ and W are made at a time."""
    return {"E": key_dim, "V": value_dim, "COLUMNS": 64, "num_warps": 8, "num_stages": 1, **FUSION}


def state_options(key_dim: int, value_dim: int) -> dict[str, Any]:
    """A head's sizes, the columns of S that a program has (few, so that one path fills more of a device), rows at a time."""
    return {"E": key_dim, "V": value_dim, "COLUMNS": 32, "ROWS": 64, "num_warps": 4, "num_stages": 1, **FUSION}


def builds(capability: int) -> Iterator[Build]:
    """Heads of Qwen3.5, the largest, and one that ends inside of a tile; the same for all generations."""
    del capability
    types = dict.fromkeys(
        ("qkv", "log_decay", "write", "w", "u0", "mixing", "fading", "states", "o", "memory"), "*fp32"
    )
    types |= dict.fromkeys(("rows", "pieces", "chunks"), "*i32")
    types |= dict.fromkeys(("first_piece", "num_pieces", "first_chunk", "num_chunks", "C", "H", "group"), "i32")
    for key_dim, value_dim in ((128, 128), (256, 256), (24, 32)):
        sizes = f"{key_dim}x{value_dim}"
        yield build_of(chunk_kernel, f"delta_rule/chunks/{sizes}", types, chunk_options(key_dim, value_dim), ("C",))
        yield build_of(state_kernel, f"delta_rule/states/{sizes}", types, state_options(key_dim, value_dim), ("C",))
