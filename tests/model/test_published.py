"""The published size classes: planned with neither weights nor network, their sizes as published, every model of the study."""

import json
import re
from math import prod

import pytest
from typer.testing import CliRunner

from psyfast.cli import app
from psyfast.data.sample import write_sample
from psyfast.metrics.pairs import load_pairs
from psyfast.model.families import FAMILIES
from psyfast.model.load.config import traits_from_config
from psyfast.model.load.names import HEAD, needless, plain_name
from tests.model.published import (
    CLASSES,
    PAGE,
    PUBLISHED,
    SOURCES,
    SOURCES_WITH_EXPERTS,
    WITH_EXPERTS,
    num_used,
    of_transformers,
    page,
    saved_by_transformers,
)
from tests.tiny import make_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, num_participants=1)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Files of a small one: what is planned is the arithmetic of a text, whatever its tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def weights_by_transformers(name):
    """Of the model that transformers makes: those that text needs, the rest, and those of the first that a token meets.

    A tied head is no weight of its own.
    """
    traits = traits_from_config(PUBLISHED[name], name)
    vision = next(family.vision for family in FAMILIES if family.architecture == traits.family)
    needed, rest = {}, {}
    for spelt, shape in saved_by_transformers(of_transformers(PUBLISHED[name])).items():
        tensor_name = plain_name(spelt)
        if tensor_name == HEAD and traits.tied_head:
            continue
        (rest if needless(tensor_name, traits, vision) else needed)[tensor_name] = shape
    return sum(map(prod, needed.values())), sum(map(prod, rest.values())), num_used(needed, PUBLISHED[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_planned_from_its_configuration_and_weighs_what_is_published(name, data, tokenizer, tmp_path):
    for file, text in tokenizer.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]), encoding="utf-8")
    shown = CliRunner().invoke(app, ["plan", str(data), "--model", str(tmp_path), "--device", "h100", "--json"])
    assert shown.exit_code == 0, shown.output
    (plan,) = json.loads(shown.output)

    needed, rest, used = weights_by_transformers(name)
    assert plan["num_params"] == needed
    published = CLASSES[name].num_params
    if isinstance(published, int):
        assert needed + rest == published
    elif published is not None:
        assert needed + rest == pytest.approx(published, rel=0.03)
    if CLASSES[name].num_used is not None:
        assert used == pytest.approx(CLASSES[name].num_used, rel=0.03)
    assert plan["memory"]["weights"] == plan["disk_bytes"] == 2 * needed
    assert plan["counted"]["num_responses"] > 0
    # Two operations for each weight of a layer that a token meets; attention and the head come on top.
    traits = traits_from_config(PUBLISHED[name], name)
    in_layers = used - (2 - traits.tied_head) * traits.vocab_size * traits.hidden_size
    assert plan["counted"]["required"]["linear"] == pytest.approx(
        2 * in_layers * plan["counted"]["num_unique"], rel=0.01
    )


def test_every_model_of_the_study_is_of_one_size_class():
    models = [model for size in CLASSES.values() for model in size.models]
    assert sorted(models) == sorted(load_pairs().models) and len(models) == 101


@pytest.mark.parametrize("name", [name for name, size in CLASSES.items() if size.models or name in WITH_EXPERTS])
def test_its_numbers_have_a_source(name):
    size = CLASSES[name]
    assert size.source and "hand" not in size.source
    for source in size.source:
        assert source in SOURCES | SOURCES_WITH_EXPERTS or re.match(
            r"(huggingface\.co|github\.com|ollama\.com)/\S+/|[a-z-]+ \(PyPI\), ", source
        )
    assert (size.num_params is None) == (size.counted is None)


def test_the_page_is_what_the_file_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.model.published"
