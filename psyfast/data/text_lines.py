"""A text's lines, and which of them its responses stand on."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, SourceResponse

_FIRST_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class TextLines:
    """Lines of a text by number; a line's end counts its line feed in."""

    text: str
    starts: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> TextLines:
        """The lines of a text; one that ends with a line feed has an empty last line."""
        return cls(text, (0, *(found.end() for found in re.finditer("\n", text))))

    def at(self, char_idx: int) -> int:
        """The line that a character stands on."""
        return bisect_right(self.starts, char_idx) - 1

    def stop(self, line_idx: int) -> int:
        """Where a line ends, its line feed included."""
        return self.starts[line_idx + 1] if line_idx + 1 < len(self.starts) else len(self.text)

    def is_blank(self, line_idx: int) -> bool:
        """Whether nothing but white space stands on a line."""
        return not self.text[self.starts[line_idx] : self.stop(line_idx)].strip()

    def first_word(self, line_idx: int) -> str | None:
        """The first word of a line, signs before it aside; None where it has none."""
        found = _FIRST_WORD.search(self.text, self.starts[line_idx], self.stop(line_idx))
        return found.group() if found else None

    def of_response(self, response: SourceResponse) -> tuple[int, int]:
        """The line of a response's open marker, and that of its close marker."""
        first = self.at(response.char_start - len(OPEN_MARKER))
        return first, first if response.unbalanced else self.at(response.char_stop + len(CLOSE_MARKER) - 1)

    def groups(self, responses: Sequence[SourceResponse]) -> list[range]:
        """Indices of responses that stand on one line together, group by group."""
        groups: list[range] = []
        stop_line = -1
        for response_idx, response in enumerate(responses):
            first, last = self.of_response(response)
            if groups and first <= stop_line:
                groups[-1] = range(groups[-1].start, response_idx + 1)
            else:
                groups.append(range(response_idx, response_idx + 1))
            stop_line = max(last, stop_line)
        return groups
