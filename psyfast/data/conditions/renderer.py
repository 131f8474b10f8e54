"""All conditions of a run, applied to one transcript after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from psyfast.data.conditions.chat_template import ChatTemplate
from psyfast.data.conditions.condition import Condition, Setting
from psyfast.data.conditions.persona_pool import PersonaPool
from psyfast.data.records import Transcript
from psyfast.data.rendering import LeftOut, Rendering


@dataclass(frozen=True)
class Renderer:
    """Conditions in their order, and the setting that they share."""

    conditions: tuple[Condition, ...]
    setting: Setting

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions' names."""
        return tuple(condition.name for condition in self.conditions)

    @property
    def needs_template(self) -> bool:
        """Whether a condition depends on a chat template."""
        return any(condition.needs_template for condition in self.conditions)

    def with_pools(self, transcripts: Iterable[Transcript]) -> Renderer:
        """With the personas that are exchanged; the transcripts are read only where a condition asks for it."""
        pools = {
            condition.persona_fields: PersonaPool(transcripts, condition.persona_fields, self.setting.seed)
            for condition in self.conditions
            if condition.shuffles
        }
        return replace(self, setting=replace(self.setting, pools=pools))

    def with_template(self, template: ChatTemplate | None) -> Renderer:
        """For models of this chat template."""
        return replace(self, setting=replace(self.setting, template=template))

    def only(self, names: Sequence[str]) -> Renderer:
        """With some of the conditions."""
        return replace(self, conditions=tuple(one for one in self.conditions if one.name in names))

    def render(self, transcript: Transcript) -> tuple[Rendering | LeftOut, ...]:
        """What each condition makes of a transcript."""
        return tuple(condition.render(transcript, self.setting) for condition in self.conditions)
