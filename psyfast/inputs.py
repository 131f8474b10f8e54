"""What a run starts from, found and checked before anything heavy is loaded: a slip in a name costs no waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from psyfast.config import ScoreConfig
from psyfast.data.choice_sets import ChooseOptions, OptionSource
from psyfast.data.conditions.condition import Setting
from psyfast.data.conditions.own import OwnFunction
from psyfast.data.conditions.registry import conditions_of
from psyfast.data.conditions.renderer import Renderer
from psyfast.data.encoded import Protocol
from psyfast.data.transcripts import ReadOptions, TranscriptReader
from psyfast.data.trials import TrialNumbers
from psyfast.errors import UsageError
from psyfast.model.load.locate import ALIASES, WITH_ADAPTER, Located, locate
from psyfast.store.run_folder import RunFolder


@dataclass(frozen=True)
class Inputs:
    """A configuration with its transcripts and models found, and the folder that the run goes to.

    old: the manifest of the run that is resumed. repeat: that of a run to make again elsewhere.
    """

    config: ScoreConfig
    run: RunFolder
    reader: TranscriptReader
    located: tuple[Located, ...]
    renderer: Renderer
    old: Mapping[str, Any] | None = None
    repeat: Mapping[str, Any] | None = None


def find_inputs(
    config: ScoreConfig,
    out: Path,
    *,
    resume: bool = False,
    repeat: Mapping[str, Any] | None = None,
    reader: TranscriptReader | None = None,
    choose_options: ChooseOptions | None = None,
    decide_trials: TrialNumbers | None = None,
    own_conditions: Sequence[OwnFunction] = (),
) -> Inputs:
    """Find what a configuration names. reader: transcripts in memory, in place of config.sources. choose_options: the
    function that `callable` options stand for. decide_trials: numbers of each response's trial. own_conditions: functions
    whose conditions come after those of the configuration.

    Raises RunError for a folder that cannot take the run, DataError and ModelError for what is not there.
    """
    config = with_absolute_paths(config)
    if (config.trials == "callable") != (decide_trials is not None):
        raise UsageError("trials 'callable' stand for a function: give psyfast.score(trials=FUNCTION) from Python")
    conditions = conditions_of(config.conditions, own_conditions)
    setting = Setting(Protocol(config.protocol), config.seed, decide_trials)
    run = RunFolder(out)
    old = run.read_manifest() if resume and run.is_started() else None
    if old is None:
        run.require_empty()
    reader = reader or TranscriptReader(config.sources, read_options(config, choose_options))
    located = tuple(locate(model, config.revision) for model in config.models)
    for model_id, count in Counter(place.model_id for place in located).items():
        if count > 1:
            raise UsageError(f"{count} of the models are called '{model_id}'; name each once, and rename equal folders")
    return Inputs(config, run, reader, located, Renderer(conditions, setting), old, repeat)


def read_options(config: ScoreConfig, choose_options: ChooseOptions | None = None) -> ReadOptions:
    """How a configuration's transcripts are read. choose_options: the function that its `callable` options stand for."""
    if (config.options == "callable") != (choose_options is not None):
        raise UsageError("options 'callable' stand for a function: give psyfast.score(options=FUNCTION) from Python")
    return ReadOptions(
        studies=config.studies,
        limit=config.limit,
        on_bad_row=config.on_bad_row,
        revision=config.data_revision,
        subset=cast('Literal["test"] | None', config.subset),
        seed=config.seed,
        options=choose_options or cast("OptionSource", config.options),
    )


def with_absolute_paths(config: ScoreConfig) -> ScoreConfig:
    """The configuration with the paths that are there made absolute, so that its manifest holds from any folder."""
    return replace(
        config,
        sources=tuple(map(_absolute, config.sources)),
        models=tuple(map(_absolute_model, config.models)),
    )


def _absolute_model(name: str) -> str:
    base, plus, adapter = ("", "", name) if Path(name).expanduser().exists() else name.rpartition(WITH_ADAPTER)
    if not plus:
        return name if name in ALIASES else _absolute(name)
    return f"{_absolute_model(base)}{WITH_ADAPTER}{_absolute(adapter)}"


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
