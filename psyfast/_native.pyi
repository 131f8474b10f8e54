"""Types of psyfast's compiled module (bindings/native.cc): addresses are `Tensor.data_ptr()`, 0 for none."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_OPTIONS: int

def isa_name() -> str: ...
def available_isas() -> list[str]: ...
def compiled_isas() -> list[str]: ...
def packed_words(num_columns: int, inner: int, lane: str, /) -> int: ...
def pack_panels(
    *, weights: int, source: str, num_columns: int, inner: int, lane: str, packed: int, num_threads: int
) -> None: ...
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
def exp_nonpositive(isa: str, x: int, out: int, count: int, /) -> None: ...
def tanh_any(isa: str, x: int, out: int, count: int, /) -> None: ...

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
