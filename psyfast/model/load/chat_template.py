"""A located model's chat template and what renders it: transformers' sandboxed Jinja."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from psyfast.errors import ModelError
from psyfast.model.load.locate import Located
from psyfast.model.load.tokenizer import load_tokenizer

Messages = list[dict[str, str]]


def load_chat_template(located: Located) -> tuple[str, Callable[[Messages], str]]:
    """The Jinja source of a model's chat template, and the function from messages to text under it.

    No generation prompt is added, and templates that know `enable_thinking` are told False. The function raises
    jinja2.TemplateError. Raises ModelError where the model has no template.
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
            messages, chat_template=source, tokenize=False, add_generation_prompt=False, enable_thinking=False
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
