"""Labels: harmless, short, and told apart."""

import pytest

from psyfast.report.names import MAX_LENGTH, harmless, labels, model_labels, shortened


def test_control_and_direction_characters_are_shown_as_such():
    assert harmless("a\u202eb\u0000c\nd\u200fe") == "a�b�c�d�e"
    assert harmless("Größe 被験者 مشارك") == "Größe 被験者 مشارك"


def test_long_names_keep_their_ends():
    name = "beginning-" + "x" * 200 + "-end"
    assert len(shortened(name)) == MAX_LENGTH
    assert shortened(name).startswith("beginning-") and shortened(name).endswith("-end")
    assert shortened("a" * MAX_LENGTH) == "a" * MAX_LENGTH


def test_names_that_come_out_alike_are_numbered():
    names = ["x" * 100, "x" * 101, "x" * 102, "\u202ea", "\u202da", ""]
    found = labels(names)
    assert len(set(found.values())) == len(names)
    assert max(map(len, found.values())) <= MAX_LENGTH
    assert found["\u202da"] == "�a (2)" and found[""] == "(no name)"


@pytest.mark.parametrize(
    ("models", "shown"),
    [
        (["Qwen--Qwen2-7B", "allenai--Olmo-3-1025-7B"], ["Qwen2-7B", "Olmo-3-1025-7B"]),
        (["one--m", "two--m"], ["one--m", "two--m"]),
    ],
)
def test_models_lose_their_namespace_where_that_tells_them_apart(models, shown):
    assert list(model_labels(models).values()) == shown
