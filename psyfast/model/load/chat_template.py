"""A located model's chat template and what renders it: transformers' sandboxed Jinja."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from psyfast.errors import ModelError
from psyfast.model.load.locate import Located
from psyfast.model.load.tokenizer import load_tokenizer

Messages = list[dict[str, str]]

TODAY = (2024, 7, 26)
"""The day that templates are told: some write it into the prompt, and a run must be the same on every day. It is what
Llama's templates say where they know no date.
"""


_REPLACEMENTS = "".join(
    f"|replace('{directive}', '{datetime(*TODAY).strftime(directive)}')"
    for directive in ("%d", "%-d", "%e", "%b", "%B", "%m", "%Y", "%y", "%a", "%A", "%j", "%H", "%I", "%p", "%M", "%S")
)
PRELUDE = "{%- macro strftime_now(format) -%}{{ format" + _REPLACEMENTS + " }}{%- endmacro -%}"
"""Goes before a template: its own `strftime_now` comes before the one of transformers, which reads the clock."""


def load_chat_template(located: Located) -> tuple[str, Callable[[Messages], str]]:
    """The Jinja source of a model's chat template, and the function from messages to text under it.

    No generation prompt is added, templates that know `enable_thinking` are told False, and those that ask for the day
    are told TODAY. The function raises jinja2.TemplateError. Raises ModelError where the model has no template.
    """
    tokenizer = _gguf_tokenizer(located) if located.kind == "gguf" else load_tokenizer(located)
    source = _source(getattr(tokenizer, "chat_template", None))
    if source is None:
        raise ModelError(
            f"{located.name}: has no chat template, which the condition 'chat' needs; leave the condition out for base "
            "models, or put a chat_template.jinja beside the model"
        )

    def render(messages: Messages) -> str:
        text: str = tokenizer.apply_chat_template(
            messages,
            chat_template=PRELUDE + source,
            tokenize=False,
            add_generation_prompt=False,
            enable_thinking=False,
        )
        return text

    return source, render


def _source(template: str | Mapping[str, str] | None) -> str | None:
    """The template of plain conversations where a model has several by name."""
    return template.get("default") if isinstance(template, Mapping) else template


def _gguf_tokenizer(located: Located) -> Any:
    """A GGUF file's tokenizer with its template, whatever built it."""
    built = load_tokenizer(located)
    if getattr(built, "chat_template", None) is not None:
        return built
    from transformers import PreTrainedTokenizerFast

    from psyfast.model.load.gguf_header import GgufHeader

    metadata = GgufHeader(located.path).metadata
    special = {}
    for name in ("bos", "eos"):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        token = None if token_id is None else built.backend_tokenizer.id_to_token(token_id)
        if token is not None:
            special[f"{name}_token"] = token
    return PreTrainedTokenizerFast(
        tokenizer_object=built.backend_tokenizer, chat_template=metadata.get("tokenizer.chat_template"), **special
    )
