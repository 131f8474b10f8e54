"""What goes into planning and what comes out: requests; batches, and where each request's scores stand in them.

ids       10 11 12 13 14 15          scored_positions 3, 5: the tokens 13 and 15
rows          *     *                predicted from the rows of positions 2 and 4; token 15 is never an input
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from psyfast.plan.forest import IntArray, TokenIds
from psyfast.plan.pages import PageTables


@dataclass(frozen=True)
class Branch:
    """An alternative continuation: the request's first `start` ids, then `ids`.

    Its scored tokens are those at positions [score_start, score_stop) of that sequence.
    """

    start: int
    ids: TokenIds
    score_start: int
    score_stop: int

    @property
    def num_own_tokens(self) -> int:
        """Tokens of its own to compute: its last scored one is never an input, so an option of one token has none."""
        return max(0, self.score_stop - 1 - self.start)


@dataclass(frozen=True)
class Request:
    """A token sequence, the positions (≥ 1) whose tokens are scored, and its branches."""

    ids: TokenIds
    scored_positions: IntArray
    branches: tuple[Branch, ...] = ()

    @property
    def num_inputs(self) -> int:
        """Tokens that must be computed: nothing after the last row that predicts a scored token or starts a branch."""
        return max([self._last_scored, *(branch.start for branch in self.branches)])

    @property
    def num_unshared_inputs(self) -> int:
        """The same where nothing is shared: a branch with tokens of its own brings its first tokens with it."""
        return max([self._last_scored, *(branch.start for branch in self.branches if not branch.num_own_tokens)])

    @property
    def num_tokens(self) -> int:
        """Tokens to compute where only a branch's first tokens are shared, with its own request."""
        return self.num_inputs + sum(branch.num_own_tokens for branch in self.branches)

    @property
    def _last_scored(self) -> int:
        return int(self.scored_positions.max()) if len(self.scored_positions) else 0


@dataclass(frozen=True)
class Batch:
    """What the engine runs: T tokens of a forest in pages, N scored rows (entries), K option columns (−1: none).

    The tokens stand segment by segment, in the order that PageTables describes.
    """

    token_ids_T: IntArray
    positions_T: IntArray
    pages: PageTables
    rows_N: IntArray
    target_N: IntArray
    option_ids_NK: IntArray


@dataclass(frozen=True)
class ScoredTokens:
    """Where the scores of one run of scored tokens stand: entry of the batch, option column or −1 for its target."""

    entry: IntArray
    column: IntArray


@dataclass(frozen=True)
class ScoredRuns:
    """Many runs of scored tokens, cut out when they are asked for: run i is [indptr[i], indptr[i + 1]) of the arrays."""

    entry: IntArray
    column: IntArray
    indptr: IntArray

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, run_idx: int) -> ScoredTokens:
        run_idx = range(len(self))[run_idx]
        tokens = slice(self.indptr[run_idx], self.indptr[run_idx + 1])
        return ScoredTokens(self.entry[tokens], self.column[tokens])

    def __iter__(self) -> Iterator[ScoredTokens]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True)
class BranchRuns:
    """The branches' runs of every request: request i has the runs [indptr[i], indptr[i + 1])."""

    runs: ScoredRuns
    indptr: IntArray

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, request_idx: int) -> ScoredRuns:
        request_idx = range(len(self))[request_idx]
        bounds = self.runs.indptr[self.indptr[request_idx] : self.indptr[request_idx + 1] + 1]
        return ScoredRuns(self.runs.entry, self.runs.column, bounds)

    def __iter__(self) -> Iterator[ScoredRuns]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True)
class Plan:
    """The batches to run, and for each request its scored tokens and those of its branches.

    There is one batch, except where a lone request was split (psyfast.plan.split); entries count through all batches.
    """

    batches: tuple[Batch, ...]
    requests: ScoredRuns
    branches: BranchRuns
    num_request_tokens: int

    @property
    def batch(self) -> Batch:
        """The batch of a plan that has one."""
        (only,) = self.batches
        return only
