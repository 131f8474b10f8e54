"""Ids and raw offsets, on real vocabularies and on invented ones."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_real import REAL, real_tokenizer, tiny_tokenizer, wrapped

from psyfast.data.tokenizer import Tokenizer
from psyfast.errors import ModelError

TEXTS = st.lists(
    st.sampled_from(
        [" A", "<<", ">>", "é", "e\u0301", "🙂", "👩‍👩‍👧", "日本", "\n", "  ", "word", "3", "\u1100\u1161"]
    ),
    max_size=25,
).map("".join)


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(text=TEXTS)
def test_offsets_cover_every_character_in_order(name: str, text: str) -> None:
    encoding = real_tokenizer(name).encode_plain(text)
    starts, stops = encoding.offsets[:, 0], encoding.offsets[:, 1]
    assert (starts[1:] >= starts[:-1]).all()
    assert (starts < stops).all()
    covered = {place for start, stop in encoding.offsets for place in range(start, stop)}
    assert covered == set(range(len(text)))


@pytest.mark.parametrize("name", REAL)
def test_tokens_keep_their_white_space(name: str) -> None:
    tokenizer = real_tokenizer(name)
    text = "You press <<A>>."
    encoding = tokenizer.encode(text)
    opener = tokenizer.encode_plain(" <<").ids[0]
    place = encoding.ids.tolist().index(opener)
    assert encoding.offsets[place].tolist() == [9, 12]


@pytest.mark.parametrize("name", REAL)
def test_parts_of_a_character_have_its_whole_span(name: str) -> None:
    encoding = real_tokenizer(name).encode_plain("a🦩b𝔸c")
    spans = {tuple(span) for span in encoding.offsets.tolist()}
    assert {span for span in spans if span[0] <= 1 < span[1]} <= {(1, 2), (0, 2)}
    assert encoding.overlapping(1, 2)[1] - encoding.overlapping(1, 2)[0] > 1
    assert max(stop for _, stop in spans) == 5


@pytest.mark.parametrize("name", ["qwen2", "qwen3.5"])
def test_composed_accents_refer_to_the_text_as_it_came(name: str) -> None:
    tokenizer = real_tokenizer(name)
    decomposed, composed = tokenizer.encode_plain("<<cafe\u0301>> x"), tokenizer.encode_plain("<<caf\u00e9>> x")
    assert decomposed.ids.tolist() == composed.ids.tolist()
    assert decomposed.overlapping(6, 7) == decomposed.overlapping(5, 7) == composed.overlapping(5, 6)
    assert decomposed.offsets[-1, 1] == len("<<cafe\u0301>> x")


def test_special_tokens_belong_to_no_span() -> None:
    tokenizer = tiny_tokenizer(bos="<s>")
    encoding = tokenizer.encode("ab")
    assert encoding.ids[0] == tokenizer.bos
    assert encoding.offsets.tolist() == [[0, 0], [0, 1], [1, 2]]
    assert encoding.overlapping(0, 2) == (1, 3)
    assert encoding.overlapping(1, 1) == (1, 1)
    assert tokenizer.encode_plain("ab").ids.tolist() == encoding.ids[1:].tolist()
    assert tokenizer.encode("").ids.tolist() == [tokenizer.bos]


def test_never_truncates_or_pads(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import PreTrainedTokenizerFast

    plain = tiny_tokenizer()
    hf_tokenizer = PreTrainedTokenizerFast(tokenizer_object=_backend(plain), model_max_length=4)
    hf_tokenizer.backend_tokenizer.enable_truncation(3)
    hf_tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer = Tokenizer(hf_tokenizer)
    assert len(tokenizer.encode("x" * 99).ids) == 99
    assert tokenizer.sha256 == plain.sha256
    assert "longer" not in capsys.readouterr().err


def test_pickles_to_the_same_tokenizer() -> None:
    tokenizer = tiny_tokenizer(" <<", bos="<s>")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.sha256, again.bos) == (tokenizer.sha256, tokenizer.bos)
    assert again.encode("a <<b").ids.tolist() == tokenizer.encode("a <<b").ids.tolist()


def test_sha256_is_of_the_vocabulary() -> None:
    assert tiny_tokenizer("ab").sha256 == tiny_tokenizer("ab").sha256 != tiny_tokenizer("ac").sha256


def test_refuses_slow_tokenizers() -> None:
    class Slow:
        is_fast = False
        name_or_path = "some/model"

    with pytest.raises(ModelError, match=r"some/model.*slow tokenizer.*tokenizer\.json"):
        Tokenizer(Slow())


def test_refuses_a_tokenizer_whose_python_class_changes_the_ids() -> None:
    from transformers import PreTrainedTokenizerFast

    class Odd(PreTrainedTokenizerFast):
        def __call__(self, *args: object, **kwargs: object) -> dict[str, list[int]]:
            return {"input_ids": [1]}

    with pytest.raises(ModelError, match="Python class changes"):
        Tokenizer(Odd(tokenizer_object=_backend(tiny_tokenizer())))


def test_white_space_is_kept_inside_a_sequence_of_post_processors() -> None:
    from tokenizers import processors

    backend = _backend(tiny_tokenizer(" A"))
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True)])
    assert wrapped(backend).encode(" A").offsets.tolist() == [[0, 2]]


def _backend(tokenizer: Tokenizer) -> object:
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(tokenizer.__reduce__()[1][0])
