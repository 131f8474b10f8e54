"""--as-published against an independent recomputation, to 1e-9, and against values worked out by hand."""

import math

import numpy as np
import polars as pl
import pytest
import study_recomputed as oracle
from written_runs import response, write_run

from psyfast.metrics.compute import compute_metrics
from psyfast.metrics.config import MetricsConfig

STUDIES = ["alpha", "beta_one", "evangelidis2023upscaling", "xu2021novelty"]
PAIRS = {
    "Qwen2-0.5B": "Qwen2-0.5B-Instruct",
    "Qwen2-7B": "Qwen2-7B-Instruct",
    "Qwen3-4B-Base": "Qwen3-4B",
    "Qwen2.5-7B": "DeepSeek-R1-Distill-Qwen-7B",
}
CATEGORIES = "experiment,dataset,Memory,Reasoning\nalpha,Psych-101,1,0\nbetaone,Psych-201,0,1\nother,Psych-201,0,0\n"


def rows_of(rng, shift, condition):
    """Responses of all studies; some are not scored, and not the same ones in every cell."""
    rows = []
    for study_idx, study in enumerate(STUDIES):
        for participant in range(3 + study_idx):
            if condition == "persona" and participant == 0:
                continue
            for response_idx in range(5 + participant):
                nll = rng.gamma(2.0 + shift + study_idx, 0.7)
                scored = rng.random() > 0.1
                rows.append(
                    response(
                        study,
                        f"p{participant}",
                        response_idx,
                        nll if scored else None,
                        is_argmax=bool(nll < 1) if scored else None,
                    )
                )
    return rows


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(5)
    cells = {}
    for base, post in PAIRS.items():
        cells[base, "plain"] = rows_of(rng, 0.0, "plain")
        cells[post, "plain"] = rows_of(rng, 0.4, "plain")
    for condition in ("persona", "chat", "discrete"):
        cells["Qwen2-7B", condition] = rows_of(rng, -0.1, condition)
    return cells


@pytest.fixture(scope="module")
def tables(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "categories.csv").write_text(CATEGORIES)
    models = {cell[0] for cell in cells}
    paths = []
    for model in sorted(models):  # a run folder each, as they come from machines of their own
        mine = {cell: rows for cell, rows in cells.items() if cell[0] == model}
        paths.append(write_run(folder / model, mine, parts=2).path)
    config = MetricsConfig(as_published=True, categories=folder / "categories.csv")
    return compute_metrics(paths, config).tables


def kept(rows, both=None):
    """Without the studies that the published figures leave out; of the participants that `both` has, too."""
    present = {(row["study"], row["participant"]) for row in both or rows}
    return [row for row in rows if row["study"] != "xu2021novelty" and (row["study"], row["participant"]) in present]


def test_model_scores(cells, tables):
    for row in tables["models"].iter_rows(named=True):
        rows = kept(cells[row["model"], row["condition"]])
        assert row["nll_nats"] == pytest.approx(oracle.model_score(rows), abs=1e-9)
        assert row["accuracy"] == pytest.approx(np.mean(list(oracle.accuracy(rows).values())), abs=1e-9)
    assert len(tables["models"]) == len(cells)


def test_scores_by_experiment(cells, tables):
    for row in tables["experiments"].iter_rows(named=True):
        values = oracle.by_experiment(kept(cells[row["model"], row["condition"]]))[row["experiment"]]
        assert row["nll_nats"] == pytest.approx(values.mean(), abs=1e-9)
        assert row["num_scored"] == len(values)
    assert set(tables["experiments"]["experiment"]) == set(STUDIES) - {"xu2021novelty"}


def test_pairs_use_ddof_1(cells, tables):
    assert len(tables["pairs"]) == len(PAIRS)
    for row in tables["pairs"].iter_rows(named=True):
        a, b = kept(cells[row["model_a"], "plain"]), kept(cells[row["model_b"], "plain"])
        assert row["d"] == pytest.approx(oracle.mean_effect(a, b, 1), abs=1e-9)
    for row in tables["pair_effects"].iter_rows(named=True):
        a, b = kept(cells[row["model_a"], "plain"]), kept(cells[row["model_b"], "plain"])
        assert row["d"] == pytest.approx(oracle.effects(a, b, 1)[row["experiment"]], abs=1e-9)


def pair_means(cells, posts, ddof=1):
    bases = {post: base for base, post in PAIRS.items()}
    return np.mean([oracle.mean_effect(kept(cells[bases[p], "plain"]), kept(cells[p, "plain"]), ddof) for p in posts])


def test_means_by_type(cells, tables):
    found = dict(tables["types"].select("type", "d").rows())
    instruct = ["Qwen2-0.5B-Instruct", "Qwen2-7B-Instruct"]
    reasoning = ["Qwen3-4B", "DeepSeek-R1-Distill-Qwen-7B"]
    assert found == {
        "instruction": pytest.approx(pair_means(cells, instruct), abs=1e-9),
        "reasoning": pytest.approx(pair_means(cells, reasoning), abs=1e-9),
    }


def test_the_trend_over_generations_takes_plain_text_pairs_only(cells, tables):
    found = dict(tables["generations"].select("generation", "d").rows())
    instruct = ["Qwen2-0.5B-Instruct", "Qwen2-7B-Instruct"]
    assert found == {
        "Qwen2": pytest.approx(pair_means(cells, instruct), abs=1e-9),
        "Qwen3": pytest.approx(pair_means(cells, ["Qwen3-4B"]), abs=1e-9),
    }


def test_the_heat_map_uses_ddof_0_and_shows_what_has_no_category(cells, tables):
    categories = {"alpha": "Memory", "beta_one": "Reasoning"}  # the file writes it without its underscore
    for base, post in PAIRS.items():
        expected = oracle.mean_by_category(kept(cells[base, "plain"]), kept(cells[post, "plain"]), categories)
        found = tables["categories"].filter(pl.col("model_b") == post)
        assert dict(found.select("category", "d").rows()) == {
            name: pytest.approx(d, abs=1e-9) for name, d in expected.items()
        }
    by_pair = [
        oracle.mean_by_category(kept(cells[base, "plain"]), kept(cells[post, "plain"]), categories)["Memory"]
        for base, post in PAIRS.items()
    ]
    means = dict(tables["category_means"].select("category", "d").rows())
    assert means["Memory"] == pytest.approx(np.mean(by_pair), abs=1e-9)


def test_persona_uses_ddof_0_and_leaves_studies_out(cells, tables):
    persona, plain = cells["Qwen2-7B", "persona"], cells["Qwen2-7B", "plain"]
    expected = oracle.mean_effect(kept(persona), kept(plain, persona), 0, left_out=["evangelidis2023upscaling"])
    (row,) = tables["persona"].iter_rows(named=True)
    assert (row["condition_a"], row["condition_b"], row["num_experiments"]) == ("persona", "plain", 2)
    assert row["d"] == pytest.approx(expected, abs=1e-9)


def test_template(cells, tables):
    expected = oracle.mean_effect(kept(cells["Qwen2-7B", "plain"]), kept(cells["Qwen2-7B", "chat"]), 1)
    (row,) = tables["template"].iter_rows(named=True)
    assert (row["condition_a"], row["condition_b"]) == ("plain", "chat")
    assert row["d"] == pytest.approx(expected, abs=1e-9)


def test_accuracy_is_of_the_discrete_condition(cells, tables):
    expected = oracle.accuracy(kept(cells["Qwen2-7B", "discrete"]))
    found = dict(tables["accuracy"].select("experiment", "accuracy").rows())
    assert found == {study: pytest.approx(value, abs=1e-9) for study, value in expected.items()}


def by_hand(tmp_path, base, post):
    rows = {
        (model, "plain"): [response("s", "1", idx, nll) for idx, nll in enumerate(values)]
        for model, values in (("Qwen2-7B", base), ("Qwen2-7B-Instruct", post))
    }
    return write_run(tmp_path / "run", rows).path


def test_studies_left_out_enter_no_baseline_either(tmp_path):
    rows = [
        response(study, "1", idx, 1.0, response="J", options=["J", "F"])
        for study in ("s", STUDIES[3])
        for idx in range(4)
    ]
    run = write_run(tmp_path / "run", {("m", "plain"): rows}).path
    for as_published, expected in ((True, {"s"}), (False, {"s", STUDIES[3]})):
        found = compute_metrics([run], MetricsConfig(as_published=as_published)).tables["baselines"]
        assert set(found["experiment"]) == expected


def test_an_effect_size_worked_out_by_hand(tmp_path):
    # a: mean 2, squared deviations 1 + 0 + 1 = 2; b: mean 4, 4 + 0 + 4 = 8. ddof 1: variances 1 and 4, mean 2.5.
    run = by_hand(tmp_path, [1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    (row,) = compute_metrics([run]).tables["pair_effects"].iter_rows(named=True)
    assert (row["mean_a_nats"], row["mean_b_nats"], row["sd_a_nats"], row["sd_b_nats"]) == (2.0, 4.0, 1.0, 2.0)
    assert row["d"] == pytest.approx(2.0 / math.sqrt(2.5), abs=1e-12)


def test_ours_uses_the_responses_that_both_scored(tmp_path):
    run = by_hand(tmp_path, [1.0, 2.0, 3.0, None], [2.0, 4.0, 6.0, 100.0])
    (row,) = compute_metrics([run]).tables["pair_effects"].iter_rows(named=True)
    assert (row["num_responses"], row["num_a"], row["num_b"], row["mean_b_nats"]) == (3, 3, 3, 4.0)
    published = compute_metrics([run], MetricsConfig(as_published=True)).tables["pair_effects"]
    assert published.select("num_responses", "num_a", "num_b", "mean_b_nats").row(0) == (3, 3, 4, 28.0)


@pytest.mark.parametrize(
    ("base", "post", "reason"),
    [
        ([0.1, 0.1, 0.1], [0.3, 0.3, 0.3], "the standard deviation is 0"),
        ([0.5], [0.75], "1 response, a standard deviation needs 2"),
    ],
)
def test_no_effect_size_without_a_spread(tmp_path, base, post, reason):
    run = by_hand(tmp_path, base, post)
    (row,) = compute_metrics([run]).tables["pair_effects"].iter_rows(named=True)
    assert row["d"] is None and row["reason"] == reason
    assert compute_metrics([run]).tables["pairs"]["d"].to_list() == [None]


def test_another_column_can_be_the_experiment(tmp_path):
    rows = [response("s", "1", 0, 1.0, experiment="one"), response("s", "2", 0, 2.0, experiment="two")]
    run = write_run(tmp_path / "run", {("m", "plain"): rows}).path
    found = compute_metrics([run], MetricsConfig(group_by="experiment")).tables["experiments"]
    assert found["experiment"].to_list() == ["s/one", "s/two"]
