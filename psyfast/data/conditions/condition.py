"""What a condition is, and what it may depend on beside the transcript."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from psyfast.data.conditions.chat_template import ChatTemplate
from psyfast.data.conditions.persona_pool import PersonaPool
from psyfast.data.encoded import Protocol
from psyfast.data.records import PERSONA_FIELDS, Transcript
from psyfast.data.rendering import LeftOut, Rendering
from psyfast.data.trials import TrialNumbers


@dataclass(frozen=True)
class Setting:
    """What renderings of a run have in common.

    seed: of what is drawn. decide_trials: the caller's function, before the data's field and the rules. template: of the
    model at hand. pools: whose persona each participant gets, by the fields that are shown.
    """

    protocol: Protocol = Protocol.EXACT
    seed: int = 0
    decide_trials: TrialNumbers | None = None
    template: ChatTemplate | None = None
    pools: Mapping[tuple[str, ...], PersonaPool] = field(default_factory=dict)


Render = Callable[[Transcript, Setting], Rendering | LeftOut]


@dataclass(frozen=True)
class Condition:
    """A named rendering of transcripts.

    needs_template: it differs between chat templates. shuffles: it shows the persona of another participant.
    persona_fields: those that it shows. is_own: a function of the user's, not found again by its name.
    """

    name: str
    render: Render
    needs_template: bool = False
    shuffles: bool = False
    persona_fields: tuple[str, ...] = PERSONA_FIELDS
    is_own: bool = False
