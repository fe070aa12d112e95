"""Compares the rows that policies keep with the rows that presses of kvpress kept of the same tensors.

    .venv/bin/python benchmarks/kvpress/overlap.py build/kvpress-capture

``capture.py`` writes the folder and says how. Policies are scored by the NumPy reference on the
same queries, keys, values and W_O, with the press' hyper-parameters and the rows protected that the
press protects, and planned as the engine does. Where two rules differ on purpose, a further line
changes just that on this side, to show that nothing else differs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from restkv_local import __version__
from restkv_local.allocators.ada import Ada
from restkv_local.allocators.base import Allocator, Demand
from restkv_local.allocators.pyramid import Pyramid
from restkv_local.allocators.uniform import Uniform
from restkv_local.markdown import write_table
from restkv_local.model.output_factors import factor_gram
from restkv_local.planning import plan_eviction, protect_rows
from restkv_local.policies.base import Policy, reduce_groups
from restkv_local.policies.criticalkv import CriticalKV
from restkv_local.policies.expected_attention import ExpectedAttention
from restkv_local.policies.h2o import H2O
from restkv_local.policies.keydiff import KeyDiff
from restkv_local.policies.snapkv import SnapKV
from restkv_local.policies.streamingllm import StreamingLLM
from restkv_local.policies.tova import TOVA
from restkv_local.reference import column_statistics, observe, window_attention
from restkv_local.types import F32, F64, Bool, Observation, ObservationRequest

RATIOS = (0.5, 0.75, 0.9)  # of the rows, removed
N_SINK = 4
UNIFORM = Uniform()
RESULT = Path(__file__).parents[1] / "results" / "kvpress-overlap.md"
INTRO = """\
# The rows that kvpress keeps

    build/kvpress/bin/python benchmarks/kvpress/capture.py MODEL build/kvpress-capture
    .venv/bin/python benchmarks/kvpress/overlap.py build/kvpress-capture

`benchmarks/kvpress/capture.py` says how to make the environment and what MODEL is. restkv-local {ours}
against {theirs}; {model}; {prompts} prompts of {lengths} tokens.

Both sides get the same tensors of every layer and keep as many rows in all. The overlap in a KV head is the
number of rows that both keep over the rows of the larger set; shown are its means over prompts, layers and KV
heads, and the lowest KV head of all. "Chosen rows" leaves out the rows that are protected anyway.
"""
OUTRO = """
What is left where a mean is above: beyond the ends of the text kvpress pools zeros, here the outermost row
stands in; and it rounds every layer's pyramid for itself, here the total is met. criticalkv's L2 norm of the
projected value, for the source's L1, is the rest.

Where a mean is below 0.99:
"""
HEAD = (
    "ours", "kvpress", "alike", "changed here", "50 % removed", "75 %", "90 %", "lowest head", "chosen rows",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one layer was captured with; shapes as in `reference.observe`."""

    index: int
    n_layer: int
    q: F32
    k: F32
    v: F32
    w_o: F32  # (n_head, d, n_embd)
    factors: F32
    moments: tuple[F64, F64, F64]
    received: F64  # attention from all queries: (n_head, n_kv)

    @property
    def scale(self) -> float:
        """Factor of the logits."""
        return float(self.k.shape[-1] ** -0.5)

    @property
    def n_kv(self) -> int:
        """Rows."""
        return int(self.k.shape[1])

    def track(self, figures: F64) -> F32:
        """Reduce figures of query heads to what the engine would track: (n_head_kv, n_kv)."""
        return reduce_groups(figures, len(self.k)).astype(np.float32)


def weigh_by_queries(layer: Layer, observation: Observation) -> Observation:
    """Divide the attention that a row received by the number of queries that saw it."""
    n_queries = np.arange(layer.n_kv, 0, -1)
    return replace(observation, tracked=layer.track(layer.received / n_queries))


def measure_l1(layer: Layer, observation: Observation) -> Observation:
    """Measure projected values by their L1 norm."""
    values = np.repeat(layer.v, len(layer.q) // len(layer.v), axis=0)
    return replace(observation, value_norm=np.abs(values @ layer.w_o).sum(axis=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes
    ----------
    press : str
        Name in ``capture.py``.
    policy, allocator
        What stands against it.
    alike : str
        What both sides are set to, for the reader.
    n_obs, n_sink, n_recent : int
        Observed queries, and the rows that the press protects.
    changed : str
        What this line does otherwise than the policy and allocator would.
    change : callable, optional
        Does it to the observation.
    protected_compete : bool
        Whether the allocator splits protected rows too, instead of setting them aside.
    reason : str
        Why the overlap is low.
    """

    press: str
    policy: Policy
    allocator: Allocator = UNIFORM
    alike: str
    n_obs: int = 32
    n_sink: int = 0
    n_recent: int = 32
    changed: str = ""
    change: Callable[[Layer, Observation], Observation] | None = None
    protected_compete: bool = False
    reason: str = ""

    @property
    def name(self) -> str:
        """Policy, and allocator unless it is the plain one."""
        allocator = "" if self.allocator is UNIFORM else f" + {self.allocator.name}"
        return self.policy.name + allocator


SNAPKV = SnapKV(kernel=5)
CRITICAL = CriticalKV(kernel=5, first_stage=0.5, epsilon=1e-4)
WINDOW = "window 32, kernel 5"
STAGES = f"{WINDOW}, first stage 0.5, epsilon 1e-4"
EXPECTED_ATTENTION = Case(
    press="expected-attention",
    policy=ExpectedAttention(epsilon=1e-2, n_sink=N_SINK),
    alike="epsilon 1e-2, 512 positions ahead, 4 sinks",
    n_sink=N_SINK,
    n_recent=0,
)
OBSERVED_ATTENTION = Case(
    press="observed-attention",
    policy=H2O(recent_ratio=0),
    alike="nothing protected",
    n_recent=0,
    reason="H2O ranks by the sum of the attention, as published. The press ranks by the mean over the queries"
    " that saw the row, which favours new rows where a sum favours old ones.",
)
PYRAMID = Case(
    press="pyramidkv",
    policy=SNAPKV,
    allocator=Pyramid(beta=20),
    alike="window 4, kernel 5, beta 20",
    n_obs=4,
    n_recent=4,
    reason="The pyramid is built of the rows that scores choose, and the window comes on top, as in the authors'"
    " repository. kvpress counts the window into it, which makes it steeper.",
)
ADA = Case(
    press="adakv",
    policy=SNAPKV,
    allocator=Ada(floor=0.2),
    alike=f"{WINDOW}, floor 0.2",
    reason="A fifth of the rows is split evenly and the rest by the scores, as in the paper. kvpress ranks each"
    " head's best fifth first, window included, which binds only heads that would get less.",
)
CASES = (
    Case(press="snapkv", policy=SNAPKV, alike=WINDOW),
    Case(press="tova", policy=TOVA(), alike="last row protected", n_obs=1, n_recent=1),
    Case(press="streamingllm", policy=StreamingLLM(), alike="4 sinks", n_sink=N_SINK, n_recent=1),
    Case(press="keydiff", policy=KeyDiff(), alike="nothing protected", n_recent=0),
    EXPECTED_ATTENTION,
    OBSERVED_ATTENTION,
    replace(OBSERVED_ATTENTION, changed="mean instead of sum", change=weigh_by_queries),
    PYRAMID,
    replace(PYRAMID, changed="window counted into the pyramid", protected_compete=True),
    ADA,
    Case(
        press="adakv without floor",
        policy=SNAPKV,
        allocator=Ada(floor=0),
        alike=f"{WINDOW}, floor 0",
    ),
    Case(press="criticalkv", policy=CRITICAL, alike=STAGES),
    Case(
        press="criticalkv", policy=CRITICAL, alike=STAGES, changed="L1 norm", change=measure_l1
    ),
    Case(
        press="criticaladakv",
        policy=CRITICAL,
        allocator=Ada(floor=0.2),
        alike=f"{STAGES}, floor 0.2",
        reason="The floor is that of adakv. In kvpress all of its rows also belong to the first stage.",
    ),
    Case(
        press="criticaladakv without floor",
        policy=CRITICAL,
        allocator=Ada(floor=0),
        alike=f"{STAGES}, floor 0",
    ),
    Case(
        press="criticaladakv without floor",
        policy=CRITICAL,
        allocator=Ada(floor=0),
        alike=f"{STAGES}, floor 0",
        changed="L1 norm",
        change=measure_l1,
    ),
)  # fmt: skip


def read_layers(capture: Mapping[str, Any], w_o: F32, factors: F32) -> list[Layer]:
    """Take a prompt's tensors apart, and sum up its attention."""
    tensors = {name: capture[name] for name in ("q", "k", "v", "mean", "moment")}
    rotation = capture["rotation"].astype(np.float64)
    n_layer, _, n_kv, d = tensors["q"].shape
    rows = np.arange(n_kv, dtype=np.int32)
    layers = []
    for i in range(n_layer):
        q, k, v, mean, moment = (array[i] for array in tensors.values())
        attention = window_attention(q, k, d**-0.5, q_row=rows)
        received, _ = column_statistics(attention, rows, rows + 1)
        moments = (mean.astype(np.float64), moment.astype(np.float64), rotation)
        layers.append(
            Layer(
                index=i, n_layer=n_layer, q=q, k=k, v=v, w_o=w_o[i], factors=factors[i],
                moments=moments, received=received,
            )
        )  # fmt: skip
    return layers


def observe_layer(case: Case, layer: Layer) -> Observation:
    """Serve the policy's request from one layer, and change what the case changes."""
    n_kv = layer.n_kv
    request = case.policy.request(case.n_obs, n_kv - 1, n_kv - case.n_sink - case.n_recent)
    observation = observe(
        layer.q[:, -case.n_obs :],
        layer.k,
        layer.v,
        layer.factors,
        request or ObservationRequest(),
        np.tile(np.arange(n_kv, dtype=np.int32), (len(layer.k), 1)),
        np.arange(n_kv - case.n_obs, n_kv, dtype=np.int32),
        layer.scale,
        layer=layer.index,
        n_layer=layer.n_layer,
        moments=layer.moments,
        tracked=layer.track(layer.received),
    )
    return observation if case.change is None else case.change(layer, observation)


def plan(
    case: Case, observations: list[Observation], scores: F32, protected: Bool, n_keep: int
) -> Bool:
    """Keep ``n_keep`` rows in all, planned as the engine does: (n_layer, n_head_kv, n_kv)."""
    protected = np.broadcast_to(protected, scores.shape)
    n_kv = scores.shape[-1]
    demand = Demand(
        budget=n_keep // (scores.size // n_kv),
        n_rows=np.full(scores.shape[:2], n_kv, np.int32),
        candidates=np.ones_like(protected) if case.protected_compete else ~protected,
        n_most=n_kv,
        scores=scores,
        observations=observations,
    )
    allocation = case.allocator.allocate(demand)
    n_select = allocation - np.count_nonzero(protected, axis=-1).astype(np.int32)
    ranked = [
        case.policy.rerank(*layer)
        for layer in zip(scores, observations, ~protected, n_select, strict=True)
    ]
    return plan_eviction(np.stack(ranked), allocation, protected).keep


def overlap(ours: Bool, theirs: Bool) -> F64:
    """Share of the larger set of each KV head that is in both: (n_layer, n_head_kv)."""
    both = np.count_nonzero(ours & theirs, axis=-1)
    larger = np.maximum(np.count_nonzero(ours, axis=-1), np.count_nonzero(theirs, axis=-1))
    return np.where(larger == 0, 1.0, both / np.maximum(larger, 1))


def compare(case: Case, layers: list[Layer], capture: Mapping[str, Any]) -> F64:
    """Overlap of all rows, and of the chosen ones: (2, ratio, n_layer, n_head_kv)."""
    observations = [observe_layer(case, layer) for layer in layers]
    scores = np.stack([case.policy.score(observation) for observation in observations])
    protected = protect_rows(scores.shape[-1], n_sink=case.n_sink, n_recent=case.n_recent)
    found = []
    for ratio in RATIOS:
        theirs = capture[f"keep/{case.press}/{ratio}"]
        ours = plan(case, observations, scores, protected, int(np.count_nonzero(theirs)))
        found.append((overlap(ours, theirs), overlap(ours & ~protected, theirs & ~protected)))
    return np.array(found).swapaxes(0, 1)


def make_table(found: F64) -> str:
    """Return the table and the reasons; ``found`` is (case, prompt, 2, ratio, n_layer, n_head_kv)."""
    lines, reasons = [], []
    for case, results in zip(CASES, found, strict=True):
        kept, chosen = results.swapaxes(0, 1)
        means = kept.mean(axis=(0, 2, 3))
        figures = [f"{share:.4f}" for share in means]
        figures += [f"{kept.min():.3f}", f"{chosen.mean():.4f}"]
        lines.append([case.name, case.press, case.alike, case.changed or "-", *figures])
        if means.min() < 0.99:
            reasons.append(f"- {case.name}, {case.press}: {case.reason or 'not explained'}")
    return "\n".join([write_table(HEAD, lines, n_left=len(HEAD)), OUTRO, *reasons])


def main() -> None:
    """Compare every case on every prompt; print the table and write it to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("capture", type=Path, help="folder that capture.py wrote")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    with np.load(options.capture / "model.npz") as model:
        w_o, name, versions = model["w_o"], str(model["model"]), json.loads(str(model["versions"]))
    factors = np.stack([factor_gram(layer @ layer.swapaxes(1, 2)) for layer in w_o])
    found, lengths = [], []
    for path in sorted(options.capture.glob("prompt-*.npz")):
        started = time.perf_counter()
        with np.load(path) as capture:
            layers = read_layers(capture, w_o, factors)
            found.append([compare(case, layers, capture) for case in CASES])
        lengths.append(f"{layers[0].n_kv:,}")
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)
    intro = INTRO.format(
        ours=__version__,
        theirs=", ".join(" ".join(item) for item in versions.items()),
        model=name,
        prompts=len(lengths),
        lengths=", ".join(lengths),
    )
    text = f"{intro}\n{make_table(np.array(found).swapaxes(0, 1))}\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
