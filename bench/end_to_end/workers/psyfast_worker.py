"""psyfast as its command scores: from the first transcript read to the last part written, loading told apart."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from serving import Case, Job, Scorer, Stopwatch, serve


def load(job: Job) -> Scorer:
    """Imports only: the command loads its model itself, and says how long that took."""
    # What the command imports on its way; transformers hands out its tokenizers lazily.
    from transformers import AutoTokenizer  # noqa: F401

    from psyfast.config import ScoreConfig
    from psyfast.inputs import find_inputs
    from psyfast.scoring import score_run
    from psyfast.store.reading import responses_dataset

    def score(case: Case, watch: Stopwatch) -> list[np.ndarray]:
        config = ScoreConfig(
            models=(job["model"],),
            sources=(case["data"],),
            protocol=case["protocol"],
            lane=job["lane"],
            threads=job["threads"],
            context_limit=case["context_limit"],
            per_token=True,
            **job["settings"],
        )
        with tempfile.TemporaryDirectory(prefix="psyfast-bench-") as folder:
            run = score_run(find_inputs(config, Path(folder) / "run"))
            manifest = run.read_manifest()
            (model,) = manifest["models"].values()
            watch.leave_out(model["seconds_to_load"], model["cpu_seconds_to_load"])
            watch.stop()
            case["told"] = {
                "stages": manifest["seconds"],
                "loading": {"wall": model["seconds_to_load"], "cpu": model["cpu_seconds_to_load"]},
                "arithmetic": manifest["arithmetic"],
                "tokens": manifest["tokens"],
            }
            rows = responses_dataset(run).to_table().to_pylist()
        return _token_nlls(case, rows)

    return score


def _token_nlls(case: Case, rows: list[dict]) -> list[np.ndarray]:
    """The rows' token NLLs in the case's order; a row that psyfast scored at another span is an error."""
    by_key = {(row["study"], row["experiment"], row["participant"], row["response_idx"]): row for row in rows}
    found = []
    for sequence in case["sequences"]:
        nlls: list[float | None] = []
        for response_idx, span in zip(sequence["response_idx"], sequence["spans"], strict=True):
            row = by_key[(*sequence["key"], response_idx)]
            if [row["token_start"], row["token_stop"]] != span:
                raise RuntimeError(f"{sequence['key']}, response {response_idx}: scored at another span than {span}")
            nlls += row["token_nll_nats"]
        found.append(np.array(nlls, dtype=np.float64))
    return found


if __name__ == "__main__":
    serve(load, ["psyfast", "torch", "transformers"], warm_up=False)
