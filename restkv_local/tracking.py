"""What policies know of every query so far, kept up to date while a text is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy

from restkv_local.errors import ConfigError
from restkv_local.native import NativeContext
from restkv_local.observe import QueryMoments, track_native
from restkv_local.repetition import REQUEST, Repetition
from restkv_local.row_table import RowTable
from restkv_local.types import Tracked


class Tracking:
    """Figures of all queries: of each row in the row table, the rest here.

    Parameters
    ----------
    native : NativeContext
        A loaded model, whose context observes the newest queries.
    kinds : iterable of Tracked
        Which figures.
    n_ubatch : int
        Most tokens read at once.

    Raises
    ------
    ConfigError
        If the text is to be repeated and ``n_ubatch`` leaves no room for that.
    """

    def __init__(self, native: NativeContext, kinds: Iterable[Tracked], n_ubatch: int) -> None:
        self._native = native
        self.kinds: frozenset[Tracked] = frozenset(kinds) - {"none"}
        self.moments = QueryMoments()
        self.repetition: Repetition | None = None
        self.n_behind = 0  # newest queries that the figures lack
        if "repeat" in self.kinds:
            self.repetition = _prepare_repetition(native, n_ubatch)

    @property
    def n_repeat(self) -> int:
        """Rows that the next repetition takes, 0 where nothing is repeated."""
        return self.repetition.n_probe if self.repetition else 0

    def append(self, tokens: Sequence[int]) -> None:
        """Note that tokens have been read."""
        self.n_behind += len(tokens)
        if self.repetition:
            self.repetition.pending += tokens

    def catch_up(self, rows: RowTable, n_seen: int) -> None:
        """Bring all figures but those of a repetition up to date with the newest queries.

        Parameters
        ----------
        rows : RowTable
            Its figures change.
        n_seen : int
            Tokens seen.
        """
        if self.n_behind > 0:
            # A query that is counted twice or not at all is missing from every later eviction.
            self._native.finish(lambda: self._add_newest(rows, n_seen))

    def _add_newest(self, rows: RowTable, n_seen: int) -> None:
        for kind in self.kinds - {"repeat"}:
            figures = rows.figures(kind)
            if figures is None:
                self.moments.add(self._native, self.n_behind)
            else:
                track_native(self._native, kind, self.n_behind, n_seen, figures)
        self.n_behind = 0

    def add_repeated(self, rows: RowTable, n_seen: int, n: int) -> None:
        """Add what the newest ``n`` queries looked at, which repeat a part of the text."""
        figures = rows.figures("repeat")
        assert figures is not None, "it is tracked"
        track_native(self._native, "repeat", n, n_seen, figures)

    def clear(self) -> None:
        """Forget the text."""
        self.n_behind = 0
        self.moments = QueryMoments()
        if self.repetition:
            self.repetition.clear()

    def restore(self, moments: QueryMoments, repetition: Repetition | None) -> None:
        """Go back to what copies of both say; no query is missing in them."""
        self.n_behind = 0
        self.moments, self.repetition = copy(moments), copy(repetition)


def _prepare_repetition(native: NativeContext, n_ubatch: int) -> Repetition:
    request = native.tokenize(REQUEST, add_special=False)
    repetition = Repetition(tuple(request), n_ubatch)
    if repetition.n_part < 1:
        raise ConfigError(
            "a policy that has the text repeated needs n_ubatch of at least"
            f" {n_ubatch + 1 - repetition.n_part}; got n_ubatch={n_ubatch}"
        )
    return repetition
