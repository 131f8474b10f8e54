"""Tokenizers built from a GGUF file's vocabulary: transformers' JSON for the same file, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from gguf_files import write_vocabulary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_real import real_tokenizer, tiny_tokenizer

from psyfast.data.tokenizer import Tokenizer
from psyfast.errors import ModelError
from psyfast.model.load.gguf_tokenizer import ARCHITECTURES, SPLITS, gguf_tokenizer
from psyfast.model.load.locate import locate
from psyfast.model.load.tokenizer import load_tokenizer

WORDS = ("the", "You", " press", " <<", "\n\n", "  ", "12", "'s", "é")
SPECIAL = ("<|endoftext|>", "<s>", "</s>", "<think>")

CORPUS = [
    "",
    " ",
    "You press <<A>>.  I said: << é🙂>>\n",
    "In this task, you choose between slot machines 1, 22, 333 and 4444.\nYou win 3.14 points, 12,345 in all.\n",
    "\n\n\n1\t\t2\r\n\r\n 3  4   5    6\u00a07\u20098",
    "I'll we've they'd it's I'M YOU'RE 'tis ''s",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>no</think><|endoftext|> <s></s><|begin_of_text|>",
    "def f(x: int) -> str:\n    return f'{x!r:>{10}}'  # 100%\n\n\nclass A_b2(C): ...\n",
    "naïve café cafe\u0301 Straße ΑΒΓ абв 日本語のテスト 한국어 \u1112\u1161\u11ab عربى עברית हिन्दी ไทย",
    "👩‍👩‍👧 🦩𝔸 \ufeff\u200b\u0000\x7f\ufffd \U0010ffff",
    "٣٤٥ ⅷ ½ x² H₂O 1e-5 0xFF",
    "a" * 300 + " " * 300 + "ab" * 100 + "!?" * 100,
]


def by_transformers(path):
    from transformers import AutoTokenizer

    return Tokenizer(AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name))


def vocabulary(tokenizer):
    """(tokens in order, merges as GGUF spells them)"""
    model = json.loads(tokenizer.__reduce__()[1][0])["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def tiny(path, *, types=(3, 1, 1, 4), **settings):
    """A file of few tokens, the last of them SPECIAL."""
    tokens, merges = vocabulary(tiny_tokenizer(*WORDS))
    return write_vocabulary(path, [*tokens, *SPECIAL], merges, types=[1] * len(tokens) + list(types), **settings)


def place(special):
    return len(vocabulary(tiny_tokenizer(*WORDS))[0]) + SPECIAL.index(special)


IDS = {"bos_token_id": place("<s>"), "eos_token_id": place("</s>")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pre", [pre for pre in SPLITS if pre not in ("qwen35", "gpt-4o", "olmo")])
def test_every_known_kind_is_what_transformers_makes_of_it(tmp_path, architecture, pre):
    path = tiny(tmp_path / "x.gguf", architecture=architecture, pre=pre, **IDS)
    # transformers refuses the first of each; the text is cut alike
    like_llama = dict.fromkeys(("smollm3", "olmoe", "gpt-oss"), "llama")
    known = (like_llama | {"qwen35": "qwen2"}).get(architecture, architecture)
    same = tiny(tmp_path / "same.gguf", architecture=known, pre=pre, **IDS)
    ours, theirs = Tokenizer(gguf_tokenizer(path)), by_transformers(same)
    assert (ours.sha256, ours.bos) == (theirs.sha256, theirs.bos)
    assert [ours.encode(text).ids.tolist() for text in CORPUS] == [theirs.encode(text).ids.tolist() for text in CORPUS]


def test_gpt_oss_text_is_cut_as_tiktoken_cuts_it(tmp_path, monkeypatch):
    import regex
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    pattern = regex.compile(openai_public.o200k_base()["pat_str"])
    path = tiny(tmp_path / "x.gguf", architecture="gpt-oss", pre="gpt-4o")
    cut = gguf_tokenizer(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    rng = np.random.default_rng()
    letters = [*"aAzZßǅ日1٣½ \u0301\n\r\t/'!-", "'s", "'LL", "\u00a0", "ʰ", "🙂"]
    random = ["".join(rng.choice(letters, 200)) for _ in range(50)]
    for text in [*CORPUS, *random]:
        places = [(found.start(), found.end()) for found in pattern.finditer(text)]
        assert [place for _, place in cut(text)] == places, text


@pytest.mark.parametrize(
    ("architecture", "pre", "name"), [("qwen35", "qwen35", "Qwen3_5Tokenizer"), ("olmoe", "olmo", "GPTNeoXTokenizer")]
)
def test_what_composes_characters_is_transformers_own_tokenizer(tmp_path, architecture, pre, name):
    """GPT-NeoX's is the one that transformers takes for OLMoE."""
    from transformers.models.gpt_neox.tokenization_gpt_neox import GPTNeoXTokenizer
    from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

    own = {"Qwen3_5Tokenizer": Qwen3_5Tokenizer, "GPTNeoXTokenizer": GPTNeoXTokenizer}[name]
    path = tiny(tmp_path / "x.gguf", architecture=architecture, pre=pre)
    tokens, merges = vocabulary(tiny_tokenizer(*WORDS))
    theirs = own(
        {token: place for place, token in enumerate([*tokens, *SPECIAL])},
        [tuple(merge.split(" ")) for merge in merges],
    )
    ours = Tokenizer(gguf_tokenizer(path))
    plain = [text for text in CORPUS if not any(token in text for token in (*SPECIAL, "<|endoftext|>"))]
    assert len(plain) > 5 and any("\u0301" in text for text in plain)
    assert [ours.encode(text).ids.tolist() for text in plain] == [theirs(text)["input_ids"] for text in plain]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**IDS, "add_bos_token": True},
        {**IDS, "add_bos_token": True, "add_eos_token": True},
        {**IDS, "add_bos_token": False, "add_eos_token": True},
        {"eos_token_id": IDS["eos_token_id"], "add_bos_token": True},
        {**IDS, "unk_token_id": place("<think>"), "pad_token_id": place("</s>")},
        {**IDS, "types": (3, 3, 3, 3)},
        {**IDS, "types": (1, 1, 1, 1)},
        {**IDS, "types": (4, 4, 4, 4)},
        {**IDS, "add_space_prefix": True},
    ],
    ids=str,
)
def test_special_tokens_are_those_of_transformers(tmp_path, settings):
    path = tiny(tmp_path / "x.gguf", **settings)
    ours, theirs = Tokenizer(gguf_tokenizer(path)), by_transformers(path)
    assert (ours.sha256, ours.bos) == (theirs.sha256, theirs.bos)


@pytest.mark.parametrize(
    "settings",
    [{"pre": "refact"}, {"pre": None}, {"architecture": "gpt2"}, {"types": (3, 1, 1, 4), "tail": "<｜end｜>"}],
    ids=str,
)
def test_other_kinds_are_left_to_transformers(tmp_path, settings):
    tail = settings.pop("tail", None)
    path = tiny(tmp_path / "x.gguf", **settings)
    if tail is not None:  # not spelled in bytes, as DeepSeek's
        tokens, merges = vocabulary(tiny_tokenizer(*WORDS))
        path = write_vocabulary(path, [*tokens, tail], merges, types=[1] * len(tokens) + [3])
    assert gguf_tokenizer(path) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bos_token_id": 9999}, "'tokenizer.ggml.bos_token_id' is 9999, expected one of its"),
        ({"types": (1, 1, 1)}, "'tokenizer.ggml.token_type' has .* entries, expected"),
    ],
)
def test_ids_and_types_that_cannot_be_are_refused(tmp_path, settings, message):
    with pytest.raises(ModelError, match=rf"x\.gguf: {message}"):
        gguf_tokenizer(tiny(tmp_path / "x.gguf", **settings))


@pytest.mark.parametrize("merge", ["the nonsense", "t", "t h e", ""])
def test_a_merge_of_no_tokens_is_refused(tmp_path, merge):
    tokens, merges = vocabulary(tiny_tokenizer(*WORDS))
    path = write_vocabulary(tmp_path / "x.gguf", tokens, [*merges, merge])
    with pytest.raises(ModelError, match=r"x\.gguf: its vocabulary and merges make no tokenizer"):
        gguf_tokenizer(path)


def test_the_default_model_needs_no_transformers():
    real_tokenizer("smollm2")  # skips where the model is not there
    code = (
        "import sys; from psyfast.data.tokenizer import Tokenizer; from psyfast.model.load.tokenizer import load_tokenizer\n"
        "Tokenizer(load_tokenizer('smollm2-135m-instruct')).encode('x')\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_default_model_has_the_tokenizer_that_transformers_makes():
    real_tokenizer("smollm2")
    path = locate("smollm2-135m-instruct").path
    ours, theirs = Tokenizer(load_tokenizer("smollm2-135m-instruct")), by_transformers(path)
    assert (ours.sha256, ours.bos) == (theirs.sha256, theirs.bos)


@pytest.fixture(scope="module")
def llama3_file(tmp_path_factory):
    tokens, merges = vocabulary(real_tokenizer("llama3"))
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    types, path = [1] * len(tokens) + [3] * len(special), tmp_path_factory.mktemp("llama3") / "x.gguf"
    return write_vocabulary(path, [*tokens, *special], merges, pre="llama-bpe", types=types, bos_token_id=len(tokens))


@pytest.fixture(scope="module")
def llama3(llama3_file):
    return Tokenizer(gguf_tokenizer(llama3_file))


@pytest.mark.slow
def test_llama_3_differs_from_transformers_in_an_invented_token_alone(llama3_file, llama3):
    ours_json, theirs_json = (json.loads(made.__reduce__()[1][0]) for made in (llama3, by_transformers(llama3_file)))
    invented = theirs_json["added_tokens"].pop()
    assert (invented["content"], invented["id"]) == ("<|endoftext|>", len(ours_json["model"]["vocab"]))
    assert ours_json == theirs_json
    assert max(llama3.encode("<|endoftext|>").ids) < invented["id"]


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.sampled_from(CORPUS), st.text(max_size=60)))
def test_llama_3_gives_the_ids_of_its_own_tokenizer(llama3, text):
    ours, own = llama3, real_tokenizer("llama3")
    assert ours.encode_plain(text).ids.tolist() == own.encode_plain(text).ids.tolist()
