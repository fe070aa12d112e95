"""What the model has read and not yet repeated, cut into probes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

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
        Tokens read and not yet repeated.
    lead : list of int
        The last tokens that were repeated.
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

    def probe(self) -> tuple[list[int], int]:
        """Return the tokens to read next, and how many of them, the last ones, are repeated."""
        part = self.pending[: self.n_part]
        return [*self.request, *self.lead, *part], len(part)

    def advance(self, n: int) -> None:
        """Note that the next ``n`` tokens have been repeated."""
        self.lead = [*self.lead, *self.pending[:n]][-_N_LEAD:]
        self.pending = self.pending[n:]

    def __copy__(self) -> Repetition:
        """Return a copy that changes on its own."""
        return Repetition(self.request, self.n_ubatch, [*self.pending], [*self.lead])

    def clear(self) -> None:
        """Forget the text."""
        self.pending, self.lead = [], []
