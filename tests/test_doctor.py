"""The tables that `psyfast doctor` prints."""

import io

import pytest
from rich.console import Console

from psyfast.doctor import PEAK_NOTES, measure_peak, peak_table
from psyfast.ops import peak


def measured(threads):
    products = [(product, isa) for product in ("tile", "whole") for isa in ("portable", "avx512_bf16")]
    for number, (product, isa) in enumerate([*products, ("torch", None)]):
        for lane in ("fp32", "bf16"):
            for num_threads in threads:
                rate = 1000 * number + num_threads + 0.4 + 500 * (lane == "bf16")
                yield {"product": product, "isa": isa, "lane": lane, "threads": num_threads, "gflop_per_s": rate}


def printed(renderable):
    console = Console(file=io.StringIO(), width=80)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("threads", [[1], [1, 128]])
def test_the_peaks_fit_80_columns_and_stand_in_their_places(threads):
    text = printed(peak_table(list(measured(threads))))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines() if "avx512_bf16" in line}
    per_thread = [[f"3,{n:03d}", f"3,{n + 500:03d}"] for n in threads]
    assert rows["whole", "avx512_bf16"] == [cell for pair in per_thread for cell in pair]
    (torch_row,) = [line.split() for line in text.splitlines() if line.startswith("torch.mm")]
    assert torch_row[1:3] == ["4,001", "4,501"]


def test_what_is_measured_is_what_the_table_takes(monkeypatch):
    monkeypatch.setattr(peak, "survey", lambda threads: [_row(threads)])
    (row,) = measure_peak()
    assert row == {
        "product": "tile",
        "isa": "avx2",
        "lane": "fp32",
        "threads": row["threads"],
        "gflop_per_s": 4.0,
        "median_gflop_per_s": 2.0,
        "repeats": 3,
    }
    assert "4" in printed(peak_table([row]))


def _row(threads):
    assert threads[0] == 1
    return peak.Measured("tile", "avx2", peak.Lane.FP32, threads[-1], peak.Timing(4e9, (1.0, 2.0, 3.0)))


def test_the_notes_name_the_sizes_that_are_measured():
    assert f"{peak.ROWS_A_THREAD} rows a thread times weights [{peak.COLUMNS}, {peak.INNER}]" in " ".join(PEAK_NOTES)
