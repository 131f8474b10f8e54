"""llama.cpp through llama-cpp-python's C interface: a transcript at a time, logits only of the rows that are scored."""

from __future__ import annotations

import numpy as np
from serving import Case, Job, Scorer, Stopwatch, scored_positions, serve

CHUNK = 256
"""Tokens a call: n_batch and n_ubatch. Of 256, 512, 1,024 and 2,048 the fastest, with flash attention off."""


def load(job: Job) -> Scorer:
    """The GGUF file of the same bf16 weights, and a context as long as the longest transcript."""
    import llama_cpp as api

    num_positions = max(len(sequence["ids"]) for case in job["cases"] for sequence in case["sequences"])
    api.llama_backend_init()
    model = api.llama_model_load_from_file(job["gguf"].encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx = num_positions
    params.n_batch = params.n_ubatch = CHUNK
    params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads = params.n_threads_batch = job["threads"]
    context = api.llama_init_from_model(model, params)
    if not model or not context:
        raise RuntimeError(f"llama.cpp cannot load {job['gguf']}")
    num_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def nll(sequence: dict) -> np.ndarray:
        ids, scored_N = sequence["ids"], scored_positions(sequence)
        row_of = {int(position) - 1: row for row, position in enumerate(scored_N)}
        found_N = np.zeros(len(scored_N))
        api.llama_memory_clear(api.llama_get_memory(context), True)
        for start in range(0, len(ids), CHUNK):
            chunk = range(start, min(start + CHUNK, len(ids)))
            _decode(api, context, ids, chunk, row_of)
            for place, position in enumerate(chunk):
                if position in row_of:
                    pointer = api.llama_get_logits_ith(context, place)
                    logits_V = np.ctypeslib.as_array(pointer, shape=(num_vocab,))
                    found_N[row_of[position]] = _lse(logits_V) - logits_V[ids[position + 1]]
        return found_N

    def score(case: Case, watch: Stopwatch) -> list[np.ndarray]:
        return [nll(sequence) for sequence in case["sequences"]]

    return score


def _decode(api, context, ids: list[int], chunk: range, wanted: dict[int, int]) -> None:
    """Run some positions of one sequence, with logits where a scored token follows."""
    batch = api.llama_batch_init(len(chunk), 0, 1)
    batch.n_tokens = len(chunk)
    for place, position in enumerate(chunk):
        batch.token[place], batch.pos[place] = ids[position], position
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        batch.logits[place] = position in wanted
    status = api.llama_decode(context, batch)
    api.llama_batch_free(batch)
    if status:
        raise RuntimeError(f"llama_decode returned {status} at positions {chunk.start} to {chunk.stop}")


def _lse(logits_V: np.ndarray) -> float:
    largest = logits_V.max()
    return float(largest + np.log(np.exp(logits_V - largest).sum(dtype=np.float64)))


if __name__ == "__main__":
    serve(load, ["llama-cpp-python"])
