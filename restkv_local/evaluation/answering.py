"""Asks the samples of a task: reads, evicts, answers greedily, scores."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from restkv_local.chat.text_stream import TextStream
from restkv_local.engine import Engine
from restkv_local.errors import InputError
from restkv_local.evaluation import Question
from restkv_local.evaluation.framing import Framing, Prompt
from restkv_local.evaluation.grid import Cell
from restkv_local.evaluation.log import Item, Record
from restkv_local.evaluation.metrics.registry import score_sample
from restkv_local.evaluation.reading import OnFailure, Passage, Reader
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, Task
from restkv_local.types import F32


@dataclass(frozen=True, slots=True)
class Asking:
    """One sample, ready to be read in any cell."""

    item: Item
    sample: Sample
    passage: Passage
    after: list[int]

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that differ here: all."""
        return list(cells)

    def is_whole(self, record: Record) -> bool:
        """Tell whether it has all: it always has."""
        return True

    def measure(
        self, reader: Reader, cells: Sequence[Cell], on_failure: OnFailure
    ) -> Iterator[Record]:
        """Answer in each cell."""
        sample = self.sample
        if not self.passage.tokens:
            nothing = InputError(
                "a sample has no text before its question; ask with --question aware"
            )
            for cell in cells:
                on_failure(cell, nothing)
            return

        def judge(cell: Cell, engine: Engine, logits: F32) -> Record:
            start = time.perf_counter()
            text, n_written = write_answer(
                engine,
                logits,
                self.after,
                sample.max_new_tokens,
                stop=sample.stop,
                stop_tokens=sample.stop_tokens,
                must_begin=sample.must_begin,
            )
            seconds = time.perf_counter() - start
            return Record(
                item=self.item,
                cell=cell,
                scores=score_sample(text, sample),
                tokens={
                    "read": len(self.passage.tokens),
                    "after": len(self.after),
                    "written": n_written,
                },
                timings={"answer": round(seconds * 1e3, 3)},
                kv=engine.kv_report(),
                prediction=text,
                references=list(sample.references),
                extra={"depth": sample.extra["depth"]} if "depth" in sample.extra else {},
            )

        for _, record, read_s in reader.measure(cells, self.passage, judge, on_failure):
            record.timings["read"] = round(read_s * 1e3, 3)
            yield record


def ask_samples(
    task: Task, request: Request, framing: Framing, question: Question, reader: Reader
) -> Iterator[Asking]:
    """Yield the samples of a task.

    Parameters
    ----------
    question : {"aware", "unknown"}
        Whether the question is known while the context is read.

    Raises
    ------
    RestKVError
        If the task cannot make its samples, or a metric lacks its package.
    """
    for sample in task.make(request):
        score_sample("-", sample)  # what a metric lacks must show before minutes of reading
        prompt = framing.frame(sample)
        config = reader.llama.config
        after: list[int] = []
        guide: list[int] = []
        if question == "aware":
            tokens = framing.tokenize(prompt)
            guide = framing.guide(prompt, tokens, config)
        else:
            tokens, after = framing.tokenize_parts(prompt)
        item = Item(
            task=sample.task,
            family=task.family,
            id=sample.id,
            length=request.length or sample.extra.get("length"),
            seed=request.seed,
            question=question,
            prompt_hash=hash_asked(sample, prompt),
        )
        passage = Passage(
            tokens=tokens,
            n_more=len(after) + sample.max_new_tokens,
            guide=guide,
            n_pinned=framing.count_pinned(prompt),
            seed=request.seed,
        )
        yield Asking(item, sample, passage, after)


def hash_asked(sample: Sample, prompt: Prompt) -> str:
    """Return SHA-256 of all that decides an answer and its scores, as 64 hexadecimal digits.

    That is the prompt as it is rendered and where its question begins, what ends an answer, what it is compared with
    and how.
    """
    # Only where there are some: logs of before go on.
    ends = [sample.stop_tokens, sample.must_begin] if sample.stop_tokens else []
    # Where a file lies changes nothing.
    extra = {name: value for name, value in sample.extra.items() if name != "source"}
    decides = {
        "prompt": [prompt.context, prompt.question, prompt.ending],
        "answer": [sample.max_new_tokens, sample.stop, *ends],
        "scores": [sample.references, sample.metric, sample.more_metrics, extra],
    }
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def write_answer(
    engine: Engine,
    logits: F32,
    after: Sequence[int],
    n_most: int,
    *,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[str] = (),
    must_begin: bool = False,
) -> tuple[str, int]:
    """Read what comes after the eviction and answer greedily.

    Parameters
    ----------
    logits : ndarray of shape (n_vocab,)
        Of the last token read; they count if nothing comes after.
    after : sequence of int
        Tokens of the question, if it was not known before.
    n_most : int
        Tokens of the answer.
    stop, stop_tokens, must_begin
        What ends it, see :class:`~restkv_local.evaluation.sample.Sample`.

    Returns
    -------
    tuple of str and int
        The answer and its tokens.
    """
    native = engine.native
    ends = {text.encode() for text in stop_tokens}

    def is_end(token: int) -> bool:
        return native.is_eog(token) or native.piece(token) in ends

    for token in after:
        engine.step(token)
        logits = native.logits()
    stream, text, n_written = TextStream(stop), "", 0
    while n_written < n_most and not stream.stopped:
        if n_written:
            engine.step(token)
            logits = native.logits()
        token = int(np.argmax(logits))
        if must_begin and n_written == 0 and is_end(token):
            token = next(int(other) for other in np.argsort(-logits) if not is_end(int(other)))
        if is_end(token):
            break
        text += stream.feed(native.piece(token))
        n_written += 1
    return text + stream.finish(), n_written
