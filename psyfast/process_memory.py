"""What this process has of memory and may have, and how a model's run is planned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from psyfast.config import ScoreConfig
from psyfast.errors import ModelError
from psyfast.footprint import Together, model_sizes
from psyfast.model.load.checks import check_tensors, expected_shapes
from psyfast.model.load.fused_experts import block_bytes
from psyfast.model.load.layer_parts import CommonParts
from psyfast.model.load.locate import Located
from psyfast.model.load.model import common_parts, num_heads_of, open_model
from psyfast.model.load.names import EMBEDDING
from psyfast.model.load.shared import kept_bytes
from psyfast.model.load.streamed import READ_AHEAD
from psyfast.model.load.tensors import TensorFiles
from psyfast.model.load.weights import loading_threads
from psyfast.model.traits import Traits
from psyfast.ops.registry import Operators
from psyfast.plan.memory import MemoryNeeds, MemoryPlan, plan_memory
from psyfast.plan.windows import MIN_WINDOW_SLOTS

TOKENIZER_BYTES = 100_000_000
"""What loading a tokenizer adds to the process, about: to refuse a limit that is far too small before anything is read."""
SHARE = 0.9
"""Of the memory at hand, that a run without a limit of its own may take."""


def planned_memory(
    config: ScoreConfig,
    operators: Operators,
    traits: Traits,
    files: TensorFiles,
    *,
    slots: int = MIN_WINDOW_SLOTS,
    window_slots: int | None = None,
    still_to_load: int = 0,
    together: Together | None = None,
) -> MemoryPlan:
    """Plan one model's run as things stand in this process; UsageError where the limit cannot hold it.

    ModelError where the files do not hold the model that the traits describe.

    slots: of the longest transcript. window_slots: where they are given. still_to_load: bytes that the process will have
    taken by the time that weights are read. together: the models of this base that are run in step, if there are several.
    """
    where = str(files.files[0].parent)
    check_tensors(files, traits, where)
    value_bytes = files.dtype(EMBEDDING).itemsize
    return planned_memory_of(
        config,
        operators,
        traits,
        value_bytes,
        where,
        slots=slots,
        window_slots=window_slots,
        still_to_load=still_to_load,
        together=together,
    )


def planned_memory_of(
    config: ScoreConfig,
    operators: Operators,
    traits: Traits,
    value_bytes: int,
    where: str,
    *,
    slots: int = MIN_WINDOW_SLOTS,
    window_slots: int | None = None,
    still_to_load: int = 0,
    together: Together | None = None,
) -> MemoryPlan:
    """The same of a model whose files need not be there. value_bytes: of a weight as stored; where: what errors call it."""
    limit = config.memory_limit_bytes()
    if operators.device.type == "cuda":  # the limit, and what is planned, are of the device's memory
        free = int(SHARE * torch.cuda.mem_get_info(operators.device)[0])
        limit, process_bytes, num_threads = free if limit is None else min(limit, free), 0, 0
    else:
        process_bytes, num_threads = resident_bytes() + still_to_load, torch.get_num_threads()
    needs = MemoryNeeds(
        limit_bytes=default_limit() if limit is None else limit,
        process_bytes=process_bytes,
        num_threads=num_threads,
        read_ahead=READ_AHEAD,
        slots=slots,
        window_slots=window_slots,
        layers_at_once=loading_threads(),
    )
    sizes = model_sizes(traits, operators, value_bytes, together)
    if operators.device.type != "cuda":
        sizes = replace(sizes, kept_bytes=sizes.kept_bytes + block_bytes(traits, value_bytes))
    return plan_memory(sizes, needs, config.weights, where)


def taken_together(located: Sequence[Located], traits: Traits, operators: Operators) -> Together | None:
    """What models of one base take that are run in step; None where there is only one."""
    if len(located) == 1:
        return None
    common = common_parts(located, traits)
    return Together(
        num_models=len(located),
        num_heads=num_heads_of(located),
        copies=[common.copies(layer_idx) for layer_idx in range(traits.num_layers)],
        # Memory of this process, which does not count where the device is a GPU.
        kept_bytes=0 if operators.device.type == "cuda" else _kept_bytes(located[0], traits, common),
    )


def _kept_bytes(located: Located, traits: Traits, common: CommonParts) -> int:
    try:
        files = open_model(replace(located, adapter=None))[1]
    except ModelError:  # the weights are not there: most that are quantised are read as fp32
        shapes = expected_shapes(traits)
        return kept_bytes(common.read_again(shapes), shapes, lambda name: 4)
    return kept_bytes(common.read_again(files.shapes), files.shapes, lambda name: files.dtype(name).itemsize)


def resident_bytes() -> int:
    """Memory of this process, touched pages of files included."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int | None:
    """The most that it ever was; None where the system does not say."""
    return _status("VmHWM")


def default_limit() -> int:
    """What the process has, and most of what is free beside it."""
    return resident_bytes() + int(SHARE * available_bytes())


def available_bytes(cgroups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Free memory of the system, or of the tightest cgroup that this process is in."""
    return min([int(psutil.virtual_memory().available), *_left_in_cgroups(cgroups, root)])


def _left_in_cgroups(cgroups: Path, root: Path) -> list[int]:
    """What each cgroup above this process has left: its limit less its use, of which cached files can be given back."""
    try:
        lines = cgroups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []  # not Linux
    left = []
    for line in lines:
        _, controllers, inner = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / inner.strip("/")
        for place in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            found = _left(place, *names)
            if found is not None:
                left.append(found)
    return left


def _left(group: Path, limit_name: str, use_name: str, cached_name: str) -> int | None:
    try:
        limit = (group / limit_name).read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((group / use_name).read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, int(limit) - used + int(stat.get(cached_name, 0)))
    except (OSError, ValueError):
        return None  # the root has no such files


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)
