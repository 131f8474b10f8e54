"""What the figures are drawn from: the metrics' tables with names as the report shows them, and how models are coloured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import altair as alt
import polars as pl

from psyfast.metrics.compute import Metrics
from psyfast.metrics.contrasts import PLAIN
from psyfast.metrics.responses import ResponseIndex
from psyfast.metrics.results import Results
from psyfast.report.names import harmless, labels, model_labels, replaced, shortened
from psyfast.report.style import MAX_MODEL_COLOURS, colour, colour_scale

_MODELS = ("model", "model_a", "model_b")
UNLISTED = "not in the table of pairs"


@dataclass(frozen=True, eq=False)
class Findings:
    """The results, their numbering and their metrics; `table` gives a table as it is shown."""

    metrics: Metrics
    results: Results
    index: ResponseIndex

    @cached_property
    def model_names(self) -> dict[str, str]:
        """The label of each model."""
        return model_labels(self.results.models)

    @cached_property
    def experiment_names(self) -> dict[str, str]:
        """The label of each experiment (group)."""
        return labels(self.index.groups)

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Conditions that any model has, `plain` first."""
        found = dict.fromkeys(cell.condition for cell in self.results.cells)
        return tuple(sorted(found, key=lambda condition: condition != PLAIN))

    @property
    def condition(self) -> str:
        """The condition that figures show unless another is chosen."""
        return self.conditions[0]

    def table(self, name: str) -> pl.DataFrame:
        """A table of the metrics with labels instead of names."""
        return self.shown(self.metrics.tables[name])

    def shown(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame with labels in its columns of models, experiments and participants."""
        columns = []
        for column in frame.columns:
            known = self.model_names if column in _MODELS else self.experiment_names if column == "experiment" else None
            if known is not None:
                columns.append(pl.Series(column, replaced(frame[column], known), dtype=pl.String))
            elif column in ("participant", "study", "source_experiment", "base", "post", "category", "generation"):
                columns.append(pl.Series(column, replaced(frame[column], {}), dtype=pl.String))
        return frame.with_columns(columns)

    @cached_property
    def models(self) -> pl.DataFrame:
        """Table `models`, condition by condition the best first, with `order`, is_default_condition, is_default_model (the best), and `colour`."""
        models = self.table("models").filter(pl.col("nll_nats").is_not_null()).sort("nll_nats", "model")
        models = pl.concat([models.filter(condition=condition) for condition in self.conditions])
        default = models["model"].head(1).to_list()
        return models.with_columns(
            order=pl.int_range(pl.len()),
            is_default_condition=pl.col("condition") == self.condition,
            is_default_model=pl.col("model").is_in(default),
            colour=pl.Series(replaced(models["model"], self._colour_of), dtype=pl.String),
        )

    @cached_property
    def default_model(self) -> str:
        """The model of the lowest NLL under the default condition: shown where only one can be."""
        return str(self.models.filter("is_default_model")["model"].to_list()[0])

    @property
    def colours_models(self) -> bool:
        """Whether every model has a colour of its own; otherwise its generation has."""
        return len(self.results.models) <= MAX_MODEL_COLOURS

    @cached_property
    def _colour_of(self) -> dict[str, str]:
        table = self.table("models").unique("model", maintain_order=True)
        if self.colours_models:
            return {model: model for model in table["model"]}
        named = table.select("model", pl.col("generation").fill_null(UNLISTED)).rows()
        return {model: shortened(harmless(generation)) for model, generation in named}

    @cached_property
    def colour_values(self) -> tuple[str, ...]:
        """Models or generations, as they are coloured, the unlisted last."""
        values = sorted(set(self._colour_of.values()), key=lambda value: (value == UNLISTED, value))
        return tuple(values)

    def colour(self) -> alt.Color:
        """The encoding of the column `colour`."""
        return colour("colour", self.colour_values, None if self.colours_models else "generation")

    def colour_scale(self) -> alt.Scale:
        """The scale of that encoding, for another channel."""
        return colour_scale(self.colour_values)

    def coloured(self, frame: pl.DataFrame, model: str = "model") -> pl.DataFrame:
        """A frame with the column `colour` of its column of models."""
        return frame.with_columns(colour=pl.Series(replaced(frame[model], self._colour_of), dtype=pl.String))

    def with_defaults(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame with is_default_condition and is_default_model of its columns `condition` and `model`."""
        return frame.with_columns(
            is_default_condition=pl.col("condition") == self.condition,
            is_default_model=pl.col("model") == self.default_model,
        )

    def intervals(self, quantity: str, keys: Sequence[str]) -> pl.DataFrame:
        """Means over experiments by `keys`: estimate, fixed_low, fixed_high, random_low, random_high, num_participants."""
        found = self.table("intervals").filter(pl.col("experiment").is_null(), quantity=quantity)
        found = found.unique([*keys, "estimand"], maintain_order=True)
        fixed = found.filter(estimand="studies fixed").select(
            *keys, "estimate", "num_experiments", "num_participants", fixed_low="low", fixed_high="high"
        )
        random = found.filter(estimand="studies random").select(*keys, random_low="low", random_high="high")
        return fixed.join(random, on=list(keys), how="left", maintain_order="left", nulls_equal=True)
