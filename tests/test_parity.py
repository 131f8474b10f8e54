"""The study's own scores: psyfast under the `paper` protocol in the fp32 lane against transformers in fp32.

`make parity` (PSYFAST_PARITY=all) takes every reference transcript; otherwise the short ones, a minute or two.
"""

import json
import os

import numpy as np
import pytest

from psyfast.config import ScoreConfig
from psyfast.inputs import find_inputs
from psyfast.scoring import score_run
from psyfast.store.reading import responses_dataset

pytestmark = pytest.mark.parity

SHORT = (
    "franke2024bayesian",
    "guenther2022relational",
    "guenther2023grammaticality",
    "guenther2024substitutions",
    "thoma2025riskychoice",
    "vantiel2021probabilistic_pragmatics",
)


@pytest.fixture(scope="module")
def compared(shared_dir, tmp_path_factory):
    """(study, experiment, participant) → (the oracle's record, our scored rows in order of their tokens), from one run."""
    folder = tmp_path_factory.mktemp("parity")
    names = [path.stem for path in sorted((shared_dir / "oracle").glob("*.jsonl"))]
    oracle = {}
    for study in names if os.environ.get("PSYFAST_PARITY") == "all" else SHORT:
        lines = (shared_dir / "data" / "psych201" / study / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in (shared_dir / "oracle" / f"{study}.jsonl").read_text().splitlines()]
        (folder / study).mkdir()
        (folder / study / "prompts.jsonl").write_text("\n".join(lines[r["row"]] for r in records), encoding="utf-8")
        oracle |= {(study, record["experiment"], record["participant"]): record for record in records}
    config = ScoreConfig(("smollm2-135m-instruct",), (str(folder),), protocol="paper", lane="fp32")
    run = score_run(find_inputs(config, folder / "run"))
    ours = {key: [] for key in oracle}
    for row in responses_dataset(run).to_table().to_pylist():
        if row["nll_nats"] is not None:
            ours[row["study"], row["experiment"], row["participant"]].append(row)
    return {key: (oracle[key], sorted(rows, key=lambda row: row["token_start"])) for key, rows in ours.items()}


def test_the_same_responses_are_found_at_the_same_tokens(compared):
    for key, (record, rows) in compared.items():
        assert [[row["token_start"], row["token_stop"]] for row in rows] == record["token_spans"], key


def test_every_nll_is_the_oracles(compared):
    differences = {
        key: np.abs(np.array([row["nll_nats"] for row in rows]) - record["nll_nats"])
        for key, (record, rows) in compared.items()
    }
    everything = np.concatenate(list(differences.values()))
    print(
        f"\n{len(differences)} transcripts, {len(everything)} responses: "
        f"|difference| mean {everything.mean():.1e}, max {everything.max():.1e} nats"
    )
    for key, difference in differences.items():
        assert difference.max() < 2e-3, key
    assert everything.mean() < 2e-4


def test_the_arg_max_is_the_oracles(compared):
    """But for ties within rounding, which two orders of summation may break differently."""
    pairs = [
        (row["is_argmax"], wanted)
        for record, rows in compared.values()
        for row, wanted in zip(rows, record["is_argmax"], strict=True)
    ]
    assert sum(ours != theirs for ours, theirs in pairs) <= 0.001 * len(pairs)
    assert any(theirs for _, theirs in pairs)
