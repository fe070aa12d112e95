"""How well a text is predicted after an eviction: perplexity, and how far from the full cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from restkv_local.engine import Engine
from restkv_local.errors import ConfigError, RestKVError
from restkv_local.evaluation.grid import FULL, Cell
from restkv_local.evaluation.log import Item, Record
from restkv_local.evaluation.reading import OnFailure, Passage, Reader
from restkv_local.evaluation.tasks.text import Stride, cut_strides
from restkv_local.types import F32, F64

NAME: Final = "ppl"


@dataclass(frozen=True, slots=True)
class Continuation:
    """One piece of a text, whose end is predicted token by token."""

    item: Item
    stride: Stride

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that differ here: all."""
        return list(cells)

    def is_whole(self, record: Record) -> bool:
        """Tell whether it was compared with the full cache: where that could not be had, it may be now."""
        return "kl" in record.scores

    def measure(
        self, reader: Reader, cells: Sequence[Cell], on_failure: OnFailure
    ) -> Iterator[Record]:
        """Predict in each cell, in the full cache first.

        The first token of the continuation is given: what predicts it was read before the eviction. Scores: ``nll``,
        mean negative log-likelihood in nats; ``kl``, mean Kullback-Leibler divergence of the full cache's
        predictions from the cell's, in nats; ``same_top``, how often both think the same token likeliest.
        Where the full cache cannot be had, the last two are missing.
        """
        scored = self.stride.scored
        full: list[F32] = []

        def judge(cell: Cell, engine: Engine, logits: F32) -> Record:
            nll, kl, same_top = [], [], []
            predicted: list[F32] = []
            for i, (token, target) in enumerate(pairwise(scored)):
                engine.step(token)
                found = log_softmax(engine.native.logits())
                nll.append(-float(found[target]))
                if cell == FULL:
                    predicted.append(found.astype(np.float32))
                if full or predicted:
                    wanted = found if cell == FULL else full[i].astype(np.float64)
                    kl.append(float((np.exp(wanted) * (wanted - found)).sum()))
                    same_top.append(float(wanted.argmax() == found.argmax()))
            # All or none: a full cache that fails half way is none to compare with.
            full.extend(predicted)
            scores = {"nll": float(np.mean(nll))}
            if full:
                scores |= {"kl": float(np.mean(kl)), "same_top": float(np.mean(same_top))}
            return Record(
                item=self.item,
                cell=cell,
                scores=scores,
                tokens={"read": len(self.stride.read), "after": len(scored), "written": 0},
                kv=engine.kv_report(),
            )

        def on_cell_failure(cell: Cell, error: RestKVError) -> None:
            if cell in cells:
                on_failure(cell, error)
            else:
                on_failure(cell, type(error)(f"nothing to compare with: {error}"))

        passage = Passage(tokens=list(self.stride.read), n_more=len(scored), seed=self.item.seed)
        wanted = [FULL, *(cell for cell in cells if cell != FULL)]
        for cell, record, read_s in reader.measure(wanted, passage, judge, on_cell_failure):
            record.timings["read"] = round(read_s * 1e3, 3)
            if cell in cells:
                yield record


def predict_strides(
    reader: Reader,
    *,
    file: Path | None,
    length: int,
    seed: int,
    n_scored: int,
    stride: int | None,
    n: int | None,
) -> Iterator[Continuation]:
    """Yield the pieces of a text.

    Parameters
    ----------
    file : Path, optional
        A document; None: the manual that ships with Python.
    length : int
        Tokens to read before an eviction.
    n_scored, stride, n
        As in :func:`~restkv_local.evaluation.tasks.text.cut_strides`.

    Raises
    ------
    RestKVError
        If the text cannot be had or is too short.
    """
    if n_scored < 2:
        raise ConfigError(
            f"{NAME} predicts all but the first scored token; got n_scored={n_scored}"
        )
    native = reader.llama.native

    def encode(text: str) -> list[int]:
        return native.tokenize(text, add_special=True)

    pieces = cut_strides(
        encode, file=file, n_read=length, n_scored=n_scored, stride=stride, n=n, bos=native.bos
    )
    for piece in pieces:
        yield Continuation(make_item(NAME, piece, length, seed, stride), piece)


def make_item(task: str, piece: Stride, length: int, seed: int, stride: int | None = None) -> Item:
    """Return what a piece of running text is called in the log, where pieces of several strides are not to mix."""
    tokens = np.array([*piece.read, *piece.scored, *filter(None, [stride])], np.int32)
    return Item(
        task=task,
        family=task,
        id=f"{piece.start}-{len(piece.read)}-{len(piece.scored)}",
        length=length,
        seed=seed,
        question="",
        prompt_hash=hashlib.sha256(tokens.tobytes()).hexdigest(),
    )


def log_softmax(logits: F32) -> F64:
    """Return the logarithms of the probabilities: (n_vocab,), float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    result: F64 = wide - np.log(np.exp(wide).sum())
    return result
