"""Reading cells once: threads keep the order, and equal columns are known by their bytes."""

import threading

import pytest
from written_runs import response, write_run

from psyfast.metrics.in_order import in_order
from psyfast.metrics.results import open_results
from psyfast.metrics.row_numbers import columns_sha256


def test_results_come_in_order_whoever_is_done_first():
    second_done = threading.Event()

    def work(number):
        if number == 0:
            assert second_done.wait(10)
        if number == 1:
            second_done.set()
        return number * 10

    assert list(in_order(work, range(5))) == [0, 10, 20, 30, 40]


def test_an_error_reaches_the_caller():
    def work(number):
        if number == 2:
            raise ValueError("2")
        return number

    with pytest.raises(ValueError, match="2"):
        list(in_order(work, range(5)))


def test_columns_are_known_by_their_bytes(tmp_path):
    rows = {nll: [response("s", p, i, nll + i) for p in "12" for i in range(3)] for nll in (1.0, 2.0)}
    run = write_run(tmp_path / "run", {("m", "plain"): rows[1.0], ("n", "plain"): rows[2.0]}).path
    m, n = (cell.parts[0] for cell in open_results([run]).cells)
    assert columns_sha256(m, ["participant"]) == columns_sha256(n, ["participant"])
    assert columns_sha256(m, ["nll_nats"]) != columns_sha256(n, ["nll_nats"])
    assert columns_sha256(m, ["participant"]) != columns_sha256(m, ["study"])
