"""Run folders with everything that the report draws: pairs of several generations and types, five conditions, choice sets,
reaction times, personas, Psych-101 marks, and transcripts whose responses stand where the rows say.

Seeded, and written as psyfast score writes them.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from psyfast.store.run_folder import PartRecord, RunFolder, streamed_table
from psyfast.store.schema import RESPONSES, TRANSCRIPTS, participants_schema

FIELDS = (
    "age", "gender", "nationality", "education", "clinical diagnosis", "STICSA-T somatic", "STICSA-T cognitive", "STAI-S",
    "STAI-T", "IUS", "RRQ", "AUDIT", "DAST", "PSWQ", "GAD-7", "SDS", "OCI", "PHQ-9", "PHQ-8", "BAS Drive",
    "BAS Fun Seeking", "BAS Reward Responsiveness", "BDI-II", "BIS-11", "BIS-10",
)  # fmt: skip
CONDITIONS = ("plain", "persona", "shuffled-persona", "chat", "discrete")
PAIR = ("Qwen2-7B", "Qwen2-7B-Instruct")
MANY = (
    *(f"Qwen2-{size}{post}" for size in ("0.5B", "1.5B", "7B", "72B") for post in ("", "-Instruct")),
    *(f"Qwen2.5-{size}{post}" for size in ("0.5B", "3B", "14B") for post in ("", "-Instruct")),
    *(f"Qwen3-{size}{base}" for size in ("0.6B", "1.7B", "4B", "8B") for base in ("-Base", "")),
    "Llama-3.1-8B", "Llama-3.1-8B-Instruct", "DeepSeek-R1-Distill-Llama-8B",
    "Olmo-3-1025-7B", "Olmo-3-7B-Instruct", "Olmo-3-7B-Think",
    "Qwen2.5-VL-3B-Instruct", "Qwen2.5-Math-1.5B",
)  # fmt: skip
"""30 models of the study's table but for Qwen2.5-1.5B, so that one pair lacks its base."""


def participants(num_studies=4, num_participants=6, num_responses=24, *, names=None, studies=None):
    """One dict a participant, its text and responses included. names: the participants' names, the studies' alike."""
    found = []
    for study_idx in range(num_studies):
        study = studies[study_idx] if studies else f"study{study_idx:02d}"
        for number in range(num_participants):
            name = names[number] if names else f"p{number}"
            rng = np.random.default_rng([study_idx, number])
            choices = rng.choice(list("JF"), num_responses, p=(0.7, 0.3))
            text, spans = f"Instructions of {study}: choose J or F.\n", []
            for choice in choices:
                text += "You press <<"
                spans.append((len(text), len(text) + 1))
                text += f"{choice}>>. You win {rng.integers(9)} points.\n"
            found.append(
                {
                    "key": (study, study, name),
                    "text": text,
                    "choices": choices,
                    "spans": spans,
                    "rts_ms": 300 + rng.exponential(600, num_responses) / (1 + np.arange(num_responses) / 8),
                    "extra": {"is_psych101": study_idx % 3 == 0},
                    "fields": {"age": str(20 + number), "gender": ("female", "male", None)[number % 3]},
                }
            )
    return found


def rows_of(people, model, condition):
    """Rows of responses: probabilities that get better along the session, a little different for each model."""
    rng = np.random.default_rng([sum(map(ord, model)), sum(map(ord, condition))])
    skill = rng.normal(0, 0.1) + 0.4 * any(word in model for word in ("Instruct", "Think", "Distill"))
    rows = []
    for person in people:
        num = len(person["choices"])
        strength = 0.9 + skill + 0.8 * np.arange(num) / num + rng.normal(0, 0.2, num) + rng.normal(0, 0.15)
        own = 1 / (1 + np.exp(-strength * np.where(person["choices"] == "J", 1, -1)))
        for idx, (choice, (start, stop)) in enumerate(zip(person["choices"], person["spans"], strict=True)):
            nll, other = -np.log(own[idx] * 0.95), -np.log((1 - own[idx]) * 0.95)
            rows.append(
                {
                    **dict(zip(("study", "experiment", "participant"), person["key"], strict=True)),
                    "response_idx": idx,
                    "response": str(choice),
                    "char_start": start,
                    "char_stop": stop,
                    "nll_nats": float(nll),
                    "is_argmax": bool(own[idx] > 0.5),
                    "rt_ms": float(person["rts_ms"][idx]),
                    "options": ["J", "F"],
                    "option_nll_nats": [float(nll), float(other)] if choice == "J" else [float(other), float(nll)],
                    "flags": [],
                }
            )
    return rows


def write_report_run(path, models=PAIR, conditions=CONDITIONS, people=None):
    """A finished run folder of these models, conditions and people."""
    people = people if people is not None else participants()
    run = RunFolder(path)
    with (
        streamed_table(run.participants_path, participants_schema(FIELDS)) as add,
        streamed_table(run.transcripts_path, TRANSCRIPTS) as add_text,
    ):
        for person in people:
            names = dict(zip(("study", "experiment", "participant"), person["key"], strict=True))
            add(
                {
                    **names,
                    **person["fields"],
                    "num_responses": len(person["choices"]),
                    "num_chars": len(person["text"]),
                    "text_sha256": hashlib.sha256(person["text"].encode()).hexdigest(),
                    "extra": json.dumps(person["extra"]),
                }
            )
            for condition in conditions:
                text = person["text"] if condition == "plain" else f"{condition}: {person['text']}"
                add_text({**names, "condition": condition, "text": text})
    record = PartRecord(0, 0, len(people), 1, 1, 1, 1, {}, {}, {})
    for model in models:
        for condition in conditions:
            run.write_part(model, condition, record, rows_of(people, model, condition), RESPONSES)
    run.write_manifest(
        {
            "status": "complete",
            "models": {model: {"name": model} for model in models},
            "config": {"protocol": "exact", "lane": "bf16", "conditions": list(conditions)},
            "data": {"num_transcripts": len(people)},
        }
    )
    return run.path
