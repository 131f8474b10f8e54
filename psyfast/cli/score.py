"""`psyfast score`: a run, and what it shows when it is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from psyfast.cli.application import interruptible, terminal
from psyfast.cli.parameters import (
    DEFAULT_MODEL,
    Adapters,
    Backend,
    Conditions,
    ContextLimit,
    Data,
    DataRevision,
    Device,
    FromManifest,
    IsaOption,
    Json,
    LaneOption,
    Limit,
    MemoryLimit,
    Models,
    NoJoin,
    NoShare,
    NoSparse,
    OnBadRowOption,
    OptionsFrom,
    Out,
    PerToken,
    Protocol,
    Resume,
    Revision,
    Seed,
    Studies,
    Subset,
    Threads,
    Weights,
    WindowSlots,
    Workers,
    models,
    names,
    refuse_others,
)
from psyfast.errors import UsageError

if TYPE_CHECKING:
    from psyfast.config import OnBadRow, ScoreConfig
    from psyfast.store.reading import Comparison
    from psyfast.store.run_folder import RunFolder


def score(
    context: typer.Context,
    data: Data = None,
    model: Models = None,
    adapter: Adapters = None,
    out: Out = None,
    protocol: Protocol = "exact",
    lane: LaneOption = "bf16",
    resume: Resume = False,
    from_manifest: FromManifest = None,
    condition: Conditions = None,
    study: Studies = None,
    subset: Subset = None,
    limit: Limit = None,
    on_bad_row: OnBadRowOption = "error",
    context_limit: ContextLimit = None,
    threads: Threads = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    revision: Revision = None,
    data_revision: DataRevision = None,
    seed: Seed = 0,
    options: OptionsFrom = "data",
    per_token: PerToken = False,
    workers: Workers = 0,
    memory_limit: MemoryLimit = None,
    weights: Weights = "auto",
    window_slots: WindowSlots = None,
    isa: IsaOption = None,
    no_share: NoShare = False,
    no_sparse: NoSparse = False,
    no_join: NoJoin = False,
    as_json: Json = False,
) -> None:
    """Score every marked response of DATA under a model, into a run folder."""
    if out is None:
        raise UsageError("no folder to write to was named: give -o RUN")
    if from_manifest is not None:
        allowed = {"from_manifest", "out", "resume", "as_json"}
        refuse_others(context, allowed, "--from-manifest says itself what to score")
        _score_again(from_manifest, out, resume=resume, as_json=as_json)
        return
    from psyfast.config import ScoreConfig
    from psyfast.model.load.locate import with_adapters

    if options not in ("data", "auto"):
        raise UsageError(f"--options is '{options}', expected one of data, auto")
    config = ScoreConfig(
        models=with_adapters(models(model) or (DEFAULT_MODEL,), models(adapter)),
        sources=tuple(data or []),
        protocol=protocol,
        lane=lane,
        backend=backend,
        device=device,
        revision=revision,
        data_revision=data_revision,
        conditions=names(condition) or ("plain",),
        studies=names(study),
        subset=subset,
        limit=limit,
        on_bad_row=cast("OnBadRow", on_bad_row),
        context_limit=context_limit,
        options=options,
        per_token=per_token,
        isa=isa,
        share=not no_share,
        sparse=not no_sparse,
        join_segments=not no_join,
        memory_limit=memory_limit,
        weights=weights,
        window_slots=window_slots,
        threads=threads,
        num_workers=workers,
        seed=seed,
    )
    _score(config, out, resume=resume, as_json=as_json)


def _score(config: ScoreConfig, out: Path, *, resume: bool, as_json: bool) -> None:
    from psyfast.inputs import find_inputs

    inputs = find_inputs(config, out, resume=resume)  # before torch is loaded: a slip in a name answers at once
    from psyfast.report.progress import Stopper, reporting
    from psyfast.scoring import score_run

    stopper = Stopper()
    with interruptible(), stopper, reporting(stopper.arm) as on_progress:
        run = score_run(inputs, on_progress=on_progress, should_stop=stopper.is_asked)
    _show_run(run, as_json=as_json)


def _score_again(manifest: Path, out: Path, *, resume: bool, as_json: bool) -> None:
    from psyfast.api import score_again
    from psyfast.report.progress import Stopper, reporting
    from psyfast.store.manifest import arithmetic_differences
    from psyfast.store.run_folder import read_manifest

    path = manifest / "manifest.json" if manifest.is_dir() else manifest
    stopper = Stopper()
    with interruptible(), stopper, reporting(stopper.arm) as on_progress:
        run, comparison = score_again(path, out, resume=resume, on_progress=on_progress, should_stop=stopper.is_asked)
    reasons = arithmetic_differences(read_manifest(path), run.read_manifest())
    _show_run(run, as_json=as_json, comparison=comparison, reasons=reasons)
    if comparison is None:
        typer.echo(f"psyfast: nothing was compared: no responses lie beside {path}", err=True)
    elif not comparison.same_bits:
        raise typer.Exit(1)


def _show_run(
    run: RunFolder, *, as_json: bool, comparison: Comparison | None = None, reasons: Sequence[str] = ()
) -> None:
    """The table on standard output, or everything as one JSON document."""
    from psyfast.metrics.summary import summarise
    from psyfast.report.score_table import footnotes, score_table

    rows = summarise(run)
    manifest = run.read_manifest()
    if as_json:
        document: dict[str, Any] = {"run": str(run.path), "summary": [asdict(row) for row in rows]}
        document |= {name: manifest[name] for name in ("conditions", "flags", "tokens", "seconds")} | {
            "peak": manifest.get("peak")
        }
        if comparison is not None:
            same = {"same_bits": comparison.same_bits, "differences": list(reasons)}
            document["comparison"] = {**asdict(comparison), **same}
        typer.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    console = terminal()
    console.print(score_table(rows))
    for note in [*footnotes(rows), *_data_notes(manifest), _arithmetic_note(manifest)]:
        console.print(note, style="dim", highlight=False)
    if comparison is not None:
        console.print(_verdict(comparison, reasons), highlight=False)
    console.print(f"\nResults: {run.path}", highlight=False, soft_wrap=True)


def _data_notes(manifest: dict[str, Any]) -> list[str]:
    """What was skipped or mended while reading, a sentence a kind."""
    from psyfast.report.score_table import left_out_notes, warning_text

    data = manifest["data"]
    notes = left_out_notes(manifest.get("conditions", {}), data["num_transcripts"])
    if data.get("num_outside_subset"):
        notes.append(f"data: the subset leaves out {data['num_outside_subset']:,} transcripts")
    if data.get("too_small_for_subset"):
        studies = ", ".join(data["too_small_for_subset"])
        notes.append(f"data: studies of fewer than 10 participants, of which none is in the subset: {studies}")
    notes += [f"data: {warning_text(kind)}: {count}" for kind, count in sorted(data["warnings"].items())]
    if manifest["status"] == "partial":
        notes.append(f"not finished: {', '.join(manifest['unfinished'])}; --resume with these models adds the rest")
    if data["skipped"]:
        notes.append(f"data: {len(data['skipped'])} rows were skipped; manifest.json lists them")
    return notes


def _arithmetic_note(manifest: dict[str, Any]) -> str:
    """Which backend computed what."""
    used = manifest["arithmetic"]
    by_backend: dict[str, list[str]] = {}
    every_traits = [entry["traits"] for entry in manifest["models"].values()]
    for operator, backend in used["operators"].items():
        trait = {"delta_rule": "delta", "experts": "experts"}.get(operator)
        if trait and not any(traits.get(trait) for traits in every_traits):
            continue  # no model here has such layers
        by_backend.setdefault(backend if backend != "cpu" else f"cpu ({used['isa']})", []).append(operator)
    backends = "; ".join(f"{', '.join(operators)}: {backend}" for backend, operators in by_backend.items())
    threads = f"{used['threads']} thread{'s' if used['threads'] > 1 else ''}"
    return (
        f"computed in {used['lane']} on {used['device']}, {threads}{_peak_note(manifest.get('peak', {}))}; {backends}"
    )


def _peak_note(peak: dict[str, Any]) -> str:
    """How near the engine came to the machine's peak in the last session, where both are known."""
    if peak.get("share") is None:
        return ""
    return f", at {peak['share']:.0%} of its peak of {peak['gflop_per_s']:,.0f} GFLOP/s"


def _verdict(comparison: Comparison, reasons: Sequence[str]) -> str:
    if comparison.same_bits:
        return f"The same bits in all {comparison.num_rows:,} rows."
    because = f"\nThe two runs differ in {'; '.join(reasons)}." if reasons else ""
    return (
        f"Not the same bits: of {comparison.num_rows:,} rows {comparison.num_different:,} differ "
        f"(largest NLL difference {comparison.max_nll_difference:.2g} nats), {comparison.num_only_in_one:,} are in one run only.{because}"
    )
