"""Curves along a session, against a plain recomputation from the rows that were written."""

import math
from collections import defaultdict
from statistics import mean, median, stdev

import pytest

from psyfast.metrics.compute import compute_metrics
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.responses import index_responses
from psyfast.metrics.results import open_results
from psyfast.report import sessions
from psyfast.report.findings import Findings
from tests.report.synthetic_runs import participants, rows_of, write_report_run

MODEL = "Qwen2-7B"


def findings_of(run):
    results = open_results([run])
    return Findings(
        compute_metrics([run], MetricsConfig(num_resamples=99, num_flips=99)), results, index_responses(results)
    )


@pytest.fixture(scope="module")
def people():
    found = participants(num_studies=3, num_participants=4, num_responses=23)
    short = participants(num_studies=1, num_participants=5, num_responses=9)[4]
    return [*found, short]  # too short to be cut into tenths


@pytest.fixture(scope="module")
def findings(people, tmp_path_factory):
    return findings_of(write_report_run(tmp_path_factory.mktemp("sessions") / "run", (MODEL,), ("plain",), people))


def by_tenth(people, value_of):
    """{(study, participant): {tenth: values}} of everybody with 10 responses or more."""
    found = defaultdict(lambda: defaultdict(list))
    lengths = {person["key"]: len(person["choices"]) for person in people}
    for row in rows_of(people, MODEL, "plain"):
        num = lengths[row["study"], row["experiment"], row["participant"]]
        value = value_of(row)
        if num >= 10 and value is not None:
            found[row["study"], row["participant"]][row["response_idx"] * 10 // num].append(value)
    return {who: tenths for who, tenths in found.items() if len(tenths) == 10}


def expected(people, value_of, within=mean):
    """{(experiment, tenth): (mean, standard error)}, the experiments first and then all of them."""
    people_in = {who: {t: within(v) for t, v in tenths.items()} for who, tenths in by_tenth(people, value_of).items()}
    studies = sorted({study for study, _ in people_in})
    found = {}
    for study in studies:
        mine = [values for (its, _), values in people_in.items() if its == study]
        found |= {(study, t): curve_point(mine, t) for t in range(10)}
    overall = [{t: found[study, t][0] for t in range(10)} for study in studies]
    return found | {(sessions.ALL, t): curve_point(overall, t) for t in range(10)}


def curve_point(units, tenth):
    deviations = [values[tenth] - mean(values.values()) for values in units]
    return mean(values[tenth] for values in units), stdev(deviations) / math.sqrt(len(units))


def best_is_response(row):
    best = min(range(len(row["options"])), key=row["option_nll_nats"].__getitem__)
    return float(row["options"][best] == row["response"])


@pytest.mark.parametrize(
    ("measure", "value_of"), [("nll_nats", lambda row: row["nll_nats"]), ("agreement", best_is_response)]
)
def test_curves(findings, people, measure, value_of):
    rows = sessions.curves(findings).filter(measure=measure).to_dicts()
    want = expected(people, value_of)
    assert {(row["experiment"], row["tenth"]) for row in rows} == set(want)
    for row in rows:
        value, se = want[row["experiment"], row["tenth"]]
        assert row["value"] == pytest.approx(value, abs=1e-12)
        assert (row["low"], row["high"]) == pytest.approx((value - se, value + se), abs=1e-12)
        in_all = row["experiment"] == sessions.ALL
        assert (row["num_experiments"], row["num_participants"]) == ((3, 12) if in_all else (1, 4))


def test_reaction_times(findings, people):
    rows = sessions.reaction_times(findings).to_dicts()
    sessions_ms = {(p["key"][0], p["key"][2]): median(map(float, p["rts_ms"])) for p in people}
    tenths = by_tenth(people, lambda row: row["rt_ms"] / sessions_ms[row["study"], row["participant"]])
    for row in rows:
        study = row["experiment"]
        mine = [mean(math.log(median(v[row["tenth"]])) for (s, _), v in tenths.items() if s == each)
                for each in ({s for s, _ in tenths} if study == sessions.ALL else {study})]  # fmt: skip
        assert row["value"] == pytest.approx(math.exp(mean(mine)), abs=1e-9)


def test_whoever_lacks_a_tenth_is_left_out(people, tmp_path, monkeypatch):
    import tests.report.synthetic_runs as made

    def without_the_end(*given):
        rows = rows_of(*given)
        return [
            {**row, "nll_nats": None if row["participant"] == "p0" and row["response_idx"] > 20 else row["nll_nats"]}
            for row in rows
        ]

    monkeypatch.setattr(made, "rows_of", without_the_end)
    findings = findings_of(made.write_report_run(tmp_path / "run", (MODEL,), ("plain",), people))
    rows = sessions.curves(findings).filter(measure="nll_nats", experiment="study00")
    assert rows["num_participants"].to_list() == [3] * 10


def test_no_reaction_times(people, tmp_path, monkeypatch):
    import tests.report.synthetic_runs as made

    monkeypatch.setattr(made, "rows_of", lambda *given: [{**row, "rt_ms": None} for row in rows_of(*given)])
    findings = findings_of(made.write_report_run(tmp_path / "run", (MODEL,), ("plain",), people))
    assert sessions.reaction_times(findings).is_empty()
