"""Runs that cannot be read as one are refused, with both values named."""

import json
import shutil

import pytest
from written_runs import response, write_run

from psyfast.errors import PsyfastError, RunError, UsageError
from psyfast.metrics.compute import compute_metrics
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.responses import index_responses
from psyfast.metrics.results import open_results
from psyfast.metrics.scores import read_scores
from psyfast.metrics.summary import summarise
from psyfast.store.run_folder import RunFolder


def rows(participants=("1", "2"), study="s", nll=1.0):
    return [response(study, participant, idx, nll + idx) for participant in participants for idx in range(3)]


def write(path, model="m", **options):
    return write_run(path, {(model, "plain"): options.pop("rows", rows())}, **options).path


@pytest.mark.parametrize("status", ["partial", "running"])
def test_an_unfinished_run(tmp_path, status):
    run = write(tmp_path / "run", manifest={"status": status, "unfinished": ["m"]})
    with pytest.raises(RunError, match=f"status is '{status}', expected 'complete'.*m.*--resume"):
        open_results([run])


@pytest.mark.parametrize(("key", "one", "other"), [("protocol", "exact", "paper"), ("lane", "bf16", "fp32")])
def test_mixed_protocols_and_lanes(tmp_path, key, one, other):
    config = {"protocol": "exact", "lane": "bf16", "conditions": ["plain"]}
    first = write(tmp_path / "one", manifest={"config": {**config, key: one}})
    second = write(tmp_path / "two", "n", manifest={"config": {**config, key: other}})
    with pytest.raises(RunError, match=f"--{key} {other}.*--{key} {one}"):
        open_results([first, second])


def test_a_newer_format(tmp_path):
    run = write(tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(RunError, match="format 99, this psyfast reads 1 to"):
        open_results([run])


def test_a_part_that_was_removed(tmp_path):
    run = write_run(tmp_path / "run", {("m", "plain"): rows()}, parts=2).path
    (run / "responses/model=m/condition=plain/part-00001.parquet").unlink()
    with pytest.raises(RunError, match="model m, condition plain lacks the transcripts from number 1 on"):
        open_results([run])


def test_no_run_twice_the_same_and_no_run_at_all(tmp_path):
    run = write(tmp_path / "run")
    with pytest.raises(RunError, match="named twice"):
        open_results([run, tmp_path / "." / "run"])
    with pytest.raises(RunError, match="no run folder"):
        open_results([])
    with pytest.raises(RunError, match="not there"):
        open_results([tmp_path / "nothing"])


def test_two_runs_with_the_same_responses_of_one_model(tmp_path):
    runs = [write(tmp_path / name) for name in ("one", "two")]
    with pytest.raises(RunError, match="name only one of these runs"):
        compute_metrics(runs)


def test_two_runs_with_other_studies_of_one_model_are_one(tmp_path):
    runs = [write(tmp_path / study, rows=rows(study=study)) for study in ("b", "a")]
    tables = compute_metrics(runs).tables
    assert tables["experiments"]["experiment"].to_list() == ["a", "b"]
    assert tables["models"].select("num_responses", "num_participants", "nll_nats").rows() == [(12, 4, 2.0)]


def test_a_participant_with_another_text(tmp_path):
    key = ("s", "s", "1")
    runs = [
        write_run(tmp_path / text, {(text, "plain"): rows(["1"])}, texts={key: text}).path for text in ("one", "two")
    ]
    with pytest.raises(RunError, match=r"participant 1 of study s is not the same.*sha256 .* in .*one and .* in .*two"):
        compute_metrics(runs)


def test_rows_in_another_order_find_their_response(tmp_path):
    mixed = [rows()[idx] for idx in (3, 5, 4, 2, 0, 1)]
    results = open_results([write(tmp_path / "run", rows=mixed, participants={("s", "s", p): 3 for p in "12"})])
    index = index_responses(results)
    scores = read_scores(index, results.cells[0])
    assert scores.nll_R.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]


def test_rows_that_the_participants_table_does_not_announce(tmp_path):
    few = write(tmp_path / "few", participants={("s", "s", p): 2 for p in "12"})
    with pytest.raises(RunError, match="response 2 of participant 1, study s"):
        compute_metrics([few])
    twice = write(tmp_path / "twice", rows=[*rows(["1"]), *rows(["1"])])
    with pytest.raises(RunError, match="stands there twice"):
        compute_metrics([twice])


def test_an_unknown_column_to_group_by(tmp_path):
    with pytest.raises(UsageError, match=r"--group-by is 'colour', expected a column .* study, experiment"):
        compute_metrics([write(tmp_path / "run")], MetricsConfig(group_by="colour"))


def test_a_file_that_is_no_parquet(tmp_path):
    run = write(tmp_path / "run")
    (run / "responses/model=m/condition=plain/part-00000.parquet").write_bytes(b"nothing")
    with pytest.raises(PsyfastError, match=r"part-00000\.parquet: not a part of a psyfast run"):
        open_results([run])


def spelled_otherwise(run, spelling):
    """The folder of condition history=3 under another spelling of its name."""
    (folder,) = [path for path in (run / "responses/model=m").iterdir() if "history" in path.name]
    return folder.rename(folder.with_name(f"condition={spelling}"))


@pytest.mark.parametrize("spelling", ["history=3", "history%3D3"])
def test_a_condition_with_an_equals_sign(tmp_path, spelling):
    cells = {("m", "plain"): rows(nll=1.0), ("m", "history=3"): rows(nll=3.0)}
    run = write_run(tmp_path / "run", cells).path
    spelled_otherwise(run, spelling)
    tables = compute_metrics([run]).tables
    means = {row["condition"]: row["nll_nats"] for row in tables["models"].iter_rows(named=True)}
    assert means == {"plain": 2.0, "history=3": 4.0}
    assert {row.condition for row in summarise(RunFolder(run))} == {"plain", "history=3"}


def test_a_condition_under_both_spellings(tmp_path):
    run = write_run(tmp_path / "run", {("m", "history=3"): rows()}).path
    folder = spelled_otherwise(run, "history=3")
    shutil.copytree(folder, folder.with_name("condition=history%3D3"))
    with pytest.raises(RunError, match="condition history=3 of model m lies there twice"):
        open_results([run])


def test_every_condition_is_held_against_plain(tmp_path):
    cells = {("m", "plain"): rows(nll=2.0), ("m", "no-history"): rows(["1"], nll=1.0)}
    tables = compute_metrics([write_run(tmp_path / "run", cells).path]).tables
    (row,) = tables["condition_effects"].iter_rows(named=True)
    assert (row["condition_a"], row["condition_b"]) == ("no-history", "plain")
    # Participant 2 has no rows there and drops out. 1, 2, 3 against 2, 3, 4: sds of 1, the condition is better by 1.
    assert (row["num_participants"], row["num_responses"], row["d"]) == (1, 3, 1.0)
    (mean,) = tables["conditions"].iter_rows(named=True)
    assert (mean["num_experiments"], mean["num_participants"], mean["d"]) == (1, 1, 1.0)
