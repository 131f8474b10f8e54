"""Texts that begin alike have the ids that each has alone."""

from __future__ import annotations

import pytest
from encoding_cases import FRAGMENTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_real import REAL, real_tokenizer, tiny_tokenizer

from psyfast.data.prefixes import PrefixEncoder, common_prefix
from psyfast.data.tokenizer import Encoding, Tokenizer

SENTENCES = (
    "You press <<J>>. You win 3 points.\n",
    "On trial 12 you see é🙂 and 日本 …  ",
    "a" * 90,
    "   \n\n",
    "4711" * 20,
)


def as_lists(encoding: Encoding) -> tuple[object, ...]:
    return (
        encoding.ids.tolist(),
        encoding.offsets.tolist(),
        encoding.num_prefix,
        encoding.first_suffix,
        encoding.word_starts.tolist(),
    )


def pieces(smallest: int, largest: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(FRAGMENTS + SENTENCES), min_size=smallest, max_size=largest).map("".join)


@pytest.mark.parametrize("name", ["tiny", *REAL])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces(4, 12), st.lists(pieces(0, 6), min_size=2, max_size=5))
def test_the_ids_are_those_of_each_text_alone(name: str, beginning: str, ends: list[str]) -> None:
    tokenizer: Tokenizer = tiny_tokenizer(" <<", ">>.") if name == "tiny" else real_tokenizer(name)
    encoder = PrefixEncoder(tokenizer)
    for end in ends:
        assert as_lists(encoder.encode(beginning + end)) == as_lists(tokenizer.encode(beginning + end))
        plain = encoder.encode(beginning + end, adds_special=False)
        assert as_lists(plain) == as_lists(tokenizer.encode_plain(beginning + end))


def test_a_long_beginning_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = real_tokenizer("smollm2")
    instructions = "You choose between two machines. " * 100
    seen: list[int] = []
    encode, encode_plain = tokenizer.encode, tokenizer.encode_plain

    def counted(text: str) -> Encoding:
        seen.append(len(text))
        return encode(text)

    def counted_plain(text: str) -> Encoding:
        seen.append(len(text))
        return encode_plain(text)

    monkeypatch.setattr(tokenizer, "encode", counted)
    monkeypatch.setattr(tokenizer, "encode_plain", counted_plain)
    encoder = PrefixEncoder(tokenizer)
    for trial in range(20):
        encoder.encode(f"{instructions}Trial {trial}. You press <<J>>.\n")
    assert max(seen[1:]) < 300


@given(st.text("ab", max_size=20), st.text("ab", max_size=20))
def test_common_prefix(one: str, other: str) -> None:
    wanted = 0
    while wanted < min(len(one), len(other)) and one[wanted] == other[wanted]:
        wanted += 1
    assert common_prefix(one, other) == wanted
