"""Columns and types of the tables of a run folder."""

from __future__ import annotations

import pyarrow as pa

from psyfast.errors import RunError

SCHEMA_VERSION = 1

_KEY = [("study", pa.string()), ("experiment", pa.string()), ("participant", pa.string())]

RESPONSES = pa.schema(
    [
        *_KEY,
        ("response_idx", pa.int32()),
        ("response", pa.string()),
        ("char_start", pa.int32()),
        ("char_stop", pa.int32()),
        ("token_start", pa.int32()),
        ("token_stop", pa.int32()),
        ("num_tokens", pa.int32()),
        ("nll_nats", pa.float64()),
        ("is_argmax", pa.bool_()),
        ("rank", pa.int32()),
        ("entropy_nats", pa.float64()),
        ("rt_ms", pa.float64()),
        ("options", pa.list_(pa.string())),
        ("option_nll_nats", pa.list_(pa.float64())),
        ("flags", pa.list_(pa.string())),
    ]
)

PER_TOKEN = [pa.field("token_ids", pa.list_(pa.int32())), pa.field("token_nll_nats", pa.list_(pa.float64()))]

TRANSCRIPTS = pa.schema(
    [
        *_KEY,
        ("condition", pa.string()),
        ("template_sha256", pa.string()),
        ("text_idx", pa.int32()),
        ("text", pa.string()),
        ("details", pa.string()),
    ]
)
"""template_sha256: of the chat template with its special tokens, where the text depends on one. text_idx: a condition may
cut a transcript into several texts. details: JSON of what the condition says of it.
"""


def responses_schema(*, per_token: bool) -> pa.Schema:
    """The responses table, with the two list columns of --per-token where asked for."""
    return pa.schema([*RESPONSES, *PER_TOKEN]) if per_token else RESPONSES


def participants_schema(persona_fields: tuple[str, ...]) -> pa.Schema:
    """One row a participant: where it came from, its size, the persona fields, the rest as JSON."""
    return pa.schema(
        [
            *_KEY,
            ("source_file", pa.string()),
            ("source_row", pa.int64()),
            ("text_sha256", pa.string()),
            ("num_responses", pa.int32()),
            ("num_chars", pa.int32()),
            *((name, pa.string()) for name in persona_fields),
            ("extra", pa.string()),
        ]
    )


def stamped(schema: pa.Schema, extra: dict[str, str] | None = None) -> pa.Schema:
    """The schema with the format's version, and what else a file says of itself, in its metadata."""
    return schema.with_metadata({"schema_version": str(SCHEMA_VERSION), **(extra or {})})


def check_version(found: object, where: str) -> None:
    """RunError if a file is of a newer format than this psyfast knows, or says nothing of its format."""
    try:
        version = int(str(found))
    except ValueError as error:
        raise RunError(f"{where}: its schema_version is {found!r}; this is no file of a psyfast run") from error
    if not 1 <= version <= SCHEMA_VERSION:
        raise RunError(
            f"{where}: written in format {version}, this psyfast reads 1 to {SCHEMA_VERSION}; upgrade psyfast"
        )
