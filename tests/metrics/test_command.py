"""`psyfast metrics` and `psyfast pairs` as a user meets them: widths, documents, files and refusals."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner
from written_runs import response, write_run

from psyfast.cli import app
from psyfast.errors import RunError
from psyfast.metrics.compute import compute_metrics
from psyfast.metrics.schema import TABLES


def rows(shift, num_participants=6):
    """Two studies; those of `b` have a choice set in every second response only."""
    return [
        response(
            study, str(p), i, 0.2 + shift + 0.1 * (i % 3) + 0.05 * p, is_argmax=i % 2 == 0, response="JF"[(i + p) % 2],
            **({"options": ["J", "F"], "option_nll_nats": [0.5, 0.9 + shift]} if study == "a" or i % 2 else {}),
        )
        for study in "ab" for p in range(num_participants) for i in range(8)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cells = {
        (model, condition): rows(shift + 0.1 * (condition != "plain"))
        for model, shift in (("Qwen2-7B", 0.0), ("Qwen2-7B-Instruct", 0.3))
        for condition in ("plain", "persona", "shuffled-persona")
    }
    return write_run(tmp_path_factory.mktemp("command") / "run", cells).path


def psyfast(*arguments):
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(argument) for argument in arguments])


def test_the_table_fits_80_columns_and_names_its_warnings(run):
    done = psyfast("metrics", run)
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Qwen2-7B-Instruct" in done.stdout and "shuffled-persona" in done.stdout
    assert "* warning: fewer than 95 %" in done.stdout and "! does not beat it" in " ".join(done.stdout.split())


def test_the_document_and_the_files_hold_the_same(run, tmp_path):
    done = psyfast("metrics", run, "-o", tmp_path / "tables", "--margin", 0.2, "--json")
    document = json.loads(done.stdout)
    written = pl.read_parquet(tmp_path / "tables/models.parquet")
    assert [row["nll_nats"] for row in document["tables"]["models"]] == written["nll_nats"].to_list()
    assert {row["margin"] for row in document["tables"]["equivalence"]} == {0.2}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{t}.{s}" for t in TABLES for s in ("csv", "parquet")
    }
    csv = pl.read_csv(tmp_path / "tables/experiments.csv")
    assert csv["nll_nats"].to_list() == pl.read_parquet(tmp_path / "tables/experiments.parquet")["nll_nats"].to_list()


def test_every_mean_has_an_interval_of_both_estimands(run):
    tables = compute_metrics([run]).tables
    for name in ("pairs", "types", "generations", "persona", "conditions"):
        assert len(tables[name])
        for row in tables[name].iter_rows(named=True):
            # Participants differ hardly at all here: their sums may leave no spread, which then is said by a null.
            for low, high in (("low", "high"), ("low_fixed", "high_fixed")):
                assert (row[low] is None) == (row[high] is None)
                assert row[low] is None or row[low] - 1e-9 <= row["d"] <= row[high] + 1e-9
    (pair,) = tables["pairs"].filter(condition_a="plain").to_dicts()
    (of_type,) = tables["types"].filter(condition="plain").to_dicts()
    assert pair["low_fixed"] is not None
    assert of_type["low_fixed"] == pytest.approx(pair["low_fixed"]) and of_type["d"] == pair["d"]


def test_the_difference_to_the_markov_chain_has_an_interval(run):
    tables = compute_metrics([run]).tables
    rows = tables["intervals"].filter(pl.col("quantity") == "above_markov_nats", pl.col("estimand") == "studies fixed")
    assert len(rows) == len(tables["models"])
    for row, of_mean in zip(tables["models"].to_dicts(), rows.to_dicts(), strict=True):
        assert of_mean["estimate"] == pytest.approx(row["above_markov_nats"], abs=1e-12)
        assert row["above_markov_low_fixed"] == of_mean["low"] <= row["above_markov_nats"]
        assert row["above_markov_nats"] <= row["above_markov_high_fixed"]
    for quantity, column in (("accuracy",) * 2, ("pseudo_r2",) * 2, ("choice_accuracy",) * 2):
        found = tables["intervals"].filter(quantity=quantity, estimand="studies fixed")["estimate"].to_list()
        assert found == pytest.approx(tables["models"][column].to_list(), abs=1e-12)


def test_shares_stand_beside_the_figures_over_options(run):
    (row,) = compute_metrics([run]).tables["models"].filter(model="Qwen2-7B", condition="plain").to_dicts()
    assert (row["share_of_responses"], row["share_of_participants"], row["is_partial"]) == (0.75, 1.0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "no run folder was named"), (["--margin", "0"], "margin is 0.0"), (["--group-by", "x"], "--group-by is 'x'")],
)
def test_refusals(run, arguments, message):
    done = psyfast("metrics", *([run] if arguments else []), *arguments)
    assert done.exit_code != 0 and message in str(done.exception)


def test_tables_do_not_go_into_a_run(run):
    done = psyfast("metrics", run, "-o", run)
    assert isinstance(done.exception, RunError) and "is the folder of a run" in str(done.exception)


def test_one_name_for_two_models(tmp_path):
    runs = [
        write_run(
            tmp_path / name,
            {("m", "plain"): [response(name, "1", 0, 1.0)]},
            manifest={"models": {"m": {"name": "m", "weights_sha256": {"w": name}}}},
        ).path
        for name in ("one", "two")
    ]
    with pytest.raises(RunError, match=r"model m has the weights .*two.*, and that of .*one"):
        compute_metrics(runs)


def test_pairs_at_80_columns_and_as_a_document():
    shown = psyfast("pairs").stdout
    assert max(map(len, shown.splitlines())) <= 80 and "65 pairs" in shown
    assert max(map(len, psyfast("pairs", "--models").stdout.splitlines())) <= 80
    document = json.loads(psyfast("pairs", "--json").stdout)
    assert len([pair for pair in document["pairs"] if not pair["apart"]]) == 65
    assert len(document["models"]) == 101
