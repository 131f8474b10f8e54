"""What a model's files say of it, read without torch: config.json, and how long a text may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from psyfast.errors import ModelError
from psyfast.model.load.config_values import object_at
from psyfast.model.load.locate import Located


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder}: no config.json there; a model folder holds config.json and *.safetensors"
        ) from error
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # no UTF-8, no JSON, a number of thousands of digits, too deep
        raise ModelError(f"{path}: cannot be read as JSON ({error}); download the file again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: got a JSON {type(config).__name__}, expected an object; download the file again")
    return config


def context_length(located: Located) -> int | None:
    """The positions that a model was made for, of any architecture; None where its files do not say."""
    if located.kind == "gguf":
        from psyfast.model.load.gguf_header import GgufHeader

        metadata = GgufHeader(located.path).metadata
        length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    else:
        config, key = read_config(located.path), "max_position_embeddings"
        length = config.get(key, object_at(config, "text_config", str(located.path)).get(key))
    return length if isinstance(length, int) else None
