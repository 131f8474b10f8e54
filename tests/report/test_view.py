"""Bars that would dwarf all others are cut; whatever lies near the points is not."""

import polars as pl

from psyfast.report.view import caption, within_view

BARS = [("low", "high")]


def shown(frame, by=()):
    return within_view(frame, "x", BARS, by).select("low_shown", "high_shown", "cut_low", "cut_high").rows()


def test_nothing_is_cut_where_bars_are_alike():
    frame = pl.DataFrame({"x": [0.0, 1.0], "low": [-1.0, 0.0], "high": [1.0, 2.0]})
    assert shown(frame) == [(-1.0, 1.0, None, None), (0.0, 2.0, None, None)]
    assert caption(within_view(frame, "x", BARS)) == ""


def test_one_row_is_shown_whole():
    assert shown(pl.DataFrame({"x": [0.0], "low": [-400.0], "high": [300.0]})) == [(-400.0, 300.0, None, None)]


def test_a_bar_to_the_moon_is_cut_and_marked():
    frame = pl.DataFrame(
        {
            "x": [0.0, 1.0, 2.0, 0.5],
            "low": [-0.1, 0.9, 1.9, -400_000.0],
            "high": [0.1, 1.1, 2.1, 900_000.0],
        }
    )
    *others, moon = shown(frame)
    assert others == [(-0.1, 0.1, None, None), (0.9, 1.1, None, None), (1.9, 2.1, None, None)]
    assert moon == (-2.0, 4.0, -2.0, 4.0)  # the points' range beyond them
    assert "triangle" in caption(within_view(frame, "x", BARS))


def test_rows_without_a_bar_and_groups():
    frame = pl.DataFrame(
        {
            "who": ["a", "a", "a", "b"],
            "x": [0.0, 0.1, 0.2, 50.0],
            "low": [-0.1, 0.0, None, 0.0],
            "high": [0.1, 99.0, None, 100.0],
        }
    )
    a1, a2, a3, b = shown(frame, ["who"])
    assert a1 == (-0.1, 0.1, None, None) and a3 == (None, None, None, None)
    assert a2[1] == a2[3] < 99 and a2[2] is None
    assert b == (0.0, 100.0, None, None)


def test_what_must_be_in_view_is():
    frame = pl.DataFrame({"d": [0.0, 0.001], "low": [-0.04, 0.0], "high": [0.04, 0.002]})
    bars = [("low", "high")]
    assert within_view(frame, "d", bars)["cut_low"].is_not_null().any()
    wide = within_view(frame, "d", bars, at_least=(-0.05, 0.05))
    assert wide["cut_low"].is_null().all()
    assert wide["low_shown"].to_list() == [-0.04, 0.0]
