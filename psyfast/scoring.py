"""A run from end to end: check the data, write the manifest, score each model, close the manifest.

Two passes over the data: the first checks every row and writes the tables of participants and transcripts, so that a
broken line is found before hours of scoring and not after; the second scores, window by window.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import torch

import psyfast
from psyfast.config import ScoreConfig
from psyfast.data.conditions.chat_template import ChatTemplate
from psyfast.errors import RunError, UsageError
from psyfast.inputs import Inputs
from psyfast.model.load.chat_template import load_chat_template
from psyfast.model.load.locate import Located
from psyfast.model.load.model import open_model
from psyfast.model_run import ModelRun, Spent, open_together, score_together
from psyfast.ops.peak import peak_of
from psyfast.ops.records import Lane
from psyfast.ops.registry import Operators, describe, resolve
from psyfast.parts import gaps
from psyfast.process_memory import TOKENIZER_BYTES, peak_bytes, planned_memory
from psyfast.report.progress import OnProgress, peak_share_of
from psyfast.scan import Scan, scan_transcripts
from psyfast.store.manifest import (
    command_line,
    library_versions,
    machine,
    require_same,
    require_same_data,
    require_same_renderings,
)
from psyfast.store.run_folder import PartRecord, RunFolder

log = logging.getLogger(__name__)


def score_run(
    inputs: Inputs, *, on_progress: OnProgress | None = None, should_stop: Callable[[], bool] | None = None
) -> RunFolder:
    """Score transcripts under models into the run's folder.

    should_stop: asked after every part; where it says yes, `RunInterruptedError` is raised, and a resumed run goes on
    from there. Raises a PsyfastError for whatever a user can mend.
    """
    config = inputs.config
    if inputs.old is not None and "compare" in inputs.old:
        raise RunError(f"{inputs.run.path}: was made by psyfast compare; go on with psyfast compare --resume")
    operators = resolve(
        config.backend, config.device, Lane(config.lane), isa=config.isa, join_segments=config.join_segments
    )
    with threads(config.threads):
        # Configuration, headers and memory of every model, before a folder is made or a row is read.
        for place in inputs.located:
            planned_memory(inputs.config, operators, *open_model(place), still_to_load=TOKENIZER_BYTES)
        with inputs.run.locked():
            # Once more, now that nobody else writes: another process may have begun or ended meanwhile.
            if inputs.old is None:
                inputs.run.require_empty()
            else:
                inputs = replace(inputs, old=inputs.run.read_manifest())
            return _score_locked(inputs, operators, on_progress, should_stop)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """So many threads of the CPU inside; None: those that there are."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _score_locked(
    inputs: Inputs, operators: Operators, on_progress: OnProgress | None, should_stop: Callable[[], bool] | None
) -> RunFolder:
    config, run, old, repeat = inputs.config, inputs.run, inputs.old, inputs.repeat
    started = time.perf_counter()
    renderer = inputs.renderer.with_pools(inputs.reader)
    asked = [_asked(renderer.names, (repeat or {}).get("models", {}).get(place.model_id)) for place in inputs.located]
    template_of = [
        chat_template_of(place) if renderer.only(names).needs_template else None
        for place, names in zip(inputs.located, asked, strict=True)
    ]
    scan = scan_transcripts(inputs.reader, renderer, distinct(template_of), run)
    manifest = started_manifest(config, operators, scan, old)
    manifest["seconds"]["scan"] += time.perf_counter() - started
    if old is not None:
        require_same(old, manifest, f"{run.path}: cannot resume")
        require_same_renderings(old, scan.conditions(), f"{run.path}: cannot resume")
    else:
        run.write_manifest(manifest)
    if repeat is not None:
        require_same_data(repeat, manifest, f"{run.path}: cannot make the run again")
    log.info("%d transcripts, %d responses; %s", scan.num_transcripts, scan.num_responses, describe(operators))
    peak = manifest["peak"]["gflop_per_s"]
    spent = Spent()
    runs = [
        ModelRun(
            config,
            operators,
            place,
            run,
            inputs.reader,
            scan.digests,
            scan.num_chars,
            scan.longest,
            (model_idx, len(inputs.located)),
            peak,
            renderer.only(asked[model_idx]),
            template_of[model_idx],
        )
        for model_idx, place in enumerate(inputs.located)
    ]
    known = (repeat or manifest)["models"]
    for group in _in_step(runs, known):
        with ExitStack() as stack:
            for model_run in group:
                stack.enter_context(closing(model_run))
            # Only a model that opened, and is the one that the run had, enters the manifest of a run that is resumed.
            entries = open_together(group, [known.get(one.located.model_id) for one in group])
            for model_run, entry in zip(group, entries, strict=True):
                model_id = model_run.located.model_id
                before = manifest["models"].get(model_id, {}).get("conditions", [])
                entry["conditions"] = list(dict.fromkeys([*before, *model_run.conditions]))
                manifest["models"][model_id] = entry
            manifest["config"]["models"] = [entry["name"] for entry in manifest["models"].values()]
            run.write_manifest(manifest)
            score_together(group, on_progress, should_stop)
        for model_run in group:
            spent = spent.plus(model_run.spent.required, model_run.spent.seconds)
    manifest["peak"].update(share_of_peak(spent, peak, operators))
    close_manifest(manifest, run, scan.num_transcripts)
    run.write_manifest(manifest)
    return run


def _in_step(runs: Sequence[ModelRun], known: Mapping[str, Any]) -> list[list[ModelRun]]:
    """The runs in groups: neighbours with one base, under different adapters, that lack the same parts and fit into memory
    together are scored in step, so that the base is read once a layer for all of them.
    """
    groups: list[list[ModelRun]] = []
    for run in runs:
        if groups and _alike(groups[-1][0], run) and _fit([*groups[-1], run], known):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _alike(one: ModelRun, other: ModelRun) -> bool:
    return (
        one.located.path == other.located.path
        and one.conditions == other.conditions
        and one.missing() == other.missing()
    )


def _fit(group: Sequence[ModelRun], known: Mapping[str, Any]) -> bool:
    """Whether models can be in memory together, in windows of one size."""
    windows = {known[one.located.model_id]["window_slots"] for one in group if one.located.model_id in known}
    if len(windows) > 1:
        return False
    lead = group[0]
    recorded = next((known[one.located.model_id] for one in group if one.located.model_id in known), None)
    try:
        lead.plan_memory(recorded, [one.located for one in group])
    except UsageError as error:
        log.info("%s: not in step with the other adapters: %s", group[-1].located.model_id, error)
        return False
    return True


def _asked(names: Sequence[str], recorded: Mapping[str, Any] | None) -> list[str]:
    """Conditions to score a model under; of a run to make again, those that it had, for models may differ in them."""
    return list(names) if recorded is None else list(recorded.get("conditions", names))


def chat_template_of(place: Located) -> ChatTemplate:
    """A model's chat template."""
    return ChatTemplate(place.name, *load_chat_template(place))


def distinct(templates: Sequence[ChatTemplate | None]) -> list[ChatTemplate]:
    """Each of them once."""
    return list({template.sha256: template for template in templates if template is not None}.values())


def _conditions(old: Mapping[str, Any] | None, scan: Scan) -> dict[str, Any]:
    """What is known of every condition, this session's and earlier ones'."""
    known: dict[str, Any] = dict(old.get("conditions", {})) if old else {}
    for name, found in scan.conditions().items():
        if "by_template" in found:
            found = {"by_template": {**known.get(name, {}).get("by_template", {}), **found["by_template"]}}
        known[name] = found
    return known


def started_manifest(
    config: ScoreConfig, operators: Operators, scan: Scan, old: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The manifest at the start; a resumed run keeps what it has and adds a session."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    before = old["config"]["conditions"] if old else []
    conditions = list(dict.fromkeys([*before, *(name for name, _ in scan.renderings)]))
    session = {
        "command": command_line(),
        "started": now,
        "psyfast": psyfast.__version__,
        "libraries": library_versions(),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "peak": {"gflop_per_s": peak_of(operators)},
    }
    started = (
        {
            "models": dict(old["models"]),
            "started": old["started"],
            "sessions": [*old["sessions"], session],
            "seconds": {"scan": old["seconds"]["scan"]},
        }
        if old
        else {"models": {}, "started": now, "sessions": [session], "seconds": {"scan": 0.0}}
    )
    return {
        **(old or {}),
        **session,
        **started,
        "status": "running",
        "config": {**config.to_dict(), "conditions": conditions},
        "conditions": _conditions(old, scan),
        "arithmetic": {**describe(operators), "threads": torch.get_num_threads()},
        "data": scan.to_dict(),
    }


def share_of_peak(spent: Spent, peak: float | None, operators: Operators) -> dict[str, float | None]:
    """What this session's windows required (see psyfast.plan.flops), and how near the engine came to the peak.

    peak: as it was measured at the start; here it is measured once more.
    """
    peak = None if peak is None else peak_of(operators, at_least=peak)
    return {
        "gflop_per_s": peak,
        "required_gflop": spent.required.total / 1e9,
        "spared_gflop": spent.required.spared / 1e9,
        "engine_seconds": spent.seconds,
        "share": peak_share_of(spent.required.total, spent.seconds, peak),
    }


def close_manifest(manifest: dict[str, Any], run: RunFolder, num_transcripts: int) -> None:
    """Totals over all parts, whoever wrote them; `partial` where an earlier session left a model unfinished."""
    seconds: Counter[str] = Counter()
    flags: dict[str, dict[str, dict[str, int]]] = {}
    tokens: dict[str, dict[str, dict[str, int]]] = {}
    unfinished: list[str] = []
    for model_id in manifest["models"]:
        for condition in manifest["models"][model_id].get("conditions", manifest["config"]["conditions"]):
            parts = run.finished_parts(model_id, condition)
            for part in parts:
                seconds.update(part.seconds)
            flags.setdefault(model_id, {})[condition] = _sum(part.flags for part in parts)
            tokens.setdefault(model_id, {})[condition] = _token_counts(parts)
            if model_id not in unfinished and any(start < (stop or num_transcripts) for start, stop in gaps(parts)):
                unfinished.append(model_id)
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    status = "partial" if unfinished else "complete"
    manifest.update(status=status, unfinished=unfinished, finished=finished, flags=flags, tokens=tokens)
    manifest["peak_rss_bytes"] = peak_bytes()
    manifest["seconds"] = {"scan": manifest["seconds"]["scan"], **seconds}


def _sum(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _token_counts(parts: Sequence[PartRecord]) -> dict[str, int]:
    return {
        "total": sum(part.num_tokens for part in parts),
        "unique": sum(part.num_unique_tokens for part in parts),
        "scored_rows": sum(part.num_scored_rows for part in parts),
    }
