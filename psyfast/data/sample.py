"""The embedded sample: synthetic studies in Psych-201's format, whose best reachable NLL is known.

Every row holds, beside the fields of real data, `true_nll_nats`: the NLL of each response under the process that
generated it. Its mean is what a perfect model of these participants would score in expectation.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from psyfast.data.sample_tasks import TASKS, Draws
from psyfast.errors import UsageError

SampleSize = Literal["tiny", "demo", "large"]

_TRUE_NLL_FIELD = "true_nll_nats"
_COUNTRIES = ("DEU", "GBR", "USA", "CAN", "IND", "ZAF", "NLD", "BRA")


@dataclass(frozen=True)
class _Extent:
    """num_participants: of each study. num_trials: by study, in the order of TASKS."""

    num_participants: int
    num_trials: tuple[int, int, int]


_EXTENTS: dict[SampleSize, _Extent] = {
    "tiny": _Extent(2, (12, 8, 12)),
    "demo": _Extent(4, (55, 26, 50)),
    "large": _Extent(50, (100, 60, 100)),
}


def write_sample(
    folder: str | Path,
    *,
    seed: int = 0,
    num_participants: int | None = None,
    size: SampleSize = "demo",
    overwrite: bool = False,
) -> list[Path]:
    """Write STUDY/prompts.jsonl for every study of the sample and return their paths.

    The same seed gives the same bytes, and a participant's session does not depend on how many others there are.
    num_participants: of each study, instead of the size's own. Raises UsageError for a size that is not one and, without
    overwrite=True, before anything is written if a file of other content is there.
    """
    if size not in _EXTENTS:
        raise UsageError(f"sample size is '{size}', expected one of {', '.join(_EXTENTS)}")
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected 0 or more")
    if num_participants is not None and num_participants < 1:
        raise UsageError(f"num_participants is {num_participants}, expected 1 or more")
    extent = _EXTENTS[size]
    num_participants = num_participants or extent.num_participants
    contents: dict[Path, bytes] = {}
    for study_idx, (study, num_trials) in enumerate(zip(TASKS, extent.num_trials, strict=True)):
        rows = (_row(study, Draws(seed, study_idx, i), num_trials, i) for i in range(num_participants))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        contents[Path(folder) / study / "prompts.jsonl"] = lines.encode()
    if not overwrite:
        for path, content in contents.items():
            if path.exists() and path.read_bytes() != content:
                raise UsageError(f"{path}: is there with other content; name another folder, or allow it: --overwrite")
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(contents)


def _row(study: str, draws: Draws, num_trials: int, participant: int) -> dict[str, Any]:
    age, gender = draws.integer(18, 65), draws.pick(("female", "male", "other"))
    country, trait_anxiety = draws.pick(_COUNTRIES), draws.integer(20, 80)
    session = TASKS[study](draws, num_trials)
    is_one_set = all(options == session.options[0] for options in session.options)
    row: dict[str, Any] = {
        "text": "\n".join(session.lines) + "\n",
        "study": study,
        "experiment": f"{study}/exp1",
        "participant": participant,
        "RTs": session.rts_ms,
        "age": age,
        "gender": gender,
        "nationality": country,
        # both forms of the field occur in real data: one set for all responses, and a set each
        "options": session.options[0] if is_one_set and participant % 2 == 0 else session.options,
        _TRUE_NLL_FIELD: session.nll_nats(),
    }
    if participant % 2 == 0:
        row["stai_total"] = trait_anxiety
    return row


def true_nll(transcript_extra: str) -> list[float] | None:
    """NLL in nats of each response under the process that generated it, out of a Transcript's `extra`.

    None where the data has no such field, or where it is no list of finite numbers.
    """
    values = json.loads(transcript_extra or "{}").get(_TRUE_NLL_FIELD)
    if not isinstance(values, list):
        return None
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values]
