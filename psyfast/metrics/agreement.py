"""Human and model distributions over the options of an item that several participants met.

An item is what stands between the end of the line of the previous response and the response (between the two, where they
are on one line; everything before it, for a first response), letter for letter, within an experiment. Participants of
an item may differ in what came earlier, so the model's distribution is the mean of its distributions at the item.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from psyfast.metrics.choices import Choices
from psyfast.metrics.responses import KEY, Floats, Ints, ResponseIndex, read_columns, response_rows
from psyfast.metrics.results import Cell, Part
from psyfast.store.reading import transcripts_file
from psyfast.store.run_folder import RunFolder

Row = dict[str, object]


def item_of(text: str, previous_stop: int | None, char_start: int) -> str:
    """The text that makes the item of a response at char_start, after a response that ended at previous_stop."""
    if previous_stop is None:
        return text[:char_start]
    between = text[previous_stop:char_start]
    return between.partition("\n")[2] if "\n" in between else between


def read_items(index: ResponseIndex, cell: Cell, part: Part, min_participants: int) -> Ints:
    """Each response's item, [R]; −1 where there is no source text or fewer participants met it."""
    frame = read_columns(part, [*KEY, "response_idx", "char_start", "char_stop"])
    rows = response_rows(index, frame, cell, part)
    start_R, stop_R = np.full(index.num_responses, -1), np.full(index.num_responses, -1)
    start_R[rows] = frame["char_start"].fill_null(-1).to_numpy()
    stop_R[rows] = frame["char_stop"].fill_null(-1).to_numpy()
    numbers: dict[tuple[int, str], int] = {}
    item_R = np.full(index.num_responses, -1, np.int64)
    people = {key: idx for idx, key in enumerate(index.participants.select(KEY).iter_rows())}
    counts = index.participants["num_responses"].to_list()
    for batch in transcripts_file(RunFolder(part.run)).iter_batches(
        batch_size=500, columns=[*KEY, "condition", "text"]
    ):
        for *key, condition, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            person = people.get((key[0], key[1], key[2]))
            if condition != "plain" or person is None:
                continue
            first, group = int(index.start_P[person]), int(index.group_P[person])
            previous: int | None = None
            for row in range(first, first + counts[person]):
                if start_R[row] < 0:
                    continue
                item = (group, item_of(text, previous, int(start_R[row])))
                item_R[row] = numbers.setdefault(item, len(numbers))
                previous = int(stop_R[row])
    return _met_by_enough(index, item_R, len(numbers), min_participants)


def _met_by_enough(index: ResponseIndex, item_R: Ints, num_items: int, min_participants: int) -> Ints:
    known = item_R >= 0
    met = np.unique(item_R[known] * index.num_participants + index.participant_R[known]) // index.num_participants
    enough = np.bincount(met, minlength=num_items) >= min_participants
    return np.where(known & (enough[item_R] if num_items else False), item_R, -1)


def distances(human: Floats, model: Floats, item: Ints, num_items: int) -> tuple[Floats, Floats]:
    """Jensen-Shannon distance (base 2, 0 to 1; Lin 1991) and total variation of each item's two distributions."""
    middle = (human + model) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(p > 0, p * np.log2(p / middle), 0.0) for p in (human, model)]
    divergence = np.bincount(item, weights=(terms[0] + terms[1]) / 2, minlength=num_items)
    variation = np.bincount(item, weights=np.abs(human - model) / 2, minlength=num_items)
    return np.sqrt(np.clip(divergence, 0.0, 1.0)), np.asarray(variation, np.float64)


def agreement_rows(index: ResponseIndex, cell: Cell, choices: Sequence[Choices], item_R: Ints) -> list[Row]:
    """Rows of `agreement`: the mean over an experiment's items."""
    rows: list[Row] = []
    for of_run in choices:
        used_N = item_R[of_run.rows_N] >= 0
        if not used_N.any():
            continue
        items, item_N = np.unique(item_R[of_run.rows_N[used_N]], return_inverse=True)
        used_M = np.repeat(used_N, of_run.num_N)
        item_M = np.repeat(item_N, of_run.num_N[used_N])
        keys, key_M = np.unique(item_M * max(1, len(of_run.labels)) + of_run.label_M[used_M], return_inverse=True)
        own_M = np.zeros(len(of_run.label_M))
        own_M[of_run.start_N + of_run.own_N] = 1
        met = np.bincount(item_N)
        item_of_key = keys // max(1, len(of_run.labels))
        share = met[item_of_key]
        human = np.bincount(key_M, weights=own_M[used_M]) / share
        model = np.bincount(key_M, weights=of_run.probability_M[used_M]) / share
        jsd, variation = distances(human, model, item_of_key, len(items))
        group_of_item = np.zeros(len(items), np.int64)
        group_of_item[item_N] = index.group_R[of_run.rows_N[used_N]]
        for group in np.unique(group_of_item).tolist():
            mine = group_of_item == group
            rows.append(
                {
                    "model": cell.model,
                    "condition": cell.condition,
                    "experiment": index.groups[group],
                    "num_items": int(mine.sum()),
                    "num_responses": int(met[mine].sum()),
                    "jensen_shannon": float(jsd[mine].mean()),
                    "total_variation": float(variation[mine].mean()),
                }
            )
    return rows


def first_items(index: ResponseIndex, parts: Sequence[tuple[Cell, Part]], min_participants: int) -> Ints:
    """Items over several runs; those of one run are not taken together with another's."""
    item_R = np.full(index.num_responses, -1, np.int64)
    for cell, part in parts:
        found = read_items(index, cell, part, min_participants)
        item_R = np.where(found >= 0, found + item_R.max(initial=-1) + 1, item_R)
    return item_R


def per_item_note(item_R: Ints, min_participants: int) -> str:
    """What the figures of agreement rest on."""
    num = len(np.unique(item_R[item_R >= 0]))
    return f"agreement: {num:,} items that {min_participants} participants or more met"
