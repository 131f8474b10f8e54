"""transformers, a transcript at a time, logits and log-softmax in the model's own type as the study's scripts do.

settings: keep="all" makes the logits of every row, keep="responses" only of those that predict a response's token
(`logits_to_keep` with their indices). experts: how experts are computed, where not as transformers chooses.
"""

from __future__ import annotations

import numpy as np
import torch
from serving import Case, Job, Scorer, Stopwatch, scored_positions, serve

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load(job: Job) -> Scorer:
    """The model in the lane's type; weights stored in bf16 become fp32 exactly."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    experts = {"experts_implementation": job["settings"]["experts"]} if "experts" in job["settings"] else {}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=DTYPES[job["lane"]], **experts).eval()
    keep_all = job["settings"]["keep"] == "all"

    @torch.inference_mode()
    def nll(sequence: dict) -> np.ndarray:
        ids_T = torch.tensor(sequence["ids"])
        scored_N = torch.from_numpy(scored_positions(sequence))
        if keep_all:
            logprobs_TV = model(ids_T[None], use_cache=False).logits[0].log_softmax(-1)
            found = logprobs_TV[scored_N - 1, ids_T[scored_N]]
        else:
            logits_NV = model(ids_T[None], use_cache=False, logits_to_keep=scored_N - 1).logits[0]
            found = logits_NV.log_softmax(-1).gather(1, ids_T[scored_N][:, None])[:, 0]
        return -found.double().numpy()

    def score(case: Case, watch: Stopwatch) -> list[np.ndarray]:
        return [nll(sequence) for sequence in case["sequences"]]

    return score


if __name__ == "__main__":
    serve(load, ["torch", "transformers"])
