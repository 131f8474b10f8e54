"""Options as branches: against the whole changed text tokenised anew, under both protocols."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from encoding_cases import transcript_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_real import REAL, real_tokenizer, tiny_tokenizer

from psyfast.data.conditions.plain import plain
from psyfast.data.encode import Encoded, OptionBranch, Protocol, encode
from psyfast.data.paper import scan_text
from psyfast.data.responses import find_responses
from psyfast.data.splice import Splicer
from psyfast.data.tokenizer import Tokenizer

PROTOCOLS = list(Protocol)


def full_ids(encoded: Encoded, branch: OptionBranch) -> list[int]:
    ids = np.concatenate([encoded.ids[: branch.branch_start], branch.ids])
    assert len(branch.ids) >= 1
    assert 0 < branch.score_start < branch.score_stop == len(ids)
    assert ids.dtype == np.int32
    return [int(token_id) for token_id in ids]


def scored_text(encoded: Encoded, branch: OptionBranch, tokenizer: Tokenizer) -> str:
    ids = np.asarray(full_ids(encoded, branch)[branch.score_start :], dtype=np.int32)
    return "".join(tokenizer.token_strings(ids))


def encode_with(
    text: str,
    options: Sequence[Sequence[str] | None],
    tokenizer: Tokenizer,
    protocol: Protocol,
    limit: int | None = None,
) -> Encoded:
    return encode(transcript_of(text, options), tokenizer, protocol, context_limit=limit)


TRIAL = st.tuples(
    st.sampled_from(
        ["You see a red cup.\n", "Trial 12: the left one wins 35 points, ", "Now ", "", "🙂 ", "\n\n  ", "cafe\u0301, ",
         "aaaaaaaa" * 12, "            ", "(", ">> "]
    ),
    st.sampled_from(["You press <<", "You say <<", "x<<", "I choose << "]),
    st.sampled_from(["A", "B", "yes", "no way", "12", "é", "🙂", "-3", "!"]),
    st.sampled_from([">>. You win.\n", ">>\n", ">>, then ", " >> ", ">>", ">>>\n"]),
)  # fmt: skip
OPTIONS = st.lists(
    st.sampled_from(["A", "B", "yes", "no way", "maybe not", "7", "-3", "e\u0301", "🦩", "!", "Ab"]),
    min_size=2,
    max_size=4,
    unique=True,
)


@pytest.mark.parametrize("name", [*REAL, "tiny"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(trials=st.lists(TRIAL, min_size=1, max_size=14), options=OPTIONS)
def test_exact_branches_are_those_of_the_whole_text(
    name: str, trials: list[tuple[str, ...]], options: list[str]
) -> None:
    tokenizer = tiny_tokenizer(" <<", "A>>", "<<A", ">>.", bos="<s>") if name == "tiny" else real_tokenizer(name)
    text = "".join(map("".join, trials))
    sources = find_responses(text).responses
    encoded = encode_with(text, [options] * len(sources), tokenizer, Protocol.EXACT)
    terminated = any(a != b and a.startswith(b) for a in options for b in options)
    branches = {(branch.response_idx, branch.option_idx): branch for branch in encoded.options}
    for response, source in zip(encoded.responses, sources, strict=True):
        start, stop = source.trimmed(text)
        assert ("terminated" in response.flags) == (terminated and response.is_scored)
        for option_idx, option in enumerate(options):
            branch = branches.get((response.response_idx, option_idx))
            if branch is None:
                assert not response.is_scored or response.token_start == 0 or start < 4
                continue
            ids = full_ids(encoded, branch)
            if option == text[start:stop] and not terminated:
                assert (branch.score_start, branch.score_stop) == (response.token_start, response.token_stop)
                assert ids == encoded.ids[: response.token_stop].tolist()
                continue
            whole = tokenizer.encode(text[:start] + option + text[stop : source.char_stop + 2])
            first, last = whole.overlapping(start, start + len(option))
            if terminated:
                marker = start + len(option) + source.char_stop - stop
                last = max(last, whole.overlapping(marker, marker + 2)[0] + 1)
            assert ids == whole.ids[:last].tolist()
            assert (branch.score_start, branch.score_stop) == (first, last)
            shared = next((i for i, (a, b) in enumerate(zip(ids, encoded.ids, strict=False)) if a != b), len(ids) - 1)
            assert branch.branch_start == min(shared, len(ids) - 1)


@pytest.mark.parametrize("name", [*REAL, "tiny"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(trials=st.lists(TRIAL, min_size=1, max_size=10), options=OPTIONS)
def test_paper_branches_are_those_of_the_whole_text(
    name: str, trials: list[tuple[str, ...]], options: list[str]
) -> None:
    tokenizer = tiny_tokenizer(" <<", "<<-", bos="<s>") if name == "tiny" else real_tokenizer(name)
    text = "".join(map("".join, trials))
    sources = find_responses(text).responses
    encoded = encode_with(text, [options] * len(sources), tokenizer, Protocol.PAPER)
    terminated = any(a != b and a.startswith(b) for a in options for b in options)
    for branch in encoded.options:
        response, source = encoded.responses[branch.response_idx], sources[branch.response_idx]
        start, stop = source.trimmed(text)
        assert response.is_scored
        assert "runs_on" not in response.flags
        option = options[branch.option_idx]
        ids = full_ids(encoded, branch)
        if option == text[start:stop] and not terminated:
            assert (branch.score_start, branch.score_stop) == (response.token_start, response.token_stop)
            assert ids == encoded.ids[: response.token_stop].tolist()
            continue
        changed = text[:start] + option + text[stop : source.char_stop] + ">>"
        scan = scan_text(plain(transcript_of(changed)), tokenizer)
        span = scan.spans[branch.response_idx]
        assert ids == scan.encoding.ids[: span.token_stop + terminated].tolist()
        assert (branch.score_start, branch.score_stop) == (span.token_start, span.token_stop + terminated)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", REAL)
def test_letters(name: str, protocol: Protocol) -> None:
    tokenizer = real_tokenizer(name)
    encoded = encode_with("You press <<A>> and <<B>> too.", [["A", "B", "C"], None], tokenizer, protocol)
    assert [scored_text(encoded, branch, tokenizer) for branch in encoded.options] == ["A", "B", "C"]
    assert encoded.option_sets == (("A", "B", "C"), None)
    response = encoded.responses[0]
    own, *others = encoded.options
    assert (own.score_start, own.score_stop) == (response.token_start, response.token_stop)
    assert {branch.branch_start for branch in others} == {response.token_start}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prefixes_are_scored_through_the_close_marker(protocol: Protocol) -> None:
    tokenizer = tiny_tokenizer(" <<", ">>", bos="<s>")
    encoded = encode_with("I say <<1>> now <<B>>", [["1", "12"], ["A", "B"]], tokenizer, protocol)
    assert [scored_text(encoded, branch, tokenizer) for branch in encoded.options] == ["1>>", "12>>", "A", "B"]
    assert [response.flags for response in encoded.responses] == [("terminated",), ()]
    assert encoded.responses[0].token_stop - encoded.responses[0].token_start == 1


def test_a_terminated_option_is_never_scored_with_the_text_that_follows() -> None:
    # In the transcript the close marker merges with the full stop; an option must not pay for that.
    tokenizer = tiny_tokenizer(" <<", ">>", ">>.")
    encoded = encode_with("I say <<1>>. Then", [["1", "12"]], tokenizer, Protocol.EXACT)
    assert [scored_text(encoded, branch, tokenizer) for branch in encoded.options] == ["1>>", "12>>"]


def test_white_space_before_the_close_marker_stays() -> None:
    tokenizer = tiny_tokenizer(" <<", ">>")
    encoded = encode_with("I say << 1 >>", [["1", "12"]], tokenizer, Protocol.EXACT)
    assert [scored_text(encoded, branch, tokenizer) for branch in encoded.options] == ["1Ġ>>", "12Ġ>>"]
    encoded = encode_with("I say << 1 >>", [["1", "12"]], tokenizer, Protocol.PAPER)
    assert [scored_text(encoded, branch, tokenizer) for branch in encoded.options] == ["Ġ1>>", "Ġ12>>"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_response_outside_its_options(protocol: Protocol) -> None:
    tokenizer = tiny_tokenizer(" <<")
    encoded = encode_with("I say <<C>> and", [["A", "B"]], tokenizer, protocol)
    assert encoded.responses[0].flags == ("not_in_options",)
    assert encoded.responses[0].is_scored
    assert [scored_text(encoded, branch, tokenizer) for branch in encoded.options] == ["A", "B"]


def test_straddling_tokens_keep_the_own_option_equal_to_the_response() -> None:
    tokenizer = tiny_tokenizer("A>>.", "B>>")
    encoded = encode_with("I say <<A>>. I", [["A", "B"]], tokenizer, Protocol.EXACT)
    assert [scored_text(encoded, branch, tokenizer) for branch in encoded.options] == ["A>>.", "B>>"]


def test_an_option_that_changes_ids_before_it_branches_there() -> None:
    tokenizer = tiny_tokenizer(" <<", "<<5")
    encoded = encode_with("I say(<<A>>", [["A", "5"]], tokenizer, Protocol.EXACT)
    branch = encoded.options[1]
    assert scored_text(encoded, branch, tokenizer) == "<<5"
    assert branch.branch_start == branch.score_start == encoded.responses[0].token_start - 1


@pytest.mark.parametrize(
    ("text", "protocol"),
    [
        ("I say << >>", Protocol.EXACT),
        ("I say <<A", Protocol.EXACT),
        ("I say(<<A>>", Protocol.PAPER),
        ("I say <<A", Protocol.PAPER),
        ("I <<A>>, you", Protocol.PAPER),
    ],
)
def test_no_branches_where_the_response_has_no_span_of_its_own(text: str, protocol: Protocol) -> None:
    encoded = encode_with(text, [["A", "B"]], tiny_tokenizer(" <<", ">>,"), protocol)
    assert encoded.options == ()
    assert encoded.option_sets == (("A", "B"),)


def test_the_cleaning_applies_to_a_paper_option() -> None:
    tokenizer = tiny_tokenizer(" <<", "<<-")
    encoded = encode_with("I say <<5>> and <<-5>>", [["5", "-5"]] * 2, tokenizer, Protocol.PAPER)
    assert [scored_text(encoded, branch, tokenizer) for branch in encoded.options] == ["5", "Ġ-5", "5", "Ġ-5"]


def test_an_option_that_the_paper_scan_does_not_find_has_no_branch() -> None:
    tokenizer = tiny_tokenizer(" <<", "!>>")
    encoded = encode_with("I say <<A>> and", [["A", "!"]], tokenizer, Protocol.PAPER)
    assert [branch.option_idx for branch in encoded.options] == [0]


def test_options_past_the_context_have_no_branch() -> None:
    text, options = "I <<A>> I <<A>>", [["A", "long"]] * 2
    encoded = encode_with(text, options, tiny_tokenizer(), Protocol.EXACT, limit=5)
    assert [(branch.response_idx, branch.option_idx) for branch in encoded.options] == [(0, 0)]
    assert [response.flags for response in encoded.responses] == [(), ("truncated",)]


def test_sets_are_trimmed_made_unique_and_dropped_where_they_offer_no_choice() -> None:
    encoded = encode_with("a <<A>> b <<B>>", [[" A", "A", "B "], ["B", " B"]], tiny_tokenizer(), Protocol.EXACT)
    assert encoded.option_sets == (("A", "B"), None)
    mismatch = encode_with("a <<A>> b <<B>>", [["A", "B"]], tiny_tokenizer(), Protocol.EXACT)
    assert mismatch.option_sets == (None, None)


@pytest.mark.parametrize("name", REAL)
def test_long_transcripts_are_not_tokenised_again_for_each_option(name: str) -> None:
    tokenizer = real_tokenizer(name)
    text = "".join(
        f"Trial {trial}: you see two cups and press <<{'AB'[trial % 2]}>>. You win.\n" for trial in range(300)
    )
    splicer = Splicer(text, tokenizer.encode(text), tokenizer)
    for source in find_responses(text).responses:
        splicer.replace(source.char_start, "C>>")
    assert splicer.num_whole <= 2  # those near the top, where the whole text is short


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_transcripts_change_as_the_whole_text_does(name: str, shared_dir: Path) -> None:
    tokenizer = real_tokenizer(name)
    for study in sorted((shared_dir / "data" / "psych201").glob("*/prompts.jsonl")):
        with study.open(encoding="utf-8") as lines:
            text = json.loads(next(lines))["text"]
        splicer = Splicer(text, tokenizer.encode(text), tokenizer)
        sources = find_responses(text).responses
        for source in sources[:: max(1, len(sources) // 3)]:
            for option in ("B>>", "7>>", "-é>>"):
                splice = splicer.replace(source.char_start, option)
                whole = tokenizer.encode(text[: source.char_start] + option)
                ids = [*splicer.encoding.ids[: splice.num_kept], *splice.tail.ids]
                assert ids == whole.ids.tolist(), (study.parent.name, source.char_start, option)


def test_tokenizers_that_mark_the_first_word_fall_back_to_the_whole_text() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers
    from tokenizers_real import wrapped

    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {char: 256 + nth for nth, char in enumerate("▁abcdefghijklmnopqrstuvwxyzAB<>.")}
    backend = Backend(models.BPE(vocab, [], byte_fallback=True, unk_token="<0x00>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = wrapped(backend)
    text = "you press <<A>> and win. " * 20
    encoded = encode_with(text, [["A", "B"]] * 20, tokenizer, Protocol.EXACT)
    assert len(encoded.options) == 40
    assert {scored_text(encoded, branch, tokenizer) for branch in encoded.options} == {"A", "B"}
    splicer = Splicer(text, tokenizer.encode(text), tokenizer)
    whole = tokenizer.encode(text[:400] + "B>>")
    assert splicer.replace(400, "B>>").tail.ids.tolist() == whole.ids.tolist()
    assert splicer.num_whole == 1
