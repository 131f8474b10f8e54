"""Scoring from Python.

import psyfast

result = psyfast.score("smollm2-135m-instruct", "my_experiment.jsonl")
result.to_pandas().groupby("study").nll_nats.mean()
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyfast.config import ScoreConfig
from psyfast.data.audit import AuditReport, audit
from psyfast.data.choice_sets import ChooseOptions
from psyfast.data.conditions.own import OwnFunction
from psyfast.data.records import Transcript
from psyfast.data.text_audit import TextAudit, audit_text
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.transcripts import ReadOptions, TranscriptReader, transcripts_from_rows
from psyfast.data.trials import TrialNumbers
from psyfast.errors import RunError, UsageError
from psyfast.inputs import find_inputs, read_options
from psyfast.metrics.comparison import CompareGoal, Look, ModelComparison
from psyfast.metrics.summary import StudySummary, summarise
from psyfast.model.load.config_file import context_length
from psyfast.model.load.locate import locate
from psyfast.model.load.tokenizer import load_tokenizer
from psyfast.report.progress import OnProgress
from psyfast.store.reading import Comparison, compare_runs, read_participants, responses_dataset
from psyfast.store.run_folder import RunFolder, read_manifest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MEMORY = "<memory>"

Transcripts = str | Path | Iterable[str | Path] | Iterable[Mapping[str, Any]] | Iterable[Transcript]


@dataclass(frozen=True, repr=False)
class ScoreResult:
    """A finished run's tables. `folder` is the run's folder, None where none was asked for.

    The responses table has a row for every marked response (its columns stand in docs/results.md), and the columns
    `model` and `condition`. summary: one row a model, condition and study, and one over all studies.
    """

    responses: pa.Table
    participants: pa.Table
    summary: tuple[StudySummary, ...]
    manifest: Mapping[str, Any]
    folder: Path | None

    def __repr__(self) -> str:
        models = ", ".join(dict.fromkeys(row.model_id for row in self.summary))
        return f"ScoreResult({self.responses.num_rows} responses; models: {models}; folder: {self.folder})"

    def to_arrow(self) -> pa.Table:
        """The responses as a pyarrow table."""
        return self.responses

    def to_pandas(self) -> pd.DataFrame:
        """The responses as a pandas data frame; needs pandas (`pip install psyfast[pandas]`)."""
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise UsageError("pandas is not installed: pip install 'psyfast[pandas]', or use to_arrow()") from error
        frame: pd.DataFrame = self.responses.to_pandas()
        return frame


def score(
    model: str | Iterable[str],
    transcripts: Transcripts,
    *,
    protocol: str = "exact",
    lane: str = "bf16",
    options: str | ChooseOptions = "data",
    conditions: str | Iterable[str | OwnFunction] = ("plain",),
    trials: TrialNumbers | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> ScoreResult:
    """Score every marked response of some transcripts under one model or several.

    model: the alias `smollm2-135m-instruct`, a local Hugging Face folder, a `.gguf` file, a hub id; or several. `BASE +
    ADAPTER` (with the spaces) is a model with a LoRA adapter over it.
    transcripts: a path (file, folder of studies), a data set id, several of these, or rows as dicts with a `text` (as
    in a `.jsonl` file) or `Transcript`s. options: "data" for the field `options`; "auto" to find the choice sets of
    transcripts that bring none (docs/options-and-trials.md); or a function of a `Transcript` that returns one list of
    options, or one (or None) for each response. conditions: names, and functions of your own from a `Transcript` to a
    `RenderedText` (docs/conditions.md). trials: a function that returns the number of each response's trial. out: the run
    folder to write and keep (docs/results.md). settings: the other fields of `psyfast.config.ScoreConfig`.

    Raises a PsyfastError (UsageError, DataError, ModelError, RunError, BackendError) for what the caller can mend.
    """
    from psyfast.scoring import score_run  # loads torch, which audit_transcripts does without

    models = (model,) if isinstance(model, str) else tuple(model)
    wanted = (
        tuple(conditions) if isinstance(conditions, Iterable) and not isinstance(conditions, str) else (conditions,)
    )
    condition_names = tuple(one for one in wanted if isinstance(one, str))
    functions = tuple(one for one in wanted if not isinstance(one, str))
    sources, rows = _sources(transcripts)
    try:
        named = "callable" if callable(options) else options
        settings = {"models": models, "sources": sources, "protocol": protocol, "lane": lane, **settings}
        of_trials = "data" if trials is None else "callable"
        config = ScoreConfig(options=named, trials=of_trials, conditions=condition_names, **settings)
    except TypeError as error:
        raise UsageError(f"score(): {error}; settings are the fields of psyfast.config.ScoreConfig") from error
    choose = options if callable(options) else None
    reader = None if rows is None else transcripts_from_rows(rows, MEMORY, read_options(config, choose))

    def run_into(folder: Path) -> RunFolder:
        inputs = find_inputs(
            config,
            folder,
            resume=resume and out is not None,
            reader=reader,
            choose_options=choose,
            decide_trials=trials,
            own_conditions=functions,
        )
        return score_run(inputs, on_progress=on_progress)

    if out is not None:
        return load_result(run_into(Path(out)).path)
    with tempfile.TemporaryDirectory(prefix="psyfast-") as temporary:
        return load_result(run_into(Path(temporary) / "run").path, keep=False)


def compare(
    base: str,
    post: str,
    transcripts: Transcripts,
    *,
    until: float,
    level: float = 0.95,
    stop_at_sign: bool = True,
    max_participants: int | None = None,
    every: int | None = None,
    protocol: str = "exact",
    lane: str = "bf16",
    options: str | ChooseOptions = "data",
    condition: str | OwnFunction = "plain",
    trials: TrialNumbers | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_look: Callable[[Look, int], None] | None = None,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> ModelComparison:
    """Score participants in random order under two models until their difference is known well enough (docs/compare.md).

    What is estimated: the unweighted mean over studies of the mean over participants of nll_post − nll_base, in nats a
    response. It stops where the half-width of an interval that holds at all looks at once is below `until`, where the
    interval excludes 0 (unless stop_at_sign is False), after max_participants, or when all are scored. every: participants
    between two looks (None: one of each study). condition: what both models are shown (docs/conditions.md). on_look: called after each look with it and the number of participants in
    all. The rest as in `score`; the setting `seed` draws another order.

    Raises a PsyfastError for what the caller can mend.
    """
    from psyfast.comparison import compare_run

    goal = CompareGoal(until, level, stop_at_sign, max_participants, every)
    sources, rows = _sources(transcripts)
    try:
        settings = {"models": (base, post), "sources": sources, "protocol": protocol, "lane": lane, **settings}
        config = ScoreConfig(
            options="callable" if callable(options) else options,
            trials="data" if trials is None else "callable",
            conditions=(condition,) if isinstance(condition, str) else (),
            **settings,
        )
    except TypeError as error:
        raise UsageError(f"compare(): {error}; settings are the fields of psyfast.config.ScoreConfig") from error
    choose = options if callable(options) else None
    reader = None if rows is None else transcripts_from_rows(rows, MEMORY, read_options(config, choose))
    with tempfile.TemporaryDirectory(prefix="psyfast-") as temporary:
        inputs = find_inputs(
            config,
            Path(temporary) / "run" if out is None else Path(out),
            resume=resume and out is not None,
            reader=reader,
            choose_options=choose,
            decide_trials=trials,
            own_conditions=() if isinstance(condition, str) else (condition,),
        )
        found = compare_run(inputs, goal, on_progress=on_progress, on_look=on_look)
    return found if out is not None else replace(found, folder=None)


def load_result(folder: str | Path, *, keep: bool = True) -> ScoreResult:
    """A finished run's tables, read back."""
    run = RunFolder(Path(folder))
    manifest = run.read_manifest()
    responses = responses_dataset(run).to_table()
    return ScoreResult(responses, read_participants(run), summarise(run), manifest, run.path if keep else None)


def score_again(
    manifest_path: Path,
    out: Path,
    *,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[RunFolder, Comparison | None]:
    """Make the run of a manifest again into `out`, and compare the two; None where its responses are not beside it.

    Raises RunError where the run read its transcripts from memory.
    """
    from psyfast.scoring import score_run

    manifest = read_manifest(manifest_path)
    for key in ("config", "arithmetic", "models", "data"):
        if not isinstance(manifest.get(key), dict):
            raise RunError(f"{manifest_path}: has no '{key}'; a run that stopped before it began, or an edited file")
    if "compare" in manifest:
        raise RunError(f"{manifest_path}: its run was made by psyfast compare; make it again with that")
    config = ScoreConfig.from_dict(manifest["config"])
    if MEMORY in config.sources:
        raise RunError(f"{manifest_path}: its transcripts came from memory; score them again from Python")
    if config.options == "callable" or config.trials == "callable":
        what = "choice sets" if config.options == "callable" else "trials"
        raise RunError(f"{manifest_path}: its {what} came from a function; score it again from Python")
    for name in config.conditions:
        if manifest.get("conditions", {}).get(name, {}).get("is_own"):
            raise RunError(f"{manifest_path}: its condition '{name}' came from a function; score it again from Python")
    # The run's own number of threads and backends give its bits; its windows are kept model by model.
    used = manifest["arithmetic"]
    backends = set(used["operators"].values())
    backend = backends.pop() if len(backends) == 1 and backends <= {"reference", "triton", "cuda"} else "auto"
    config = replace(config, threads=used["threads"], backend=backend, window_slots=None)
    inputs = find_inputs(config, out, resume=resume, repeat=manifest)
    run = score_run(inputs, on_progress=on_progress, should_stop=should_stop)
    compared = compare_runs(manifest_path.parent, run.path) if RunFolder(manifest_path.parent).has_parts() else None
    return run, compared


def audit_transcripts(
    transcripts: Transcripts,
    tokenizer: str,
    *,
    context_limit: int | None = None,
    revision: str | None = None,
    num_examples: int = 2,
    num_workers: int = 0,
    read: ReadOptions | None = None,
) -> AuditReport:
    """What each protocol finds, misses, merges or truncates in each study, with examples; no weights are read.

    tokenizer: a model's name, as for `score`, of any architecture. context_limit: tokens, instead of the model's own.
    """
    sources, rows = _sources(transcripts)
    if not sources:
        raise UsageError("no transcripts were named: give a file, a folder of studies or a data set id")
    located = locate(tokenizer, revision)
    reader = TranscriptReader(sources, read) if rows is None else transcripts_from_rows(rows, MEMORY, read)
    limit = context_length(located) if context_limit is None else context_limit
    wrapped = Tokenizer(load_tokenizer(located))
    return audit(reader, wrapped, limit, num_examples=num_examples, num_workers=num_workers)


def audit_trials_and_options(
    transcripts: Transcripts, *, num_examples: int = 2, read: ReadOptions | None = None
) -> TextAudit:
    """The trials of each study, the choice sets that `options="auto"` gives and the letters that could be others.

    Counts and examples; neither a model nor a tokenizer is read.
    """
    sources, rows = _sources(transcripts)
    if not sources:
        raise UsageError("no transcripts were named: give a file, a folder of studies or a data set id")
    reader = TranscriptReader(sources, read) if rows is None else transcripts_from_rows(rows, MEMORY, read)
    return audit_text(reader, num_examples=num_examples)


def _sources(transcripts: Transcripts) -> tuple[tuple[str, ...], list[Any] | None]:
    """Names of sources, or rows from memory."""
    if isinstance(transcripts, (str, Path)):
        return (str(transcripts),), None
    if isinstance(transcripts, (Mapping, Transcript)) or not isinstance(transcripts, Iterable):
        kind = type(transcripts).__name__
        raise UsageError(f"transcripts is a {kind}, expected a path or a list: [{{'text': …}}, …]; put it into a list")
    items: list[Any] = list(transcripts)
    if items and all(isinstance(item, (str, Path)) for item in items):
        return tuple(map(str, items)), None
    return (MEMORY,), items
