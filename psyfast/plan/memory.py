"""How a run fits into memory: weights resident or streamed, how large a window may be, or which limit would do.

    limit · (1 − SLACK) ≥ process + threads + head + layers + reading + window slots · bytes a slot

`layers`: all of them (resident), or the one in use and those read ahead (streamed), of all models that are run in step. Pure arithmetic over what
psyfast.footprint counts and the process measures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from psyfast.errors import UsageError
from psyfast.plan.windows import DEFAULT_WINDOW_SLOTS, MIN_WINDOW_SLOTS

WEIGHTS = ("auto", "resident", "streamed")
STREAMED_WINDOW_SLOTS = 65_536
"""Preparing a layer costs as much time as running some 500 tokens through it, whatever its size; reading it from a slow
disk more. A large window makes little of both."""
RESIDENT_SLOTS = 4_096
"""`auto` keeps weights resident where a window of this size fits beside them."""
READ_AHEAD_SLOTS = 16_384
"""Layers are read ahead where a window of this size, or the longest transcript, fits beside them; else room is worth more."""
SLACK = 0.03
GROWTH_BYTES = 48_000_000
THREAD_BYTES = 8_000_000


@dataclass(frozen=True)
class ModelSizes:
    """What a model takes, in bytes: a prepared layer (the largest), the prepared head, what is read at a time, a slot of a
    window. all_layers_bytes: of all layers; not given: they are alike. ahead_bytes: of a layer that is read ahead, which several
    models in step have at once; not given: there is one model. kept_bytes: beside a layer while it is prepared.
    """

    num_layers: int
    layer_bytes: int
    head_bytes: int
    reading_bytes: int
    slot_bytes: int
    all_layers_bytes: int | None = None
    ahead_bytes: int | None = None
    kept_bytes: int = 0


@dataclass(frozen=True)
class MemoryNeeds:
    """What stays the same whatever is chosen. process_bytes: resident before weights are read.

    slots: what the longest transcript takes. window_slots: of a run that is resumed, or asked for; None: to be chosen.
    layers_at_once: that are prepared at once where all are to stay.
    """

    limit_bytes: int
    process_bytes: int
    num_threads: int
    read_ahead: int
    slots: int = MIN_WINDOW_SLOTS
    window_slots: int | None = None
    layers_at_once: int = 1


@dataclass(frozen=True)
class MemoryPlan:
    """What was decided. max_slots: the most that one transcript may take; `bytes_of`: what each part takes at most."""

    limit_bytes: int
    weights: str
    read_ahead: int
    window_slots: int
    max_slots: int
    slot_bytes: int
    bytes_of: dict[str, int]

    def limit_for(self, slots: int) -> int:
        """The limit under which one transcript may take so many slots."""
        return self.limit_bytes + round((slots - self.max_slots) * self.slot_bytes / (1 - SLACK))


def plan_memory(sizes: ModelSizes, needs: MemoryNeeds, weights: str = "auto", where: str = "the model") -> MemoryPlan:
    """Choose where weights stay and how large windows are. UsageError names the smallest limit that would do."""
    slots = max(needs.slots, needs.window_slots or 0)
    needs = _with_room(sizes, needs, max(slots, READ_AHEAD_SLOTS))
    modes = ("resident", "streamed") if weights == "auto" else (weights,)
    afforded = {mode: _slots_afforded(sizes, needs, mode) for mode in modes}
    comfortable = max(slots, RESIDENT_SLOTS if len(modes) > 1 and needs.window_slots is None else 0)
    fitting = [mode for mode in modes if afforded[mode] >= (comfortable if mode == "resident" else slots)]
    fitting += [mode for mode in modes if afforded[mode] >= slots]
    if not fitting:
        raise UsageError(_refusal(sizes, needs, modes, slots, where))
    mode = fitting[0]
    most = STREAMED_WINDOW_SLOTS if mode == "streamed" else DEFAULT_WINDOW_SLOTS
    window_slots = needs.window_slots or min(afforded[mode], most)
    return MemoryPlan(
        limit_bytes=needs.limit_bytes,
        weights=mode,
        read_ahead=needs.read_ahead if mode == "streamed" else 0,
        window_slots=window_slots,
        max_slots=afforded[mode],
        slot_bytes=sizes.slot_bytes,
        bytes_of=_parts(sizes, needs, mode) | {"window": max(window_slots, needs.slots) * sizes.slot_bytes},
    )


def _with_room(sizes: ModelSizes, needs: MemoryNeeds, slots: int) -> MemoryNeeds:
    """The needs without reading ahead, where streamed layers read ahead leave too little for a window."""
    return needs if _slots_afforded(sizes, needs, "streamed") >= slots else replace(needs, read_ahead=0)


def smallest_limit(sizes: ModelSizes, needs: MemoryNeeds, mode: str, slots: int) -> int:
    """The limit with which a mode's weights and so many slots fit."""
    return round((sum(_parts(sizes, needs, mode).values()) + slots * sizes.slot_bytes) / (1 - SLACK)) + 1


def _parts(sizes: ModelSizes, needs: MemoryNeeds, mode: str) -> dict[str, int]:
    if mode == "streamed":
        num_ahead, at_once = min(sizes.num_layers - 1, needs.read_ahead), 1
        layers = sizes.layer_bytes + num_ahead * (sizes.ahead_bytes or sizes.layer_bytes)
    else:
        at_once = min(sizes.num_layers, needs.layers_at_once)
        layers = sizes.all_layers_bytes or sizes.num_layers * sizes.layer_bytes
    return {
        "process": needs.process_bytes + GROWTH_BYTES,
        "threads": needs.num_threads * THREAD_BYTES,
        "head": sizes.head_bytes,
        "layers": layers,
        "reading": sizes.reading_bytes + at_once * sizes.kept_bytes,
    }


def _slots_afforded(sizes: ModelSizes, needs: MemoryNeeds, mode: str) -> int:
    left = needs.limit_bytes * (1 - SLACK) - sum(_parts(sizes, needs, mode).values())
    return max(0, int(left // sizes.slot_bytes))


def _refusal(sizes: ModelSizes, needs: MemoryNeeds, modes: tuple[str, ...], slots: int, where: str) -> str:
    mode = modes[-1]
    parts = _parts(sizes, needs, mode)
    smallest = smallest_limit(sizes, needs, mode, slots)
    kept = {"resident": "all layers", "streamed": "a layer at a time"}[mode]
    tokens = (
        f"a window of {slots:,} tokens"
        if slots > needs.slots or slots == MIN_WINDOW_SLOTS
        else (f"the longest transcript ({slots:,} tokens)")
    )
    takes = (
        f"the process {in_gb(parts['process'] + parts['threads'])}, the LM head {in_gb(parts['head'])}, {kept} "
        f"{in_gb(parts['layers'] + parts['reading'])}, {tokens} {in_gb(slots * sizes.slot_bytes)}"
    )
    mend = f"give --memory-limit {in_gb(smallest).replace(' ', '')} or more"
    if mode == "resident" and smallest_limit(sizes, needs, "streamed", slots) < smallest:
        mend += ", or --weights streamed"
    return f"{where}: {in_gb(needs.limit_bytes)} of memory cannot hold it: {takes}; {mend}, or use a smaller model"


def in_gb(num_bytes: int) -> str:
    """Rounded up to hundredths: `1.24 GB`."""
    return f"{-(-num_bytes // 10_000_000) / 100:.2f} GB"
