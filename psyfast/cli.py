"""The command line: `psyfast score | audit | metrics | pairs | sample | doctor`.

Heavy imports stand inside the commands, so that --help and errors of usage answer at once.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from psyfast import __version__
from psyfast.errors import PsyfastError, RunError, RunInterruptedError, UsageError

if TYPE_CHECKING:
    from psyfast.config import OnBadRow, ScoreConfig
    from psyfast.data.transcripts import ReadOptions
    from psyfast.store.reading import Comparison
    from psyfast.store.run_folder import RunFolder


class _Commands(TyperGroup):
    """All commands. Ctrl-C leaves them as our own error: typer would exit with 130, without a word."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _interruptible("stopped"):
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _interruptible("stopped; a run that was begun goes on with --resume"):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Score human responses under causal language models, exactly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

DEFAULT_MODEL = "smollm2-135m-instruct"

Data = Annotated[
    list[str] | None,
    typer.Argument(metavar="DATA", help="Transcripts: .jsonl[.gz|.zip], .parquet, a folder of studies, a data set id."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Alias, Hugging Face folder, .gguf file or hub id; several times or as a comma list. [default: smollm2-135m-instruct]",
    ),
]
Protocol = Annotated[str, typer.Option(metavar="PROTOCOL", help="How responses are found: exact | paper.")]
LaneOption = Annotated[str, typer.Option("--lane", metavar="LANE", help="Arithmetic: bf16 | fp32.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="The run folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
FromManifest = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Make the run of this manifest.json again, into --out, and compare the bits."),
]
Studies = Annotated[
    list[str] | None,
    typer.Option("--study", metavar="STUDY", help="Only this study; several times or as a comma list."),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="At most so many transcripts.")]
OnBadRowOption = Annotated[str, typer.Option(metavar="ACTION", help="A row that cannot be read: error | skip.")]
ContextLimit = Annotated[int | None, typer.Option(metavar="N", help="Tokens of context, instead of the model's own.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Threads of the CPU. [default: all cores]")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps.")]
Backend = Annotated[str, typer.Option(metavar="BACKEND", help="auto | reference | cpu.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a model from the hub.")]
DataRevision = Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a data set from the hub.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of whatever is drawn.")]
OptionsFrom = Annotated[
    str, typer.Option("--options", metavar="SOURCE", help="Choice sets: data | auto (found where the data bring none).")
]
PerToken = Annotated[bool, typer.Option("--per-token", help="Also each response's token ids and their NLLs.")]
Workers = Annotated[int, typer.Option(metavar="N", help="Processes that tokenise, beside this one.")]
WindowSlots = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens planned and run together. [default: 16384, more or less as memory allows]"),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Of the whole process: 3GB, 2.5GiB, or bytes. [default: the memory at hand]"),
]
Weights = Annotated[
    str,
    typer.Option(metavar="MODE", help="auto | resident | streamed (read layer by layer, for models beyond memory)."),
]
IsaOption = Annotated[
    str | None, typer.Option("--isa", metavar="LEVEL", help="Native level: avx512_bf16 | avx512 | avx2 | portable.")
]
NoSparse = Annotated[
    bool, typer.Option("--no-sparse", help="Compute rows that nothing depends on, too, for comparison.")
]
NoJoin = Annotated[bool, typer.Option("--no-join", help="Keep short branches apart in attention, for comparison.")]
NoShare = Annotated[bool, typer.Option("--no-share", help="Compute shared prefixes anew each time, for comparison.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def score(
    context: typer.Context,
    data: Data = None,
    model: Models = None,
    out: Out = None,
    protocol: Protocol = "exact",
    lane: LaneOption = "bf16",
    resume: Resume = False,
    from_manifest: FromManifest = None,
    study: Studies = None,
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
        _refuse_others(context, allowed, "--from-manifest says itself what to score")
        _score_again(from_manifest, out, resume=resume, as_json=as_json)
        return
    from psyfast.config import ScoreConfig

    if options not in ("data", "auto"):
        raise UsageError(f"--options is '{options}', expected one of data, auto")
    config = ScoreConfig(
        models=_models(model) or (DEFAULT_MODEL,),
        sources=tuple(data or []),
        protocol=protocol,
        lane=lane,
        backend=backend,
        device=device,
        revision=revision,
        data_revision=data_revision,
        studies=_names(study),
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
    with _interruptible(), stopper, reporting(stopper.arm) as on_progress:
        run = score_run(inputs, on_progress=on_progress, should_stop=stopper.is_asked)
    _show_run(run, as_json=as_json)


@contextmanager
def _interruptible(
    message: str = "stopped; what was written is kept, and --resume goes on from there",
) -> Iterator[None]:
    """Ctrl-C, where nothing is worth waiting for, as one line and exit code 1."""
    try:
        yield
    except KeyboardInterrupt:
        raise RunInterruptedError(message) from None


def _refuse_others(context: typer.Context, allowed: set[str], because: str) -> None:
    """UsageError naming whatever was asked for that has no bearing, and why."""
    given = [
        parameter.opts[0] if parameter.opts[0].startswith("-") else "DATA"
        for parameter in context.command.params
        if parameter.name not in allowed
        and parameter.name is not None
        and str(context.get_parameter_source(parameter.name)).endswith("COMMANDLINE")
    ]
    if given:
        raise UsageError(f"{because}; leave out {', '.join(given)}")


def _score_again(manifest: Path, out: Path, *, resume: bool, as_json: bool) -> None:
    from psyfast.api import score_again
    from psyfast.report.progress import Stopper, reporting
    from psyfast.store.manifest import arithmetic_differences
    from psyfast.store.run_folder import read_manifest

    path = manifest / "manifest.json" if manifest.is_dir() else manifest
    stopper = Stopper()
    with _interruptible(), stopper, reporting(stopper.arm) as on_progress:
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
        document |= {name: manifest[name] for name in ("flags", "tokens", "seconds")} | {"peak": manifest.get("peak")}
        if comparison is not None:
            same = {"same_bits": comparison.same_bits, "differences": list(reasons)}
            document["comparison"] = {**asdict(comparison), **same}
        typer.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    console = _console()
    console.print(score_table(rows))
    for note in [*footnotes(rows), *_data_notes(manifest), _arithmetic_note(manifest)]:
        console.print(note, style="dim", highlight=False)
    if comparison is not None:
        console.print(_verdict(comparison, reasons), highlight=False)
    console.print(f"\nResults: {run.path}", highlight=False, soft_wrap=True)


def _data_notes(manifest: dict[str, Any]) -> list[str]:
    """What was skipped or mended while reading, a sentence a kind."""
    from psyfast.report.score_table import warning_text

    data = manifest["data"]
    notes = [f"data: {warning_text(kind)}: {count}" for kind, count in sorted(data["warnings"].items())]
    if manifest["status"] == "partial":
        notes.append(f"not finished: {', '.join(manifest['unfinished'])}; --resume with these models adds the rest")
    if data["skipped"]:
        notes.append(f"data: {len(data['skipped'])} rows were skipped; manifest.json lists them")
    return notes


def _arithmetic_note(manifest: dict[str, Any]) -> str:
    """Which backend computed what."""
    used = manifest["arithmetic"]
    by_backend: dict[str, list[str]] = {}
    for operator, backend in used["operators"].items():
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


@app.command()
def audit(
    context: typer.Context,
    data: Data = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", metavar="MODEL", help="A model's name; only its tokenizer is loaded.")
    ] = DEFAULT_MODEL,
    study: Studies = None,
    limit: Limit = None,
    on_bad_row: OnBadRowOption = "error",
    context_limit: ContextLimit = None,
    revision: Revision = None,
    trials: Annotated[bool, typer.Option("--trials", help="Instead: show how texts are cut into trials.")] = False,
    options: Annotated[
        bool, typer.Option("--options", help="Instead: show the choice sets of --options auto, and option letters.")
    ] = False,
    examples: Annotated[int, typer.Option(metavar="N", help="Examples a study and finding.")] = 2,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Show, for each study, what each protocol finds, misses, merges or truncates; or its trials and choice sets."""
    from psyfast.api import audit_transcripts
    from psyfast.data.transcripts import ReadOptions
    from psyfast.report.audit_table import print_audit

    if not data:
        raise UsageError("no transcripts were named: give a file, a folder of studies or a data set id")
    if examples < 0:
        raise UsageError(f"--examples is {examples}, expected 0 or more")
    read = ReadOptions(studies=_names(study), limit=limit, on_bad_row=cast("OnBadRow", on_bad_row))
    if trials or options:
        allowed = {"data", "study", "limit", "on_bad_row", "trials", "options", "examples", "as_json"}
        _refuse_others(context, allowed, "--trials and --options look at the text alone")
        _audit_text(data, read, examples, trials=trials, options=options, as_json=as_json)
        return
    report = audit_transcripts(
        data,
        tokenizer,
        context_limit=context_limit,
        revision=revision,
        num_examples=examples,
        num_workers=workers,
        read=read,
    )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_audit(report, _console())


def _audit_text(
    data: list[str], read: ReadOptions, examples: int, *, trials: bool, options: bool, as_json: bool
) -> None:
    from psyfast.api import audit_trials_and_options
    from psyfast.report.text_audit_table import print_text_audit

    report = audit_trials_and_options(data, num_examples=examples, read=read)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_text_audit(report, _console(), trials=trials, options=options)


GroupBy = Annotated[
    str, typer.Option("--group-by", metavar="COLUMN", help="Column of participants.parquet that makes an experiment.")
]
AsPublished = Annotated[bool, typer.Option("--as-published", help="Aggregate as the Psych-201 study does.")]
PairsFile = Annotated[Path | None, typer.Option("--pairs", metavar="FILE", help="TOML file of more pairs and models.")]


@app.command()
def metrics(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN...", help="Finished run folders.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Write every table there, as CSV and Parquet.")
    ] = None,
    as_published: AsPublished = False,
    group_by: GroupBy = "study",
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Parquet file of a model of your own: the key's columns and nll_nats."),
    ] = None,
    categories: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV of experiments and their categories.")
    ] = None,
    pairs: PairsFile = None,
    margin: Annotated[
        float, typer.Option("--margin", metavar="D", help="Of the equivalence test for personas, in units of d.")
    ] = 0.05,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compute scores, effect sizes and intervals from the results of one or several runs."""
    from psyfast.metrics.compute import compute_metrics
    from psyfast.metrics.config import MetricsConfig
    from psyfast.metrics.write import as_document, require_usable, write_tables
    from psyfast.report.metrics_table import print_metrics

    if not runs:
        raise UsageError("no run folder was named: give one or several that psyfast score wrote")
    config = MetricsConfig(
        group_by=group_by,
        as_published=as_published,
        baseline=baseline,
        categories=categories,
        pairs=pairs,
        margin=margin,
        seed=seed,
    )
    if out is not None:
        require_usable(out)
    computed = compute_metrics(runs, config)
    written = write_tables(computed, out) if out is not None else ()
    if as_json:
        typer.echo(json.dumps(as_document(computed), indent=1, ensure_ascii=False, allow_nan=False))
        return
    console = _console()
    print_metrics(computed, console)
    if written:
        console.print(f"\nTables: {out} ({len(written)} files)", highlight=False, soft_wrap=True)


@app.command()
def pairs(
    file: PairsFile = None,
    models: Annotated[bool, typer.Option("--models", help="Show the models instead of the pairs.")] = False,
    as_json: Json = False,
) -> None:
    """Show the study's base and post-trained pairs and its models, and those of a file of your own."""
    from psyfast.metrics.pairs import load_pairs
    from psyfast.report.pairs_table import model_table, pair_document, pair_table

    known = load_pairs(file)
    if as_json:
        typer.echo(json.dumps(pair_document(known), indent=1, ensure_ascii=False))
        return
    _console().print(model_table(known) if models else pair_table(known))


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to write STUDY/prompts.jsonl.")],
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also over other files of the same names.")] = False,
) -> None:
    """Write the synthetic sample data: three tasks whose true choice probabilities are known."""
    from psyfast.data.sample import write_sample

    try:
        paths = write_sample(folder, seed=seed, overwrite=overwrite)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}); name a folder on a disk with space") from error
    for path in paths:
        typer.echo(str(path))


@app.command()
def doctor(
    lane: LaneOption = "bf16",
    device: Device = "cpu",
    backend: Backend = "auto",
    peak: Annotated[bool, typer.Option("--peak", help="Also measure how fast matrices are multiplied here.")] = False,
    as_json: Json = False,
) -> None:
    """Show what this machine has and what psyfast would use."""
    from psyfast.doctor import PEAK_NOTES, diagnose, doctor_table, measure_peak, peak_table

    findings = diagnose(lane=lane, device=device, backend=backend)
    if peak:
        findings["peak"] = measure_peak()
    if as_json:
        typer.echo(json.dumps(findings, indent=1))
        return
    console = _console()
    console.print(doctor_table(findings))
    if peak:
        console.print()
        console.print(peak_table(findings["peak"]))
        for note in PEAK_NOTES:
            console.print(note, style="dim", highlight=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"psyfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    _set_log_level()


def _set_log_level() -> None:
    """PSYFAST_LOG sets the level of messages on standard error; a bad value raises."""
    level = os.environ.get("PSYFAST_LOG", "warning").upper()
    known = ("DEBUG", "INFO", "WARNING", "ERROR")
    if level not in known:
        raise UsageError(f"PSYFAST_LOG='{level.lower()}' is not a level: use one of {', '.join(known).lower()}")
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def _names(values: list[str] | None) -> tuple[str, ...]:
    """Names given several times or as comma lists; an empty one stays, to be refused."""
    return tuple(name.strip() for value in values or [] for name in value.split(","))


def _models(values: list[str] | None) -> tuple[str, ...]:
    """Models given several times or as comma lists; a path that is there keeps its commas."""
    return tuple(
        name for value in values or [] for name in ((value,) if value and Path(value).exists() else _names([value]))
    )


def _console() -> Any:
    from rich.console import Console

    return Console()


def main() -> None:
    """Entry point: 0 done, 2 bad usage or bad input, 1 anything else."""
    # Read once, when torch is loaded: threads that wait for work must not spin where other programs want the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without R² gets R?, not a traceback
    try:
        app()
    except PsyfastError as error:
        typer.echo(f"psyfast: {error}", err=True)
        if isinstance(error.__context__, KeyboardInterrupt):
            _leave_interrupted()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # outside of any command
        typer.echo("psyfast: stopped", err=True)
        _leave_interrupted()
    except BrokenPipeError:
        # The reader of our output went away (`| head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # standard output on a full disk, say
        typer.echo(f"psyfast: {error}", err=True)
        sys.exit(1)


def _leave_interrupted() -> NoReturn:
    """Exit with 1, at once: after Ctrl-C inside generated code (a dataclass being made) Python's own exit would be
    that of a process killed by the signal.
    """
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
