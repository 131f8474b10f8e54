"""Small run folders for the tests of metrics, written as psyfast score writes them."""

from __future__ import annotations

import hashlib
import itertools

from psyfast.store.run_folder import PartRecord, RunFolder, streamed_table
from psyfast.store.schema import RESPONSES, TRANSCRIPTS, participants_schema


def response(study, participant, response_idx, nll, **columns):
    """A row of responses; options and their NLLs, is_argmax and the like as keywords."""
    return {
        "study": study,
        "experiment": columns.pop("experiment", study),
        "participant": participant,
        "response_idx": response_idx,
        "response": columns.pop("response", "x"),
        "nll_nats": nll,
        "flags": columns.pop("flags", []),
        **columns,
    }


def key_of(row):
    return row["study"], row["experiment"], row["participant"]


def write_run(path, cells, *, manifest=None, participants=None, texts=None, parts=1):
    """cells: {(model, condition): rows, in the order of the data}. participants: {key: number of responses}, of the rows
    where it is not given. texts: {key: source text}. parts: files a cell."""
    run = RunFolder(path)
    counts = dict(participants or {})
    if participants is None:
        for rows in cells.values():
            for row in rows:
                counts[key_of(row)] = max(counts.get(key_of(row), 0), row["response_idx"] + 1)
    with streamed_table(run.participants_path, participants_schema(("age", "gender"))) as add:
        for key, num_responses in counts.items():
            text = (texts or {}).get(key, str(key))
            names = dict(zip(("study", "experiment", "participant"), key, strict=True))
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            add({**names, "num_responses": num_responses, "text_sha256": sha256, "extra": "{}"})
    with streamed_table(run.transcripts_path, TRANSCRIPTS) as add:
        for key, text in (texts or {}).items():
            names = dict(zip(("study", "experiment", "participant"), key, strict=True))
            add({**names, "condition": "plain", "text": text})
    keys = list(counts)
    for (model, condition), rows in cells.items():
        borders = [len(keys) * part // parts for part in range(parts + 1)]
        for part, (start, stop) in enumerate(itertools.pairwise(borders)):
            mine = set(keys[start:stop])
            record = PartRecord(part, start, stop, 1, 1, 1, 1, {}, {}, {})
            run.write_part(model, condition, record, [row for row in rows if key_of(row) in mine], RESPONSES)
    models = {model: {"name": model} for model, _ in cells}
    run.write_manifest(
        {
            "status": "complete",
            "models": models,
            "config": {"protocol": "exact", "lane": "bf16", "conditions": list(dict.fromkeys(c for _, c in cells))},
            "data": {"num_transcripts": len(counts)},
            **(manifest or {}),
        }
    )
    return run
