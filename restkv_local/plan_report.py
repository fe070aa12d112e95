"""What policies would keep of one text: their plans, and plans as figures and maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from restkv_local.chat.session import ChatSession
from restkv_local.documents import Source
from restkv_local.policies.registry import make_policy
from restkv_local.types import F64, Bool, EvictionPlan

if TYPE_CHECKING:
    from restkv_local.llama import Llama
    from restkv_local.sequence import OnProgress

# The end of the text that `newest` is about.
NEWEST_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class PlanFigures:
    """One plan in numbers, shares in [0, 1].

    Attributes
    ----------
    kept : float
        Rows that stay, of all rows.
    rows_min, rows_max : int
        Rows that stay in the emptiest and in the fullest KV head.
    overlap : float
        Rows of another plan that this one keeps too, mean over layers and KV heads.
    depth : float
        Mean place in the text of the rows that stay: 0 is its beginning, 1 its end.
    newest : float
        Rows that stay from the last tenth of the text, of those that stay.
    """

    kept: float
    rows_min: int
    rows_max: int
    overlap: float
    depth: float
    newest: float


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The plans for one text.

    Attributes
    ----------
    model : str
        Its name.
    n_tokens : int
        Tokens of the prompt, template included.
    budget : int
        Rows that a layer and KV head keeps, on average.
    allocation : str
        How they are split.
    n_obs : int
        Newest queries that scored the rows.
    n_pinned, n_sink, n_recent : int
        Tokens of the pinned prompt, first and newest tokens: no score can evict them. A policy without
        sinks may evict the first ones.
    layers : list of int
        The model's number of each layer that is evicted.
    plans : dict of EvictionPlan
        By policy.
    """

    model: str
    n_tokens: int
    budget: int
    allocation: str
    n_obs: int
    n_pinned: int
    n_sink: int
    n_recent: int
    layers: list[int]
    plans: dict[str, EvictionPlan]

    def figures(self) -> dict[str, PlanFigures]:
        """Return each plan in numbers; overlaps are with the first one."""
        first = next(iter(self.plans.values())).keep
        return {name: measure_plan(plan.keep, first) for name, plan in self.plans.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``restkv plan --json`` prints."""
        return {
            "model": self.model,
            "tokens": self.n_tokens,
            "budget": self.budget,
            "allocation": self.allocation,
            "n_obs": self.n_obs,
            "n_pinned": self.n_pinned,
            "n_sink": self.n_sink,
            "n_recent": self.n_recent,
            "layers": self.layers,
            "policies": [
                {"policy": name, **asdict(figures)} for name, figures in self.figures().items()
            ],
        }


def read_whole(
    llama: Llama,
    text: str,
    *,
    documents: Sequence[Source] = (),
    on_progress: OnProgress | None = None,
) -> None:
    """Read the prompt that a first message makes; every row stays.

    Parameters
    ----------
    llama : Llama
        With ``prefill="full"`` and what the policies track (:func:`~restkv_local.catalogue.tracked_by`).
    text : str
        The question, or empty.
    documents : sequence of Document, Path or str
        Read before the question, each under its name as in a session.
    on_progress : callable, optional
        Called after each chunk.

    Raises
    ------
    InputError
        If there is nothing to read.
    ConfigError
        If memory does not hold the whole prompt, or the budget not what must stay.
    """
    engine = llama.engine
    tokens, n_pinned = ChatSession(llama).prepare(text, documents=documents)
    # With room for an answer, as a session has it: a KV head may grow into that.
    engine.open(len(tokens), engine.config.n_predict, n_pinned)
    engine.read(tokens, evict=False, on_progress=on_progress)


def plan_policies(
    llama: Llama,
    policies: Sequence[str],
    *,
    on_policy: Callable[[str], None] = lambda name: None,
) -> PlanReport:
    """Let each policy plan the eviction that would follow the prompt just read; nothing is evicted.

    Parameters
    ----------
    llama : Llama
        After :func:`read_whole`; afterwards its engine uses the last policy.
    policies : sequence of str
        Names in the registry, at least one.
    on_policy : callable
        Called with each name before its turn.
    """
    engine = llama.engine
    n_obs = min(engine.config.n_obs, engine.native.n_observed)
    plans = {}
    # Where the text is repeated, the queries of its end are gone afterwards: those come last.
    for name in sorted(policies, key=lambda name: make_policy(name).track == "repeat"):
        on_policy(name)
        engine.use(policy=name)
        plans[name] = engine.plan(n_obs)
    return PlanReport(
        model=llama.shape.name,
        n_tokens=engine.counters.seen,
        budget=engine.budget,
        allocation=engine.config.allocation,
        n_obs=n_obs,
        n_pinned=engine.n_pinned,
        n_sink=engine.config.n_sink,
        n_recent=engine.config.n_recent,
        layers=[layer.il for layer in engine.native.layers],
        plans={name: plans[name] for name in policies},
    )


def measure_plan(keep: Bool, other: Bool) -> PlanFigures:
    """Put a plan in numbers.

    Parameters
    ----------
    keep : ndarray of shape (n_layer, n_head_kv, n_kv), bool
        Rows that stay of a text read whole, so that a row's index is its position.
    other : ndarray of the same shape, bool
        The plan to compare with, at least one row in each KV head.
    """
    n_kv = keep.shape[-1]
    n_keep = np.count_nonzero(keep, axis=-1)
    n_both = np.count_nonzero(keep & other, axis=-1)
    place = np.nonzero(keep)[-1]
    n_newest = max(1, round(NEWEST_SHARE * n_kv))
    return PlanFigures(
        kept=float(keep.mean()),
        rows_min=int(n_keep.min()),
        rows_max=int(n_keep.max()),
        overlap=float((n_both / np.count_nonzero(other, axis=-1)).mean()),
        # The middle of each token: a plan that keeps everything is half-way.
        depth=float((place.mean() + 0.5) / n_kv),
        newest=float((place >= n_kv - n_newest).mean()),
    )


def map_plan(keep: Bool, n_columns: int = 400) -> tuple[F64, int]:
    """Average a plan over KV heads and neighbouring tokens, for a picture.

    Parameters
    ----------
    keep : ndarray of shape (n_layer, n_head_kv, n_kv), bool
        Rows that stay.
    n_columns : int
        Columns at most.

    Returns
    -------
    shares : ndarray of shape (n_layer, n), float64
        Share of KV heads and tokens that stay, in [0, 1]. The last column may stand for fewer tokens.
    width : int
        Tokens of every other column.
    """
    n_kv = keep.shape[-1]
    width = -(-n_kv // n_columns)
    first = np.arange(0, n_kv, width)
    by_token = keep.mean(axis=1)  # (n_layer, n_kv)
    shares: F64 = np.add.reduceat(by_token, first, axis=-1) / np.diff(first, append=n_kv)
    return shares, width
