"""psyfast's engine with one request at a time, nothing shared: what a harness costs that asks for each thing alone."""

from __future__ import annotations

import numpy as np
from serving import Case, Job, Scorer, Stopwatch, scored_positions, serve


def load(job: Job) -> Scorer:
    """The model in memory; each sequence is a batch of its own."""
    import torch

    from psyfast.engine import Engine
    from psyfast.model.load.locate import locate
    from psyfast.model.load.model import load_model
    from psyfast.ops.records import Lane
    from psyfast.ops.registry import resolve
    from psyfast.plan.batch import Request, plan_batch
    from psyfast.rows import EntryScores

    torch.set_num_threads(job["threads"])
    operators = resolve("auto", "cpu", Lane(job["lane"]))
    model = load_model(locate(job["model"]), operators)
    engine = Engine(model.traits, model.weights, operators)

    def nll(sequence: dict) -> np.ndarray:
        plan = plan_batch([Request(np.array(sequence["ids"]), scored_positions(sequence))])
        entries = EntryScores.of(engine.run(plan.batch), plan.batch.target_N)
        return entries.token_nlls(plan.requests[0])

    def score(case: Case, watch: Stopwatch) -> list[np.ndarray]:
        return [nll(sequence) for sequence in case["sequences"]]

    return score


if __name__ == "__main__":
    serve(load, ["psyfast", "torch"])
