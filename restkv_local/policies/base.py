"""What a policy is, and what its scores mean."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from restkv_local.types import F32, F64, I32, Bool, Observation, ObservationRequest, Tracked

if TYPE_CHECKING:
    from restkv_local.config import Config

Group = Literal["mean", "max"]


class Policy(Protocol):
    """Scores the rows of one layer. Frozen, no I/O; knobs are dataclass fields.

    Attributes
    ----------
    name : str
        Name in the registry and on the command line.
    summary : str
        The idea in one line.
    source : str
        Where the idea comes from.
    evicts : bool
        False for a policy that keeps every row, whatever the budget.
    keeps_sinks : bool
        False for a policy whose point is that the first tokens go too.
    comparable : bool
        True if scores mean the same in every KV head of every layer, as they are.
    track : {"none", "sum", "last_use", "repeat", "queries"}
        What the engine keeps up to date over all queries, prefill and decode.
        Figures of every row are carried through evictions: ``"sum"``, attention
        the row has received; ``"last_use"``, position of the newest token that
        gave it its fair share, 1 over the rows it saw, at first its own position.
        Of query heads that share a KV head: the mean, and the newest. ``"repeat"``:
        most attention that any query of the group gave the row when the model
        repeated the text.
        ``"queries"``: first and second moments of the queries before RoPE, which
        ``key_score="expected"`` is made from.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    evicts: ClassVar[bool] = True
    keeps_sinks: ClassVar[bool] = True
    comparable: ClassVar[bool] = False
    track: ClassVar[Tracked] = "none"

    @classmethod
    def from_config(cls, config: Config) -> Policy:
        """Build the policy from the options it understands: by default none."""
        return cls()

    def guided(self) -> Policy:
        """Return the policy for a window that is a question, not the running text: by default itself."""
        return self

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest | None:
        """Say what has to be observed: by default nothing.

        Parameters
        ----------
        n_obs : int
            Queries that will be observed.
        max_position : int
            Highest true position in the cache.
        n_select : int
            Rows that the scores will choose, protected ones not counted.
        """
        return None

    @abstractmethod
    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer.

        Returns
        -------
        ndarray of shape (n_head_kv, n_kv), float32
            Finite; higher means keep. Comparable within a KV head. Protected
            rows are scored like any other: keeping them is the planner's job.
            Places without a row may score anything finite.
        """
        ...

    def rerank(self, scores: F32, observation: Observation, candidates: Bool, n_select: I32) -> F32:
        """Score again once it is known how many rows each KV head may choose: by default nothing changes.

        Parameters
        ----------
        scores : ndarray of shape (n_head_kv, n_kv)
            What :meth:`score` returned, without the rows of a question that goes.
        observation : Observation
            What :meth:`score` was given; the rows of such a question are its last.
        candidates : ndarray of shape (n_head_kv, n_kv), bool
            Rows that are there and not protected.
        n_select : ndarray of shape (n_head_kv,), int32
            Candidates that will stay.

        Returns
        -------
        ndarray of shape (n_head_kv, n_kv), float32
            Finite; only the order of the candidates of a KV head means anything.
        """
        return scores


def observes_attention(policy: Policy) -> bool:
    """Whether a policy looks at the attention of the window, which some allocators then look at too."""
    request = policy.request(1, 0, 1)
    return request is not None and bool(request.reductions)


def reduce_groups(values: F32 | F64, n_head_kv: int, group: Group = "mean") -> F64:
    """Reduce query heads to the KV head they share.

    Parameters
    ----------
    values : ndarray of shape (n_head, ...)
        Query heads of one KV head are neighbours.
    n_head_kv : int
        Number of KV heads; divides ``n_head``.
    group : {"mean", "max"}
        How the query heads of a group are combined.

    Returns
    -------
    ndarray of shape (n_head_kv, ...), float64
    """
    grouped = values.reshape(n_head_kv, -1, *values.shape[1:])
    reduced = grouped.mean(axis=1, dtype=np.float64) if group == "mean" else grouped.max(axis=1)
    return np.asarray(reduced, np.float64)


def to_scores(values: F64) -> F32:
    """Round to float32 with what lies beyond its range at its ends, so that sums stay finite."""
    limit = np.finfo(np.float32).max
    return np.clip(values, -limit, limit).astype(np.float32)
