"""A located model's tokenizer, as a transformers object or what stands in for one."""

from __future__ import annotations

from typing import Any

from psyfast.errors import ModelError
from psyfast.model.load.locate import Located, locate


def load_tokenizer(model: str | Located, revision: str | None = None) -> Any:
    """The fast tokenizer of a model (a name as `locate` takes it, or what it found); its weights are not read.

    Remote code is never run and nothing is downloaded beyond what `locate` fetches. Raises ModelError.
    """
    located = locate(model, revision) if isinstance(model, str) else model
    is_gguf = located.kind == "gguf"
    if is_gguf:
        from psyfast.model.load.gguf_tokenizer import gguf_tokenizer

        if (built := gguf_tokenizer(located.path)) is not None:
            return built
    from transformers import AutoTokenizer  # costs seconds

    folder = located.path.parent if is_gguf else located.path
    source = {"gguf_file": located.path.name} if is_gguf else {}
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True, **source)
    # transformers and the converters below it raise what a broken file makes them stumble over (KeyError, TypeError,
    # a bare Exception from Rust): the family is open, and all of it means that the tokenizer cannot be loaded.
    except Exception as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise ModelError(
            f"{located.name}: its tokenizer cannot be loaded from {located.path} ({type(error).__name__}: {lines[0]}); "
            "a model needs tokenizer.json (or a GGUF file with a vocabulary) that this version of transformers reads"
        ) from error
