"""The study's pairs as facts, files that add to them, and which models of a run they mean."""

from collections import Counter

import pytest

from psyfast.errors import DataError
from psyfast.metrics.categories import UNCATEGORISED, read_categories
from psyfast.metrics.pairs import Pair, load_pairs, name_key


def test_the_studys_pairs_and_models():
    table = load_pairs()
    counts = Counter(pair.type for pair in table.pairs if not pair.apart)
    assert counts == {"instruction": 25, "reasoning": 17, "vision": 14, "code": 6, "math": 3}
    assert len(table.models) == 101
    trend = Counter(table.generation_of(pair) for pair in table.pairs if table.in_trend(pair))
    assert trend == {"Qwen2": 4, "Qwen2.5": 7, "Qwen3": 5, "Qwen3.5": 4}


def test_they_are_those_of_the_shared_facts(shared_dir):
    tomllib = pytest.importorskip("tomllib")
    facts = tomllib.loads((shared_dir / "data/models.toml").read_text())
    table = load_pairs()
    assert set(table.models) == set(facts["models"])
    own = {
        (p.base, p.post, p.type, table.generation_of(p), table.size_of(p.base), table.size_of(p.post))
        for p in table.pairs
        if not p.apart
    }
    keys = ("base", "post", "type", "generation", "base_size_b", "post_size_b")
    assert own == {tuple(pair[key] for key in keys) for pair in facts["pair"]}


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2-7B", "Qwen2-7B", "Qwen--Qwen2-7B", "folder/of/qwen2-7b/", "base+Qwen2-7B"]
)
def test_names_that_mean_the_same_model(name):
    assert name_key(name) == "qwen2-7b"


def test_a_users_file_adds_and_replaces(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(
        '[models.Mine]\n"me/base" = 0.1\n[pairs.noise]\n"me/post" = "me/base"\n"Qwen/Qwen2-7B-Instruct" = "me/base"\n'
        '[trend]\nMine = "noise"\n'
    )
    table = load_pairs(file)
    assert Pair("me/base", "me/post", "noise") in table.pairs
    assert [pair.base for pair in table.pairs if pair.post == "Qwen/Qwen2-7B-Instruct"] == ["me/base"]
    assert table.in_trend(Pair("me/base", "me/post", "noise"))
    assert len(table.pairs) == 67


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models", "cannot be read as a TOML file"),
        ("[pair.x]\na = 'b'", "has 'pair', expected the tables models, pairs"),
        ("[models.x]\na = 'big'", "models.x.a is 'big', expected a size"),
        ("[models.x]\na = -1", "expected a size"),
        ("[pairs.x]\na = 3", "expected the name of its base"),
        ("[pairs.x]\na = 'a'", "its own base"),
        ("[pairs.x]\na = 'b'\n[pairs.y]\na = 'c'", "'a' stands under 'x' and under 'y'"),
        ("pairs = 3", "expected tables like"),
        ("[pairs]\na = 'b'", "expected tables like"),
        ("trend = [1]", "trend is"),
    ],
)
def test_files_that_cannot_be_meant(tmp_path, text, message):
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        load_pairs(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.toml: cannot be read"):
        load_pairs(tmp_path / "nothing.toml")


def test_categories_in_both_forms(tmp_path):
    wide, narrow = tmp_path / "wide.csv", tmp_path / "narrow.csv"
    wide.write_text("experiment,dataset,Memory,Risky Choice\na,Psych-101,1,1\nbb,x,0,0\n", encoding="utf-8")
    narrow.write_text("study,category\na,Memory; Risky Choice\nbb,\n", encoding="utf-8")
    for path in (wide, narrow):
        found = read_categories(path)
        assert found.names == ("Memory", "Risky Choice")
        assert found.of("a") == ("Memory", "Risky Choice")
        assert found.of("bb") == found.of("c") == (UNCATEGORISED,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none"),
        ("name,Memory\na,1\n", "expected 'experiment'"),
        ("experiment,Memory\na,yes\n", "line 2: column 'Memory' holds 'yes', expected 0 or 1"),
        ("experiment,Memory\na,1\na,0\n", "'a' stands there twice"),
        ("experiment,Memory\na,1,1\n", "line 2: has more cells than the header"),
    ],
)
def test_category_files_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "categories.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_categories(path)


def test_the_studys_own_categories(shared_dir):
    found = read_categories(shared_dir / "data/experiment_categories.csv")
    assert found.of("vantiel2021probabilistic_pragmatics") == found.of("vantiel2021probabilisticpragmatics")
    assert found.of("vantiel2021probabilistic_pragmatics") != (UNCATEGORISED,)
    assert len(found.names) == 11
