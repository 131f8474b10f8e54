"""What a GGUF file's metadata say of a model, and what of them is refused by the file's own keys."""

import pytest

from psyfast.errors import ModelError
from psyfast.model.load.gguf_config import traits_from_gguf


def test_gguf_of_another_architecture_is_refused():
    with pytest.raises(ModelError, match="mamba"):
        traits_from_gguf({"general.architecture": "mamba"}, {}, "file")


def test_what_turns_of_a_head_in_gguf_is_the_number_that_the_file_says():
    """46 · (26 / 46) is 25.999…, of which 25 would turn."""
    said = {"block_count": 4, "context_length": 99, "embedding_length": 92, "feed_forward_length": 8}
    said |= {"attention.head_count": 2, "attention.key_length": 46, "rope.dimension_count": 26}
    sizes = {"conv_kernel": 4, "state_size": 8, "group_count": 2, "time_step_rank": 2, "inner_size": 16}
    said |= {f"ssm.{key}": value for key, value in sizes.items()}
    metadata = {"general.architecture": "qwen35", **{f"qwen35.{key}": value for key, value in said.items()}}
    traits = traits_from_gguf(metadata, {"model.embed_tokens.weight": (9, 92)}, "file")
    assert len(traits.rope.inv_freq(traits.head_dim)) == 13


GGUF_SIZES = {
    "block_count": 4,
    "context_length": 99,
    "embedding_length": 48,
    "feed_forward_length": 8,
    "attention.head_count": 4,
    "attention.key_length": 12,
}


def traits_of_metadata(architecture, said):
    metadata = {"general.architecture": architecture, **{f"{architecture}.{key}": said[key] for key in said}}
    return traits_from_gguf(metadata, {"model.embed_tokens.weight": (9, 48)}, "file")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "smollm3", "gemma2"])
def test_a_gguf_file_silent_of_heads_of_keys_has_as_many_as_of_queries(architecture):
    """As llama.cpp reads it, whatever transformers' default is."""
    assert traits_of_metadata(architecture, GGUF_SIZES).num_kv_heads == 4


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"embedding_length": 0}, "'llama.embedding_length' is 0, expected a positive integer"),
        (
            "qwen2",
            {"attention.head_count": None},
            "'qwen2.attention.head_count' is missing, expected a positive integer",
        ),
        ("qwen3", {"feed_forward_length": [8] * 4}, r"'qwen3.feed_forward_length' is \[8, 8, 8, 8\], expected"),
        ("gemma2", {"attention.sliding_window": 0}, "'gemma2.attention.sliding_window' is 0"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, r"'gemma2.attn_logit_softcapping' is -1\.0"),
        ("llama", {"attention.key_length": 7}, "'llama.attention.key_length' is 7; expected an even number"),
        ("llama", {"rope.freq_base": 0.5}, r"'llama.rope.freq_base' is 0\.5, expected a number above 1"),
    ],
)
def test_sizes_of_a_gguf_file_are_refused_by_the_files_own_keys(architecture, changes, message):
    said = {key: value for key, value in (GGUF_SIZES | changes).items() if value is not None}
    with pytest.raises(ModelError, match=message):
        traits_of_metadata(architecture, said)


def test_sizes_of_the_delta_rule_in_a_gguf_file_are_refused_by_its_own_keys():
    sizes = {"conv_kernel": 4, "state_size": 8, "group_count": 3, "time_step_rank": 4, "inner_size": 16}
    said = GGUF_SIZES | {"rope.dimension_count": 6} | {f"ssm.{key}": value for key, value in sizes.items()}
    with pytest.raises(
        ModelError, match=r"'qwen35\.ssm\.time_step_rank' to be a multiple of 'qwen35\.ssm\.group_count'"
    ):
        traits_of_metadata("qwen35", said)
