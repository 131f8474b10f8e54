"""Transcripts on their way to the engine: rendered under every condition, encoded, made into requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, tee

from psyfast.data.conditions.renderer import Renderer
from psyfast.data.encode import encode_texts
from psyfast.data.encoded import Encoded, Limits
from psyfast.data.records import Transcript
from psyfast.data.rendering import LeftOut, RenderedText, Rendering
from psyfast.data.tokenizer import Tokenizer
from psyfast.plan.records import Request
from psyfast.rows import request_of


@dataclass(frozen=True)
class Rendered:
    """A transcript under one condition on its way to the engine; encoded, requests: one a text of the rendering."""

    rendering: Rendering | LeftOut
    encoded: tuple[Encoded, ...]
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Work:
    """A transcript on its way to the engine; rendered: by condition, in the run's order."""

    transcript: Transcript
    rendered: tuple[Rendered, ...]

    @property
    def requests(self) -> tuple[Request, ...]:
        """Those of every text, condition after condition."""
        return tuple(request for one in self.rendered for request in one.requests)


def prepared(
    transcripts: Iterator[Transcript], renderer: Renderer, tokenizer: Tokenizer, limits: Limits, *, num_workers: int = 0
) -> Iterator[Work]:
    """Transcripts rendered and encoded, in their order; num_workers: processes that tokenise (0: this one)."""
    kept, to_encode = tee((transcript, renderer.render(transcript)) for transcript in transcripts)
    groups = (tuple(chain.from_iterable(map(_texts, renderings))) for _, renderings in to_encode)
    encoded = encode_texts(groups, tokenizer, renderer.setting.protocol, limits, num_workers=num_workers)
    for (transcript, renderings), group in zip(kept, encoded, strict=True):
        of_texts = iter(group)
        rendered = []
        for rendering in renderings:
            own = tuple(islice(of_texts, len(_texts(rendering))))
            rendered.append(Rendered(rendering, own, tuple(map(request_of, own))))
        yield Work(transcript, tuple(rendered))


def _texts(rendering: Rendering | LeftOut) -> tuple[RenderedText, ...]:
    return () if isinstance(rendering, LeftOut) else rendering.texts
