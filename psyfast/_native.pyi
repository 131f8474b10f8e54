"""Types of psyfast's compiled module (bindings/native.cc): addresses are `Tensor.data_ptr()`, 0 for none."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_OPTIONS: int

def isa_name() -> str: ...
def available_isas() -> list[str]: ...
def compiled_isas() -> list[str]: ...
def packed_words(num_columns: int, inner: int, lane: str, /) -> int: ...
def linear_nll(
    *,
    x: int,
    num_rows: int,
    hidden: int,
    norm_weight: int,
    eps: float,
    unit_offset: bool,
    panels: int,
    lane: str,
    vocab: int,
    scale: float,
    soft_cap: float,
    target: int,
    option_id: int,
    num_options: int,
    nll: int,
    argmax: int,
    rank: int,
    entropy: int,
    option_nll: int,
    num_threads: int,
    isa: str = "",
) -> None: ...
def attention(
    *,
    q: int,
    out: int,
    lane: str,
    num_queries: int,
    num_heads: int,
    k: int,
    v: int,
    num_pages: int,
    num_kv_heads: int,
    head_dim: int,
    position: int,
    qo_indptr: int,
    kv_indptr: int,
    kv_indices: int,
    num_segments: int,
    scale: float,
    soft_cap: float,
    window: int,
    sinks: int,
    join_segments: bool,
    num_threads: int,
    isa: str = "",
) -> None: ...
def exp2(isa: str, lane: str, x: int, out: int, count: int, /) -> None: ...

VECTOR_PADDING: int
GATED_COLUMNS: int

def pack_columns(
    *,
    weights: int,
    source: str,
    num_rows: int,
    inner: int,
    row_of_column: int,
    num_columns: int,
    lane: str,
    packed: int,
    num_threads: int,
) -> None: ...

MAX_CONV_WIDTH: int

def delta_rule(
    *,
    x: int,
    num_tokens: int,
    hidden: int,
    norm: int,
    eps: float,
    panels: int,
    decay_write_panels: int,
    lane: str,
    taps: int,
    log_rate: int,
    time_bias: int,
    head_norm: int,
    head_eps: float,
    num_key_heads: int,
    num_value_heads: int,
    key_dim: int,
    value_dim: int,
    conv_width: int,
    num_segments: int,
    qo_indptr: int,
    start: int,
    parent_row: int,
    o: int,
    num_threads: int,
    isa: str = "",
) -> None: ...
def attn_in(
    *,
    x: int,
    num_tokens: int,
    hidden: int,
    norm: int,
    eps: float,
    panels: int,
    lane: str,
    bias: int,
    q_norm: int,
    q_eps: float,
    k_norm: int,
    k_eps: float,
    heads_together: bool,
    cos: int,
    sin: int,
    num_positions: int,
    num_pairs: int,
    num_heads: int,
    k: int,
    v: int,
    num_pages: int,
    num_kv_heads: int,
    head_dim: int,
    position: int,
    slot: int,
    copy_run: int,
    num_copy_runs: int,
    row: int,
    num_rows: int,
    q: int,
    num_threads: int,
    isa: str = "",
) -> None: ...
def attn_out(
    *,
    o: int,
    num_tokens: int,
    width: int,
    panels: int,
    lane: str,
    bias: int,
    post_norm: int,
    post_eps: float,
    x: int,
    hidden: int,
    gate_panels: int = 0,
    gate_norm: int = 0,
    gate_eps: float = 0.0,
    gate_activation: str = "sigmoid",
    num_threads: int,
    isa: str = "",
) -> None: ...
def mlp(
    *,
    x: int,
    num_tokens: int,
    hidden: int,
    norm: int,
    eps: float,
    gate_up: int,
    down: int,
    lane: str,
    feed_forward: int,
    activation: str,
    post_norm: int,
    post_eps: float,
    num_threads: int,
    isa: str = "",
) -> None: ...
def activate(isa: str, lane: str, activation: str, x: int, out: int, count: int, /) -> None: ...
def exp_nonpositive(isa: str, x: int, out: int, count: int, /) -> None: ...
def tanh_any(isa: str, x: int, out: int, count: int, /) -> None: ...

TILE_ROWS: int
PANEL_COLUMNS: int

def tile_columns(isa: str, /) -> int: ...
def has_bf16_dots(isa: str, /) -> bool: ...
def time_tile(
    *,
    x: int,
    panel: int,
    inner: int,
    lane: str,
    laps: int,
    out: int,
    seconds: float,
    num_threads: int,
    isa: str = "",
) -> tuple[float, list[float]]: ...
def time_product(
    *,
    x: int,
    num_rows: int,
    inner: int,
    panels: int,
    num_columns: int,
    lane: str,
    out: int,
    seconds: float,
    num_threads: int,
    isa: str = "",
) -> tuple[float, list[float]]: ...

PAGE_SLOTS: int
MAX_OPTION_COLUMNS: int

class BatchBuilder:
    """csrc/batch_plan.h; arrays are one-dimensional contiguous int64, max_slots −1 for no limit."""

    def __init__(self, *, share: bool) -> None: ...
    @property
    def num_requests(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def num_request_tokens(self) -> int: ...
    def add(
        self,
        *,
        max_slots: int,
        ids: NDArray[np.int64],
        ids_indptr: NDArray[np.int64],
        scored_positions: NDArray[np.int64],
        scored_indptr: NDArray[np.int64],
        branch_indptr: NDArray[np.int64],
        branch_start: NDArray[np.int64],
        branch_ids: NDArray[np.int64],
        branch_ids_indptr: NDArray[np.int64],
        score_start: NDArray[np.int64],
        score_stop: NDArray[np.int64],
    ) -> int: ...
    def finish(self) -> dict[str, Any]: ...
