"""The acceptance test of `paper`: the study's own spans for real transcripts, token by token."""

from __future__ import annotations

import json
from pathlib import Path

from encoding_cases import exact, paper
from tokenizers_real import real_tokenizer


def test_every_study_gives_the_reference_spans(shared_dir: Path) -> None:
    tokenizer = real_tokenizer("smollm2")
    num_checked = 0
    for reference in sorted((shared_dir / "oracle").glob("*.jsonl")):
        study = shared_dir / "data" / "psych201" / reference.stem / "prompts.jsonl"
        texts = [json.loads(line)["text"] for line in study.read_text(encoding="utf-8").splitlines()]
        for line in reference.read_text(encoding="utf-8").splitlines():
            expected = json.loads(line)
            encoded = paper(texts[expected["row"]], tokenizer)
            spans = [[r.token_start, r.token_stop] for r in encoded.responses if r.is_scored]
            where = f"{reference.stem}, row {expected['row']}"
            assert len(encoded.ids) == expected["num_tokens"], where
            assert spans == expected["token_spans"], where
            assert encoded.num_unowned_spans == 0, where
            num_checked += 1
    assert num_checked >= 58


def test_exact_finds_every_response_of_real_transcripts(shared_dir: Path) -> None:
    tokenizer = real_tokenizer("smollm2")
    for study in sorted((shared_dir / "data" / "psych201").glob("*/prompts.jsonl")):
        for line in study.read_text(encoding="utf-8").splitlines():
            encoded = exact(json.loads(line)["text"], tokenizer)
            for response in encoded.responses:
                assert response.is_scored or set(response.flags) & {"empty", "unbalanced_marker"}, study.parent.name
