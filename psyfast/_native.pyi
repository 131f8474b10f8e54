"""Types of psyfast's compiled module (bindings/native.cc): addresses are `Tensor.data_ptr()`, 0 for none."""

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
