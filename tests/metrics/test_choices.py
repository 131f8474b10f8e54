"""Choices, calibration, baselines, agreement and correlations against loops written apart, and values by hand."""

import math
from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from written_runs import response, write_run

from psyfast.errors import DataError
from psyfast.metrics.agreement import distances, item_of
from psyfast.metrics.choice_tables import expected_calibration_error, reliability
from psyfast.metrics.compute import compute_metrics
from psyfast.metrics.config import MetricsConfig

SETS = (["J", "F"], ["1", "2", "12"], None)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(7)
    rows = []
    for study in "ab":
        for participant in "123":
            for idx in range(30):
                options = SETS[rng.integers(3)]
                text = "free" if options is None else options[rng.integers(len(options))]
                if options and rng.random() < 0.1:
                    text = "neither"
                nlls = None if options is None else [float(v) for v in rng.gamma(1, 1, len(options))]
                if nlls and rng.random() < 0.1:
                    nlls[0] = None
                nll = None if rng.random() < 0.1 else float(rng.gamma(2, 1))
                columns = {"response": text + " " * (idx % 2), "options": options, "option_nll_nats": nlls}
                rows.append(response(study, participant, idx, nll, **columns))
    return rows


@pytest.fixture(scope="module")
def tables(rows, tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("choices") / "run", {("m", "plain"): rows}, parts=2)
    return compute_metrics([run.path], MetricsConfig(num_resamples=99, num_flips=99)).tables


def with_sets(rows, study):
    return [
        row for row in rows if row["study"] == study and row["options"] and row["response"].strip() in row["options"]
    ]


def test_choices(rows, tables):
    for found in tables["choices"].iter_rows(named=True):
        used = [r for r in with_sets(rows, found["experiment"]) if r["nll_nats"] and None not in r["option_nll_nats"]]
        own, correct, brier = [], [], []
        for row in used:
            p = np.exp(-np.array(row["option_nll_nats"]))
            p /= p.sum()
            place = row["options"].index(row["response"].strip())
            own.append(-math.log(p[place]))
            correct.append(p.argmax() == place)
            brier.append(sum((q - (k == place)) ** 2 for k, q in enumerate(p)))
        guess = [math.log(len(r["options"])) for r in used]
        assert found["num_responses"] == len(used)
        assert found["normalised_nll_nats"] == pytest.approx(np.mean(own), abs=1e-12)
        assert found["choice_accuracy"] == pytest.approx(np.mean(correct), abs=1e-12)
        assert found["brier"] == pytest.approx(np.mean(brier), abs=1e-12)
        assert found["pseudo_r2"] == pytest.approx(1 - sum(r["nll_nats"] for r in used) / sum(guess), abs=1e-12)
        assert found["is_partial"] is True
    assert len(tables["choices"]) == 2


def test_calibration_by_hand():
    sure, right = np.array([0.5, 0.6, 0.9, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    assert reliability(sure, right, 2) == [(2, pytest.approx(0.55), 0.5), (2, pytest.approx(0.95), 1.0)]
    assert expected_calibration_error(reliability(sure, right, 2)) == pytest.approx(0.05)


def recomputed(rows, study):
    """(uniform, running, Markov, others) NLLs of the responses of a study that have a set, in plain loops."""
    labels = {option for options in SETS if options for option in options}
    mine = [row for row in rows if row["study"] == study]
    totals, own = defaultdict(int), defaultdict(int)
    for row in mine:
        totals[row["response"].strip()] += 1
        own[row["participant"], row["response"].strip()] += 1
    found, state = [], {}
    for row in mine:
        who, text = row["participant"], row["response"].strip()
        counts, chain, previous = state.setdefault(who, [defaultdict(int), defaultdict(int), "start"])
        options = row["options"]
        if options and text in options:

            def nll(seen, options=options, text=text):
                return math.log(sum(seen(o) + 0.5 for o in options)) - math.log(seen(text) + 0.5)

            found.append(
                (
                    math.log(len(options)),
                    nll(counts.__getitem__),
                    nll(lambda o, chain=chain, previous=previous: chain[previous, o]),
                    nll(lambda o, who=who: totals[o] - own[who, o]),
                )
            )
        counts[text] += 1
        chain[previous, text] += 1
        state[who][2] = text if text in labels else "other"
    return np.array(found)


def test_baselines(rows, tables):
    names = ["uniform", "running frequencies", "Markov chain", "other participants"]
    for study in "ab":
        expected = recomputed(rows, study)
        found = tables["baselines"].filter(pl.col("experiment") == study)
        assert found["baseline"].to_list() == names
        assert found["num_responses"].to_list() == [len(expected)] * 4
        assert found["nll_nats"].to_list() == pytest.approx(expected.mean(axis=0), abs=1e-12)


def test_the_markov_chain_by_hand(tmp_path):
    # J F J F: from the start 1/2; after J nothing yet 1/2; after F nothing 1/2; after J once F: (1 + 1/2) / (1 + 1).
    rows = [response("s", "1", i, 0.9, response=r, options=["J", "F"]) for i, r in enumerate("JFJF")]
    tables = compute_metrics([write_run(tmp_path / "run", {("m", "plain"): rows}).path]).tables
    markov = tables["baselines"].filter(pl.col("baseline") == "Markov chain")["nll_nats"].item()
    assert markov == pytest.approx((3 * math.log(2) - math.log(0.75)) / 4)
    model = tables["models"].row(0, named=True)
    assert model["beats_markov"] is False
    assert model["above_markov_nats"] == pytest.approx(0.9 - markov)


def test_a_participant_without_responses_changes_nothing(tmp_path):
    rows = [response("s", "1", i, 0.9, response=r, options=["J", "F"]) for i, r in enumerate("JFJF")]
    counts = {("s", "s", "0"): 0, ("s", "s", "1"): 4, ("s", "s", "2"): 0}
    runs = [
        write_run(tmp_path / name, {("m", "plain"): rows}, participants=participants).path
        for name, participants in (("with", counts), ("without", {("s", "s", "1"): 4}))
    ]
    found, expected = (compute_metrics([run]).tables["baselines"]["nll_nats"].to_list() for run in runs)
    assert found == expected


def own_baseline(tmp_path, **columns):
    path = tmp_path / "own.parquet"
    frame = {"study": ["s"] * 2, "experiment": ["s"] * 2, "participant": ["1"] * 2, "response_idx": [0, 1]}
    pl.DataFrame({**frame, "nll_nats": [0.5, 1.5], **columns}).write_parquet(path)
    run = write_run(tmp_path / "run", {("m", "plain"): [response("s", "1", i, 1.0 + i) for i in range(3)]}).path
    return compute_metrics([run], MetricsConfig(baseline=path)).tables


def test_a_users_own_baseline_is_joined_on_the_key(tmp_path):
    (row,) = own_baseline(tmp_path)["model_baselines"].iter_rows(named=True)
    assert (row["baseline"], row["num_responses"], row["nll_nats"], row["baseline_nats"]) == ("yours", 2, 1.5, 1.0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"response_idx": [0, 0]}, "a response twice"),
        ({"nll_nats": [-1.0, 1.0]}, "nll_nats holds -1.0"),
        ({"participant": ["9", "9"]}, "none of its 2 rows"),
        ({"nll_nats": ["x", "y"]}, "must be numbers"),
        ({"nll_nats": [None, float("nan")]}, "nll_nats is empty"),
        ({"response_idx": [0.5, 1.0]}, "response_idx holds 0.5"),
        ({"response_idx": [None, 1]}, "without study, experiment, participant or response_idx"),
    ],
)
def test_baselines_that_cannot_be_meant(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        own_baseline(tmp_path, **columns)


def test_a_baseline_that_is_no_parquet(tmp_path):
    run = write_run(tmp_path / "run", {("m", "plain"): [response("s", "1", 0, 1.0)]}).path
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        compute_metrics([run], MetricsConfig(baseline=tmp_path / "nothing.parquet"))


def test_items_are_the_text_since_the_previous_responses_line():
    text = "Hello.\nYou press <<J>> and <<F>>. Won.\nNow <<J>>"
    starts = [text.index("J"), text.index("F>"), text.rindex("J")]
    stops = [start + 1 for start in starts]
    assert item_of(text, None, starts[0]) == "Hello.\nYou press <<"
    assert item_of(text, stops[0], starts[1]) == ">> and <<"
    assert item_of(text, stops[1], starts[2]) == "Now <<"


def test_distances_by_hand():
    item = np.array([0, 0, 1, 1])
    jsd, variation = distances(np.array([1.0, 0.0, 0.5, 0.5]), np.array([0.0, 1.0, 0.5, 0.5]), item, 2)
    assert jsd.tolist() == [1.0, 0.0] and variation.tolist() == [1.0, 0.0]


def test_agreement_of_an_item_that_four_participants_met(tmp_path):
    # Three of four press J; the model gives J 3/4: no distance. With J at 1/4: total variation 1/2.
    keys = [("s", "s", str(p)) for p in range(4)]
    for nlls, expected in (([-math.log(0.75), -math.log(0.25)], 0.0), ([-math.log(0.25), -math.log(0.75)], 0.5)):
        rows = [
            response(
                "s",
                key[2],
                0,
                1.0,
                response="JJJF"[i],
                options=["J", "F"],
                option_nll_nats=nlls,
                char_start=8,
                char_stop=9,
            )
            for i, key in enumerate(keys)
        ]
        texts = {key: f"Press <<{'JJJF'[i]}>>." for i, key in enumerate(keys)}
        run = write_run(tmp_path / str(expected), {("m", "plain"): rows}, texts=texts).path
        (row,) = compute_metrics([run], MetricsConfig(min_participants=4)).tables["agreement"].iter_rows(named=True)
        assert (row["num_items"], row["num_responses"]) == (1, 4)
        assert row["total_variation"] == pytest.approx(expected, abs=1e-12)


def test_correlations_are_within_experiments(tmp_path):
    # Within each study the two models order participants the other way round; between studies both agree.
    levels = {"a": [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], "b": [(101.0, 103.0), (102.0, 102.0), (103.0, 101.0)]}
    cells = {
        (model, "plain"): [
            response(s, str(i), 0, pair[k]) for s, pairs in levels.items() for i, pair in enumerate(pairs)
        ]
        for k, model in enumerate("mn")
    }
    (row,) = compute_metrics([write_run(tmp_path / "run", cells).path]).tables["correlations"].iter_rows(named=True)
    assert (row["num_participants"], row["num_experiments"]) == (6, 2)
    assert row["pearson"] == pytest.approx(-1.0) and row["spearman"] == pytest.approx(-1.0)
