"""How far an eviction moves each layer's attention output, on real activations: what ReST-KV minimises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from restkv_local import reference
from restkv_local.engine import Engine
from restkv_local.errors import RestKVError, UnsupportedModelError
from restkv_local.evaluation.grid import Cell, read_whole
from restkv_local.evaluation.likelihood import make_item
from restkv_local.evaluation.log import Item, Record
from restkv_local.evaluation.reading import OnFailure, Passage, Reader
from restkv_local.evaluation.tasks.text import Stride, cut_strides
from restkv_local.model.output_factors import fold_v_rotation
from restkv_local.policies.registry import make_policy
from restkv_local.storage.factor_cache import load_output_factors
from restkv_local.types import F32, F64, Bool

NAME: Final = "reconstruction"
METRIC: Final = "error"


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """One piece of a text, read whole; every cell only plans."""

    item: Item
    stride: Stride

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that differ here: those that evict, read whole."""
        return [cell for cell in read_whole(cells) if cell.evicts]

    def is_whole(self, record: Record) -> bool:
        """Tell whether it has all: it always has."""
        return True

    def measure(
        self, reader: Reader, cells: Sequence[Cell], on_failure: OnFailure
    ) -> Iterator[Record]:
        """Measure the plan of each cell by the queries that made it.

        The score is the mean over layers of the relative error, ``extra`` has each layer's.
        """
        passage = Passage(tokens=list(self.stride.read), n_more=0, seed=self.item.seed)
        # Where the text is repeated, the queries of its end are gone afterwards: those come last.
        order = sorted(cells, key=lambda cell: make_policy(cell.policy).track == "repeat")
        rows = reader.resolve_rows(order, passage, on_failure)
        if not rows:
            return
        try:
            engine = reader.read(list(rows), passage)
        except RestKVError as error:
            for cell in rows:
                on_failure(cell, error)
            return
        n_obs = min(engine.config.n_obs, engine.native.n_observed)
        queries = [engine.native.read(i, "q", n_obs) for i in range(len(engine.native.layers))]
        kept: dict[Cell, Bool] = {}
        for cell, n_rows in rows.items():
            try:
                engine.use(policy=cell.policy, allocation=cell.allocation, budget=n_rows)
                kept[cell] = engine.plan(n_obs).keep
            except RestKVError as error:
                on_failure(cell, error)
        errors, projects = measure_layers(reader, engine, queries, kept)
        for cell, by_layer in errors.items():
            yield Record(
                item=self.item,
                cell=cell,
                scores={METRIC: float(np.mean(by_layer))},
                tokens={"read": len(passage.tokens), "after": 0, "written": 0},
                kv={
                    "budget": rows[cell],
                    "seen": len(passage.tokens),
                    "kept": min(rows[cell], len(passage.tokens)),
                },
                extra={
                    "layers": [layer.il for layer in engine.native.layers],
                    "errors": by_layer,
                    "projected": projects,
                },
            )


def measure_layers(
    reader: Reader, engine: Engine, queries: Sequence[F32], kept: dict[Cell, Bool]
) -> tuple[dict[Cell, list[float]], bool]:
    """Return the relative error of each layer for each plan, and whether it was taken after W_O."""
    native = engine.native
    errors: dict[Cell, list[float]] = {cell: [] for cell in kept}
    factors: list[F32 | None]
    try:
        factors = [factor for _, factor in load_output_factors(reader.llama.shape)]
    except UnsupportedModelError:
        factors = [None] * len(native.layers)
    for i, (q, factor) in enumerate(zip(queries, factors, strict=True)):
        if factor is not None and native.v_rotated:
            factor = fold_v_rotation(factor)
        k, v = native.read(i, "k"), native.read(i, "v")
        n_kv, n_obs = k.shape[1], q.shape[1]
        scale, softcap, _ = native.attention_params(i)
        rows = np.arange(n_kv - n_obs, n_kv, dtype=np.int32)
        attn = reference.window_attention(q, k, scale, softcap, q_row=rows)
        for cell, keep in kept.items():
            errors[cell].append(relative_error(attn, v, factor, keep[i]))
    return errors, factors[0] is not None


def relative_error(attn: F64, v: F32, factors: F32 | None, keep: Bool) -> float:
    """Return ``||o - o_kept|| / ||o||`` of one layer over all heads and queries.

    Parameters
    ----------
    attn : ndarray of shape (n_head, n_obs, n_kv)
        Attention over all rows.
    v : ndarray of shape (n_head_kv, n_kv, d)
        Values.
    factors : ndarray of shape (n_head, d, d), optional
        Matrices with ``||x F|| = ||x W_O||`` for each head.
    keep : ndarray of shape (n_head_kv, n_kv), bool
        Rows that stay.

    Notes
    -----
    Norms are taken of each head's part of the output and added in squares: the factors keep no angles between heads.
    """
    moved = reference.set_error(attn, v, factors, ~keep)
    values = np.repeat(v, attn.shape[0] // v.shape[0], axis=0).astype(np.float64)
    output = np.einsum("hwn,hnd->hwd", attn, values)
    image = output if factors is None else output @ factors
    return float(np.linalg.norm(moved) / np.linalg.norm(image))


def plan_strides(
    reader: Reader, *, file: Path | None, length: int, seed: int, n: int | None
) -> Iterator[Reconstruction]:
    """Yield pieces of a text that do not overlap.

    Raises
    ------
    RestKVError
        If the text cannot be had or is too short.
    """
    native = reader.llama.native

    def encode(text: str) -> list[int]:
        return native.tokenize(text, add_special=True)

    # The token after the piece is of no use here.
    for piece in cut_strides(
        encode, file=file, n_read=length, n_scored=1, stride=length, n=n, bos=native.bos
    ):
        yield Reconstruction(make_item(NAME, piece, length, seed), piece)
