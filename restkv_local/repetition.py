"""What the model has read and not yet repeated, cut into probes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from restkv_local.types import Bool

# Long enough to be cheap beside its request, short enough for the rows that wait for it.
_N_PART: Final = 256

# Tokens before a part that say where in the text it begins.
_N_LEAD: Final = 8

REQUEST: Final = "\n\nRepeat the text above, word for word:\n\n"


@dataclass(slots=True)
class Repetition:
    """A text is read a second time, as if the model repeated it: its queries show which rows it takes to say it.

    The context reconstruction of KVzip (Kim et al., NeurIPS 2025, arXiv:2505.23416), part
    by part. The source repeats a text that is in the cache as a whole, 2,048 tokens at a
    time; here a part is repeated when the next eviction is due, and needs rows of
    its own until then, so parts are short.

    Attributes
    ----------
    request : tuple of int
        Tokens that ask for it.
    n_ubatch : int
        Most tokens read at once.
    pending : list of int
        Tokens read and not yet repeated: the newest of the text.
    lead : list of int
        The last tokens that are not pending any more.
    """

    request: tuple[int, ...]
    n_ubatch: int
    pending: list[int] = field(default_factory=list)
    lead: list[int] = field(default_factory=list)

    @property
    def n_part(self) -> int:
        """Most tokens repeated at once; 0 or less where ``n_ubatch`` leaves no room for one."""
        return min(_N_PART, self.n_ubatch - len(self.request) - _N_LEAD)

    @property
    def n_probe(self) -> int:
        """Most tokens of a probe."""
        return self.n_part + len(self.request) + _N_LEAD

    def probe(self, held: Bool) -> tuple[list[int], int, int]:
        """Return what to read next.

        Parameters
        ----------
        held : ndarray of shape (n_pending,), bool
            Which of the pending tokens have a row at all: another policy may have evicted the others meanwhile.

        Returns
        -------
        tokens : list of int
            The probe.
        n_repeated : int
            How many of its tokens, the last ones, are repeated.
        n_passed : int
            How many pending tokens that takes care of.
        """
        places = np.flatnonzero(held)
        n_passed = int(places[self.n_part]) if len(places) > self.n_part else len(held)
        part = [self.pending[place] for place in places[: self.n_part]]
        return [*self.request, *self.lead, *part], len(part), n_passed

    def advance(self, n: int) -> None:
        """Note that the next ``n`` tokens have been taken care of."""
        self.lead = [*self.lead, *self.pending[:n]][-_N_LEAD:]
        self.pending = self.pending[n:]

    def __copy__(self) -> Repetition:
        """Return a copy that changes on its own."""
        return Repetition(self.request, self.n_ubatch, [*self.pending], [*self.lead])

    def clear(self) -> None:
        """Forget the text."""
        self.pending, self.lead = [], []
