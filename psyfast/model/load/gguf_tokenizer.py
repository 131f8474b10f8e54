"""A tokenizer straight from a GGUF file's vocabulary: what transformers makes of the same file, without its seconds.

Known are byte-level BPEs of a few families (SPLITS); the rest is left to transformers. A vocabulary is what the file
says it is: transformers adds an `<|endoftext|>` where there is none, a token that the model has no embedding for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyfast.errors import ModelError
from psyfast.model.load.gguf_header import GgufHeader

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "qwen35", "smollm3", "olmoe", "gpt-oss")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LLAMA_3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN_2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN_3_5 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPLITS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "qwen2": _QWEN_2,
    "qwen35": _QWEN_3_5,
    "gpt-4o": _O200K,
    "olmo": None,
}
"""How text is cut before merging, by `tokenizer.ggml.pre`; None: as GPT-2 does.

smollm follows transformers. llama.cpp sets digits apart before anything else, so that there two white spaces before a
digit may be one token, and here they are two.
"""

ALWAYS_SPECIAL = "<|endoftext|>"
"""Special in a byte-level BPE that has it, unless it is marked as user-defined."""

COMPOSED = ("qwen35", "olmo")
"""Where characters are composed (NFC) before anything else, as the model's own tokenizer does; llama.cpp does not."""

_CONTROL, _USER_DEFINED = 3, 4
_NAMED = ("bos", "eos", "unknown", "padding")


@dataclass(frozen=True)
class GgufTokenizer:
    """As much of a transformers tokenizer as psyfast.data.tokenizer looks at."""

    name_or_path: str
    backend_tokenizer: Backend
    bos_token_id: int | None
    is_fast: bool = True

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Ids with the tokenizer's special tokens, as `input_ids`."""
        return {"input_ids": list(self.backend_tokenizer.encode(text).ids)}


def gguf_tokenizer(path: Path) -> GgufTokenizer | None:
    """The tokenizer of a GGUF file; None if it is of a kind that only transformers knows. Raises ModelError."""
    header = GgufHeader(path)
    said = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    architecture = header.metadata.get("general.architecture")
    if said.get("model") != "gpt2" or said.get("pre") not in SPLITS or architecture not in ARCHITECTURES:
        return None
    tokens, merges = header.strings("tokenizer.ggml.tokens"), header.strings("tokenizer.ggml.merges")
    if tokens is None or merges is None or not set().union(*tokens) <= _byte_alphabet():
        return None
    named = {name: _named_token(said, name, tokens, path) for name in _NAMED}
    backend = _byte_level_bpe(tokens, merges, SPLITS[said["pre"]], path)
    if said["pre"] in COMPOSED:
        from tokenizers import normalizers

        backend.normalizer = normalizers.NFC()
    _add_special_tokens(backend, tokens, _types(said, tokens, path), named)
    _set_template(backend, named["bos"], said.get("add_bos_token"), named["eos"], said.get("add_eos_token"))
    bos = named["bos"]
    return GgufTokenizer(str(path), backend, None if bos is None else backend.token_to_id(bos))


def _byte_level_bpe(tokens: list[str], merges: list[str], split: str | None, path: Path) -> Backend:
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        bpe = models.BPE(vocab, pairs, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    # The library is Rust and raises a bare Exception for what it refuses, here a merge of a token that is not there:
    # there is no narrower one to catch, and the call does nothing else.
    except Exception as error:
        raise ModelError(
            f"{path}: its vocabulary and merges make no tokenizer ({error}); download the file again"
        ) from error
    backend = Backend(bpe)
    if split is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_alphabet() -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())


def _named_token(said: dict[str, Any], name: str, tokens: list[str], path: Path) -> str | None:
    token_id = said.get(f"{name}_token_id")
    if token_id is None:
        return None
    if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
        raise ModelError(
            f"{path}: 'tokenizer.ggml.{name}_token_id' is {token_id!r}, expected one of its {len(tokens):,} tokens; "
            "download the file again"
        )
    return tokens[token_id]


def _types(said: dict[str, Any], tokens: list[str], path: Path) -> list[int]:
    types: list[int] = said.get("token_type", [0] * len(tokens))
    if len(types) != len(tokens):
        raise ModelError(
            f"{path}: 'tokenizer.ggml.token_type' has {len(types):,} entries, expected {len(tokens):,}, one a token; "
            "download the file again"
        )
    return types


def _add_special_tokens(backend: Backend, tokens: list[str], types: list[int], named: dict[str, str | None]) -> None:
    """Tokens that no merge makes: those marked as user-defined, and as special those marked as control or named."""
    from tokenizers import AddedToken

    special = [token for token in (*named.values(), ALWAYS_SPECIAL) if token and backend.token_to_id(token) is not None]
    special += [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    plain = dict.fromkeys(token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED)
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in dict.fromkeys(special) if token not in plain]
    )
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])


def _set_template(backend: Backend, bos: str | None, add_bos: Any, eos: str | None, add_eos: Any) -> None:
    """What is put around a text."""
    from tokenizers.processors import TemplateProcessing

    before, after = bos if add_bos else None, eos if add_eos else None
    first, second = (
        " ".join([*([f"{before}:{n}"] if before else []), f"${text}:{n}", *([f"{after}:{n}"] if after else [])])
        for n, text in enumerate("AB")
    )
    added = [(token, backend.token_to_id(token)) for token in (before, after) if token]
    backend.post_processor = TemplateProcessing(single=first, pair=f"{first} {second}", special_tokens=added)
