"""What a run would take, before a weight is read: tokens, arithmetic, memory, disk and time.

The transcripts are read, rendered, encoded and cut into windows as the run would do it, so these numbers are its own and
not estimates. Time is arithmetic over a rate: this machine's measured peak, or another device's data sheet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

import pyarrow as pa
import torch

from psyfast.config import ScoreConfig
from psyfast.data.conditions.condition import Setting
from psyfast.data.conditions.registry import conditions_of
from psyfast.data.conditions.renderer import Renderer
from psyfast.data.encoded import Limits, Protocol
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.transcripts import TranscriptReader
from psyfast.devices import Device
from psyfast.engine import model_shape
from psyfast.errors import UsageError
from psyfast.footprint import numbers_together
from psyfast.inputs import read_options, with_absolute_paths
from psyfast.model.load.checks import expected_shapes
from psyfast.model.load.locate import Located, locate
from psyfast.model.load.model import stored_size, traits_of
from psyfast.model.load.tokenizer import load_tokenizer
from psyfast.model.traits import Traits
from psyfast.ops.peak import peak_of
from psyfast.ops.records import Lane
from psyfast.ops.registry import Operators, resolve
from psyfast.plan.flops import NO_FLOP, RequiredFlop, required_flop
from psyfast.plan.memory import MemoryPlan
from psyfast.plan.pages import PAGE_SLOTS
from psyfast.plan.windows import MIN_WINDOW_SLOTS, windows
from psyfast.preparation import Work, prepared
from psyfast.process_memory import planned_memory_of, taken_together
from psyfast.scoring import chat_template_of, threads

SHARES = {"linear": 0.9, "attention": 0.83, "head": 0.91}
"""Of the machine's peak, that the native operators reach on batches of thousands of tokens (docs/performance.md)."""
DELTA_RULE_SHARE = {Lane.BF16: 0.15, Lane.FP32: 0.3}
"""Likewise of the lane's peak, for the recurrence as it is counted: its chunks take half as much again, all in fp32."""
DEVICE_SHARE = 0.5
"""Of a data sheet's rate. An assumption: psyfast has not been measured on any of these devices."""
START_SECONDS = 3.0
LOAD_NS = {"plain": 4.5, "quantised": 9.0}
"""Nanoseconds of one thread for a weight to be read and packed in bf16: as stored in 16 or 32 bits, and from fewer."""
HASH_NS = 0.65
"""Of one thread for a byte of the weights' files: a run records what it was computed from."""


@dataclass
class Counted:
    """What the windows of a run add up to. num_tokens: of all texts; num_unique: what is computed after sharing."""

    num_transcripts: int = 0
    num_responses: int = 0
    num_tokens: int = 0
    num_unique: int = 0
    num_entries: int = 0
    num_windows: int = 0
    largest_slots: int = 0
    seconds: float = 0.0
    required: RequiredFlop = field(default_factory=lambda: NO_FLOP)


@dataclass(frozen=True)
class Forecast:
    """What one model would take. seconds: by part, on `device`. disk_bytes: read in all. peak_gflop_per_s: what time was divided by, with
    `shares`. num_in_step: models of one base that are run together; memory is of all of them, seconds and disk_bytes are this one's share.
    """

    model_id: str
    device: str
    traits: Traits
    num_params: int
    counted: Counted
    memory: Mapping[str, int]
    weights: str
    window_slots: int
    disk_bytes: int
    peak_gflop_per_s: float
    shares: Mapping[str, float]
    seconds: Mapping[str, float]
    fits: bool
    num_in_step: int = 1

    @property
    def total_seconds(self) -> float:
        """Of the whole command."""
        return sum(self.seconds.values())

    def machines_for(self, seconds: float) -> int:
        """How many such machines finish in a time, each with a part of the transcripts; every one loads the model."""
        alone = self.seconds["start"] + self.seconds["load"]
        if seconds <= alone:
            raise UsageError(
                f"{self.model_id}: takes {alone:.0f} s to start and load, however many machines share the rest; allow more time"
            )
        return max(1, math.ceil((self.total_seconds - alone) / (seconds - alone)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "total_seconds": self.total_seconds}


def forecast(config: ScoreConfig, device: Device | None = None) -> list[Forecast]:
    """What `psyfast score` with a configuration would take, model by model. device: another than this machine.

    Reads the transcripts, the models' configurations and tokenizers; no weights. Raises what `score` would for them.
    """
    config = with_absolute_paths(config)
    operators = resolve(config.backend, config.device, Lane(config.lane), isa=config.isa)
    located = [locate(model, config.revision, with_weights=False) for model in config.models]
    with threads(config.threads):
        groups = [[one] for one in located] if device else _in_step(config, operators, located)
        return [_of_model(config, operators, one, device, group) for group in groups for one in group]


def _in_step(config: ScoreConfig, operators: Operators, located: Sequence[Located]) -> list[list[Located]]:
    """Neighbours with one base that fit into memory together, as the run has them (psyfast.scoring)."""
    groups: list[list[Located]] = []
    for one in located:
        if groups and groups[-1][0].path == one.path and _fit(config, operators, [*groups[-1], one]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _fit(config: ScoreConfig, operators: Operators, group: Sequence[Located]) -> bool:
    try:
        _memory(config, operators, group, config.window_slots)
    except UsageError:
        return False
    return True


def _memory(
    config: ScoreConfig,
    operators: Operators,
    group: Sequence[Located],
    window_slots: int | None,
    slots: int = MIN_WINDOW_SLOTS,
) -> MemoryPlan:
    """What models in step take together."""
    traits = traits_of(group[0])
    return planned_memory_of(
        config,
        operators,
        traits,
        stored_size(group[0], _num_params(traits))[1],
        group[0].name,
        slots=slots,
        window_slots=window_slots,
        together=taken_together(group, traits, operators),
    )


def _num_params(traits: Traits) -> int:
    return sum(prod(shape) for shape in expected_shapes(traits).values())


def _of_model(
    config: ScoreConfig, operators: Operators, located: Located, device: Device | None, group: Sequence[Located]
) -> Forecast:
    """One of the models of a group, in step with the others."""
    traits = traits_of(located)
    pa.array([0])  # a run makes tables, and for the first of them pyarrow loads pandas: memory that it has, too
    started = time.perf_counter()
    tokenizer = Tokenizer(load_tokenizer(located))
    tokenizer_seconds = time.perf_counter() - started
    num_params = _num_params(traits)
    stored = stored_size(located, num_params)[0]
    memory = None if device else _memory(config, operators, group, config.window_slots)
    window_slots = memory.window_slots if memory else config.window_slots or DEVICE_WINDOW_SLOTS
    counted = _count(config, located, traits, tokenizer, window_slots)
    if memory and counted.largest_slots > memory.max_slots and len(group) > 1:  # then they are run one after the other
        return _of_model(config, operators, located, device, [located])
    if memory:  # again, as a run plans it: with what reading the data leaves in the process, and the longest transcript
        slots = counted.largest_slots if counted.largest_slots > window_slots else MIN_WINDOW_SLOTS
        memory = _memory(config, operators, group, config.window_slots, slots)
    peak, shares = _rate(config, operators, device)
    streamed = memory is not None and memory.weights == "streamed"
    passes = counted.num_windows if streamed else 1
    base = stored_size(replace(located, adapter=None), num_params)[0]  # which is read once for all in step
    # Layers are packed while others run.
    loaded = traits.vocab_size * traits.hidden_size if streamed else _num_prepared(traits, operators, group, num_params)
    operand, plain = 4 if operators.lane is Lane.FP32 else 2, stored >= 1.9 * num_params
    seconds = {
        "start": START_SECONDS,
        "load": tokenizer_seconds + HASH_NS * 1e-9 * stored + _pack_seconds(loaded, operand, plain, device),
        "read_encode": counted.seconds,
        "engine": _engine_seconds(counted.required, peak, shares),
    }
    parts = _device_memory(traits, operators, num_params, window_slots) if memory is None else dict(memory.bytes_of)
    return Forecast(
        model_id=located.model_id,
        device=device.name if device else "this machine",
        traits=traits,
        num_params=num_params,
        counted=counted,
        memory=parts,
        weights=memory.weights if memory else "resident",
        window_slots=memory.window_slots if memory else window_slots,
        disk_bytes=passes * (stored - base + base // len(group)),
        peak_gflop_per_s=peak,
        shares=shares,
        seconds=seconds,
        num_in_step=len(group),
        fits=device is None or sum(parts.values()) <= device.memory_bytes,
    )


DEVICE_WINDOW_SLOTS = 65_536


def _num_prepared(traits: Traits, operators: Operators, group: Sequence[Located], num_params: int) -> int:
    """Weights that are prepared for a model: what it has in common with others in step is shared out among them."""
    together = taken_together(group, traits, operators)
    if together is None:
        return num_params
    beside_layers = (1 + together.num_heads) * traits.vocab_size * traits.hidden_size
    return (numbers_together(traits, together) + beside_layers) // together.num_models


def _count(config: ScoreConfig, located: Located, traits: Traits, tokenizer: Tokenizer, slots: int) -> Counted:
    """Every window of the run, planned and counted."""
    started = time.perf_counter()
    reader = TranscriptReader(config.sources, read_options(config))
    renderer = Renderer(conditions_of(config.conditions, ()), Setting(Protocol(config.protocol), config.seed))
    renderer = renderer.with_pools(reader)
    renderer = renderer.with_template(chat_template_of(located) if renderer.needs_template else None)
    limits = Limits(config.context_limit, traits.max_positions)
    works = prepared(iter(reader), renderer, tokenizer, limits, num_workers=config.num_workers)
    counted, shape = Counted(), model_shape(traits)
    for window in windows(works, _requests, slots, share=config.share):
        plan = window.plan()
        counted.num_windows += 1
        counted.num_transcripts += len(window.items)
        counted.num_responses += sum(work.transcript.num_responses for work in window.items)
        counted.num_tokens += plan.num_request_tokens
        for batch in plan.batches:
            counted.num_unique += len(batch.token_ids_T)
            counted.num_entries += len(batch.rows_N)
            counted.largest_slots = max(counted.largest_slots, batch.pages.num_pages * PAGE_SLOTS)
            counted.required += required_flop(batch, shape)
    counted.seconds = time.perf_counter() - started
    return counted


def _requests(work: Work) -> Any:
    return work.requests


def _rate(config: ScoreConfig, operators: Operators, device: Device | None) -> tuple[float, Mapping[str, float]]:
    if device is not None:
        return 1e3 * device.tflop_per_s(config.lane), dict.fromkeys((*SHARES, "delta_rule"), DEVICE_SHARE)
    peak = peak_of(operators)
    if peak is None:
        raise UsageError(
            "a forecast needs native operators on the CPU, whose peak can be measured; leave out --backend, or name a GPU by "
            "--device, as h100"
        )
    return peak, SHARES | {"delta_rule": DELTA_RULE_SHARE[Lane(config.lane)]}


def _engine_seconds(required: RequiredFlop, peak_gflop_per_s: float, shares: Mapping[str, float]) -> float:
    """What is spared is of linear and attention, nearly all of it linear."""
    flop_of = {
        "linear": required.linear - required.spared,
        "attention": required.attention,
        "head": required.head,
        "delta_rule": required.delta_rule,
    }
    return sum(flop / shares[part] for part, flop in flop_of.items()) / peak_gflop_per_s / 1e9


def _pack_seconds(num_weights: int, operand_bytes: int, plain: bool, device: Device | None) -> float:
    """Twice as many bytes take twice as long: it is memory that is waited for."""
    nanoseconds = LOAD_NS["plain" if plain else "quantised"] * operand_bytes / 2
    return num_weights * nanoseconds * 1e-9 / (1 if device else torch.get_num_threads())


def _device_memory(traits: Traits, operators: Operators, num_params: int, window_slots: int) -> dict[str, int]:
    """On a GPU: weights in the lane's type; a window's residual, keys and values, and the largest intermediates."""
    operand = 4 if operators.lane is Lane.FP32 else 2
    D, KE = traits.hidden_size, traits.num_kv_heads * traits.head_dim
    slot = 4 * 2 * D + operand * 2 * KE + operand * 3 * traits.num_heads * traits.head_dim
    return {"weights": operand * num_params, "window": slot * window_slots}
