"""psyfast's Scorer: every response as a request of its own, what came before it and itself, as a harness asks.

settings: together=True hands all requests over at once, so that what they share is computed once; together=False one
after the other, so that it is not.
"""

from __future__ import annotations

import numpy as np
from serving import Case, Job, Scorer, Stopwatch, serve


def load(job: Job) -> Scorer:
    """The model in memory; transcripts may be longer than it was made for, as with every other worker."""
    import psyfast

    longest = max(len(sequence["ids"]) for case in job["cases"] for sequence in case["sequences"])
    scorer = psyfast.Scorer(job["model"], lane=job["lane"], threads=job["threads"], context_limit=longest)

    def score(case: Case, watch: Stopwatch) -> list[np.ndarray]:
        pairs = [
            (sequence["ids"][:start], sequence["ids"][start:stop])
            for sequence in case["sequences"]
            for start, stop in sequence["spans"]
        ]
        if job["settings"]["together"]:
            found = scorer.loglikelihoods(pairs)
        else:
            found = [one for pair in pairs for one in scorer.loglikelihoods([pair])]
        return [-one.token_logprobs for one in found]

    return score


if __name__ == "__main__":
    serve(load, ["psyfast", "torch"])
