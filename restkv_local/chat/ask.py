"""Questions about documents: what is read, how often, and where each answer comes from."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from restkv_local.chat import Mode
from restkv_local.chat.chat_template import ChatTemplate, Message, find_last
from restkv_local.chat.generation import generate
from restkv_local.chat.guide import question_guide
from restkv_local.chat.message import write_message
from restkv_local.chat.passages import Passage, TokenMap, find_passages
from restkv_local.chat.turn_report import make_timings
from restkv_local.config import DEFAULTS
from restkv_local.documents import Document, Source, list_sources, parse_document, read_document
from restkv_local.engine import Engine
from restkv_local.errors import BusyError, ConfigError, InputError
from restkv_local.loaded_model import LoadedModel
from restkv_local.sequence import OnProgress
from restkv_local.storage.reading_cache import Reading, ReadingCache
from restkv_local.storage.snapshot_file import tracked_kinds
from restkv_local.turn_taking import in_turn
from restkv_local.types import F32, F64

# Reads without a question: what it takes to repeat the text serves whatever is asked about it.
INGEST_POLICY: Final = "kvzip"
INGEST_ALLOCATION: Final = "global"

# One line that ends as a file's name does; a full stop after a whole word, no abbreviation, makes it prose.
_FILE_NAME: Final = re.compile(
    r"(?!.*\w{5}[.!?]\s).{1,250}\.(txt|md|markdown|html?|xhtml|pdf|docx|docm|dotx|epub)",
    re.IGNORECASE,
)

# Answer tokens whose attention is summed at once, for the passages.
_N_LOOKED: Final = 32


@dataclass(frozen=True, slots=True)
class ReadingReport:
    """What reading the documents took. ``kept``: rows of a layer and KV head on average."""

    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    from_cache: bool
    kv: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One question and what came of it.

    Attributes
    ----------
    question, response : str
    finish_reason : str
        ``"stop"``, ``"length"``, ``"cache_full"`` or ``"cancelled"``.
    mode : str
        How the documents were read for it.
    passages : tuple of Passage
        Where the answer looked, most attention first.
    timings, kv : dict
        As in the report of a chat turn; ``prompt_n`` counts what was read for this question alone.
    notes : tuple of str
        What a person must know.
    """

    question: str
    response: str
    finish_reason: str
    mode: str
    passages: tuple[Passage, ...]
    timings: dict[str, float]
    kv: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        return asdict(self)


@dataclass(slots=True)
class _Prompt:
    """A question's prompt: what every question's begins with, the rest, and what guides eviction."""

    before: list[int]
    after: list[int]
    guide: list[int]


class DocumentReader:
    """Documents in a bounded cache, and answers to questions about them.

    Parameters
    ----------
    llama : LoadedModel
        The model; the reader takes its cache over until it is closed.
    documents : sequence of Document
        Read in this order, whole.
    mode : {"auto", "per-question", "shared", "ingest"}
        ``"per-question"`` reads all again for each question, which says at every eviction what matters:
        most exact. ``"shared"`` reads once, and all questions together say it. ``"ingest"`` reads once
        without any: by kvzip with the allocation global, unless the model was given another policy or a guide.
        ``"auto"`` is the first for one question, the second for several, the third for none.
    questions : sequence of str
        Those known from the start.
    system : str, optional
        System prompt; it is never evicted.
    readings : ReadingCache, optional
        Where a reading is looked up before it is made, and kept afterwards.

    Raises
    ------
    InputError
        If there is nothing to read, or a question is empty.
    ConfigError
        If the mode is unknown or does not fit the questions.
    """

    def __init__(
        self,
        llama: LoadedModel,
        documents: Sequence[Document],
        *,
        mode: str = "auto",
        questions: Sequence[str] = (),
        system: str | None = None,
        readings: ReadingCache | None = None,
    ) -> None:
        self.mode = choose_mode(mode, len(questions))
        self.reading: ReadingReport | None = None
        self.answer: Answer | None = None
        self._documents = tuple(document for document in documents if document.text.strip())
        if not self._documents:
            raise InputError("there is nothing to read: give a document that holds text")
        for question in questions:
            _check_question(question)
        self._llama = llama
        self._questions = tuple(questions)
        self._messages: list[Message] = [] if system is None else [_message("system", system)]
        self._template = ChatTemplate(llama.native, llama.shape.name)
        self._readings = readings
        self._kept: Reading | None = None
        self._opened = (0, 0, 0)
        # Read for each question, prompts have nothing in common but the system prompt.
        self._before = [] if self.mode == "per-question" else self._common_tokens()
        with llama.turns.call():
            self._old = llama.engine
            self._own = self._take_over()

    def _take_over(self) -> Engine:
        config = self._old.config
        rules = (config.policy, config.allocation)
        asked_for_nothing = self._old.is_configured and rules == (
            DEFAULTS.policy,
            DEFAULTS.allocation,
        )
        if self.mode == "ingest" and asked_for_nothing and config.guide in ("auto", "off"):
            config = replace(config, policy=INGEST_POLICY, allocation=INGEST_ALLOCATION)
        if self.mode == "shared" and config.guide == "auto":
            n_guide = len(self._shared_guide())
            if n_guide > config.n_ubatch:
                raise ConfigError(
                    f"mode 'shared' reads all questions as one probe of at most n_ubatch={config.n_ubatch}"
                    f" tokens; these are {n_guide}: ask in groups, or with mode 'per-question'"
                )
            config = replace(config, n_guide=max(config.n_guide, n_guide))
        engine = self._old.renewed(config)  # before anything goes: it may be refused
        self._llama.native.release()
        self._llama.engine = engine
        return engine

    def close(self) -> None:
        """Forget the documents and give the model its own settings back."""
        try:
            with self._llama.turns.call():
                self._give_back()
        except BusyError:
            self._llama.turns.later(self._give_back)  # nobody may be there to try again

    def _give_back(self) -> None:
        if self._llama.engine is self._own:  # nobody has taken the cache over for other rules
            self._llama.native.release()
            self._llama.engine = self._old

    def __enter__(self) -> DocumentReader:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget the documents."""
        self.close()

    @property
    def _engine(self) -> Engine:
        return self._llama.engine

    def read(self, *, on_progress: OnProgress | None = None) -> ReadingReport | None:
        """Read the documents, where one reading serves all questions; otherwise do nothing.

        Raises
        ------
        CacheFullError
            If nothing may be evicted and the text does not fit.
        KeyboardInterrupt
            On Ctrl-C.
        """
        if self.mode == "per-question":
            return None
        with self._llama.turns.call():
            return self._read_shared(on_progress)

    def _read_shared(self, on_progress: OnProgress | None) -> ReadingReport:
        is_known = self.mode == "shared" or self._engine.config.guide != "auto"
        guide = self._shared_guide() if is_known else []
        self.reading, _, self._kept = self._read(self._before, guide, on_progress, keep=True)
        return self.reading

    def ask(self, question: str, *, on_progress: OnProgress | None = None) -> Iterator[str]:
        """Yield the answer piece by piece; ``answer`` is complete afterwards.

        Raises
        ------
        InputError
            If the question is empty.
        KeyboardInterrupt
            On Ctrl-C; ``answer`` holds what was said so far, None if that was while reading.
        """
        _check_question(question)
        return in_turn(self._llama.turns, self._answer(question, on_progress))

    def _answer(self, question: str, on_progress: OnProgress | None) -> Generator[str, None, None]:
        self.answer = None
        prompt = self._prompt(question)
        notes = []
        start = time.perf_counter()
        if self.mode == "per-question":
            whole = [*prompt.before, *prompt.after]
            reading, logits, _ = self._read(whole, prompt.guide, on_progress, keep=False)
            n_read = 0 if reading.from_cache else reading.prompt_n
            if reading.from_cache:
                notes.append(f"read before: {reading.prompt_n:,} tokens from the cache folder")
        else:
            n_read = self._go_back(prompt, notes, on_progress)
            self._engine.read(prompt.after, guide=prompt.guide, on_progress=on_progress)
            n_read += len(prompt.after)
            logits = self._llama.native.logits().copy()
        n_prompt, answer_start = self._engine.counters.seen, time.perf_counter()
        attention = np.zeros(0)
        n_looked = n_prompt
        said: list[str] = []
        finish_reason = "cancelled"
        try:
            stream = generate(self._llama, logits, said)
            while True:
                try:
                    piece = next(stream)
                except StopIteration as stop:
                    finish_reason = stop.value
                    break
                if self._engine.counters.seen - n_looked >= _N_LOOKED:
                    attention, n_looked = self._look(attention, n_looked)
                yield piece
        finally:
            end = time.perf_counter()
            attention, _ = self._look(attention, n_looked)
            tokens = TokenMap([*self._pieces(prompt)], self._documents)
            n_said = self._engine.counters.seen - n_prompt
            self.answer = Answer(
                question=question,
                response="".join(said),
                finish_reason=finish_reason,
                mode=self.mode,
                passages=find_passages(attention, tokens),
                timings=make_timings(n_read, answer_start - start, n_said, end - answer_start),
                kv=self._engine.kv_report(),
                notes=tuple(notes),
            )

    def _go_back(self, prompt: _Prompt, notes: list[str], on_progress: OnProgress | None) -> int:
        """Put the reading in place that all questions share; return tokens read for it."""
        if self.reading is None:
            self._read_shared(on_progress)
            return 0
        if self._kept is None:
            why = "this model's cache cannot be copied"
        elif tracked_kinds(self._kept.snapshot) != self._engine.tracks:
            why = "other rules have taken the cache over"
        else:
            self._engine.open(*self._opened)  # somebody else may have opened it for another text
            self._engine.restore(self._kept.snapshot)
            return 0
        notes.append(f"{why}: the documents were read again")
        self._read_shared(on_progress)
        return len(prompt.before)

    def _read(
        self, tokens: list[int], guide: list[int], on_progress: OnProgress | None, *, keep: bool
    ) -> tuple[ReadingReport, F32, Reading | None]:
        """Read, or take what was read before; the copy is there if it was to be kept or was kept anyway."""
        engine = self._engine
        config = engine.config
        n_answer = config.n_ubatch if config.n_predict < 0 else config.n_predict
        # A question that is not known yet needs rows too, where none are freed for it.
        self._opened = (len(tokens), n_answer + config.n_ubatch, self._count_pinned())
        engine.open(*self._opened)
        engine.clear()
        start = time.perf_counter()
        key, kept = None, None
        copy: Reading | None = None
        if self._readings is not None:
            key = self._llama.reading_key(tokens, [*guide, int(self.mode == "ingest")])
            kept = self._readings.load(key) if key is not None else None
        if kept is not None:
            engine.restore(kept.snapshot)
            engine.guide = guide
            logits, copy = kept.logits, kept
        else:
            engine.read(tokens, guide=guide, on_progress=on_progress)
            logits = self._llama.native.logits().copy()
            # Kept for whatever will be asked: it is the budget that was promised.
            if self.mode == "ingest" and engine.policy.evicts and engine.rows.mean > engine.budget:
                engine.evict()
            if keep or key is not None:
                snapshot = engine.try_save()
                copy = None if snapshot is None else Reading(snapshot, logits)
            if self._readings is not None and key is not None and copy is not None:
                self._readings.store(key, copy)
        seconds = time.perf_counter() - start
        report = ReadingReport(
            len(tokens),
            round(seconds * 1e3, 3),
            round(len(tokens) / seconds, 3),
            kept is not None,
            engine.kv_report(),
        )
        return report, logits, copy

    def _render(self, question: str) -> str:
        # Were all questions to stand before a text that is read once, a small model would answer the first of them.
        known = self.mode == "per-question"
        content = write_message(self._documents, question.strip(), known=known)
        return self._template.render([*self._messages, _message("user", content)])

    def _common_tokens(self) -> list[int]:
        """Tokens that every prompt begins with: a question's first letter may join the token before it."""
        one, other = (self._template.tokenize(self._render(q), first=True) for q in ("Why", "0"))
        return [
            a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        ]

    def _prompt(self, question: str) -> _Prompt:
        rendered, n = self._render(question), len(self._before)
        tail = self._template.tail(self._messages)
        tokens = self._template.tokenize(rendered, first=True)
        if tokens[:n] != self._before:
            # A letter that joins what precedes it in a way of its own is read apart from it.
            split = find_last(rendered, question, tail)
            assert split >= 0, "a template does not rewrite what it frames"
            tokens = [*self._before, *self._template.tokenize(rendered[split:], first=False)]
        config = self._engine.config
        guide = question_guide(self._llama.native, config, rendered, question, tail=tail)
        return _Prompt(tokens[:n], tokens[n:], guide)

    def _shared_guide(self) -> list[int]:
        """Tokens of all questions, and what the template puts after one."""
        native, config = self._llama.native, self._llama.engine.config
        if config.guide != "auto":
            return question_guide(native, config, "", "")
        text = "\n".join(question.strip() for question in self._questions)
        return native.tokenize(text + self._template.tail(self._messages), add_special=False)

    def _count_pinned(self) -> int:
        pinned = self._template.pinned_text(self._messages)
        return len(self._template.tokenize(pinned, first=True))

    def _look(self, attention: F64, n_looked: int) -> tuple[F64, int]:
        """Add what the newest tokens looked at."""
        n_seen = self._engine.counters.seen
        if n_seen <= n_looked:  # fewer where the rows were lost
            return attention, n_looked
        newest = self._engine.attended(n_seen - n_looked)
        newest[: len(attention)] += attention
        return newest, n_seen

    def _pieces(self, prompt: _Prompt) -> Iterator[bytes]:
        native = self._llama.native
        return (native.piece(token, special=True) for token in [*prompt.before, *prompt.after])


def ask(
    llama: LoadedModel,
    document: Source | Sequence[Source],
    questions: str | Sequence[str],
    *,
    mode: str = "auto",
    system: str | None = None,
    readings: ReadingCache | None = None,
    on_progress: OnProgress | None = None,
) -> Generator[Answer, None, None]:
    """Answer questions about documents; see :meth:`restkv_local.Llama.ask`."""
    if isinstance(questions, str):
        questions = [questions]
    documents = [_document(one) for one in list_sources(document)]
    with DocumentReader(
        llama, documents, mode=mode, questions=questions, system=system, readings=readings
    ) as reader:
        for question in questions:
            for _ in reader.ask(question, on_progress=on_progress):
                pass
            assert reader.answer is not None, "the stream has ended"
            yield reader.answer


def choose_mode(mode: str, n_questions: int) -> str:
    """Return the mode that ``"auto"`` stands for.

    Raises
    ------
    ConfigError
        If there is no such mode, or it needs a question.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"mode must be one of {', '.join(get_args(Mode))}; got mode={mode!r}")
    if mode == "auto":
        return "ingest" if n_questions == 0 else "per-question" if n_questions == 1 else "shared"
    if mode == "shared" and n_questions == 0:
        raise ConfigError(
            "mode 'shared' reads with the questions in mind: give them, or use 'ingest'"
        )
    return mode


def _document(one: Source) -> Document:
    """Take a Path as a file, a string as a text, but for one that looks like a file's name."""
    if isinstance(one, Document):
        return one
    if isinstance(one, Path) or _FILE_NAME.fullmatch(one):
        return read_document(one)
    # What is no character becomes bytes that are no text, and is refused like any.
    return parse_document(one.encode(errors="surrogatepass"), "text")


def _check_question(question: str) -> None:
    if not question.strip():
        raise InputError("a question is empty; every one must have text")


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
