"""A conversation: renders turns, reads only what is new, streams the answer, reports what the cache did."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from restkv_local.chat_template import ChatTemplate, Message
from restkv_local.engine import Progress
from restkv_local.errors import InputError

if TYPE_CHECKING:
    from restkv_local.llama import Llama


@dataclass(slots=True)
class TurnReport:
    """One turn, with the keys of the JSON report. Times are milliseconds, rates tokens a second."""

    model: str
    version: str
    response: str = ""
    finish_reason: str = "cancelled"  # until the turn ends by itself: "stop" or "length"
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    kv: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        report = asdict(self)
        notes = report.pop("notes")
        return {**report, "notes": notes} if notes else report


@dataclass(frozen=True, slots=True)
class ContextView:
    """What the cache holds now. Rows are per layer and KV head; bytes count K and V."""

    budget: int
    capacity: int
    kept: int
    seen: int
    evicted: int
    events: int
    n_pinned: int
    n_turns: int
    bytes: int
    bytes_full: int


class ChatSession:
    """A conversation with a bounded cache.

    Parameters
    ----------
    llama : Llama
        The model. A new session takes its cache over and starts empty.
    system : str, optional
        System prompt; it is never evicted. Without one the template's own default counts, and is pinned too.
    """

    def __init__(self, llama: Llama, *, system: str | None = None) -> None:
        self._llama = llama
        self._engine = llama.engine
        self._native = llama.native
        self._template = ChatTemplate(self._native, llama.shape.name)
        self._system: list[Message] = (
            [{"role": "system", "content": system}] if system is not None else []
        )
        self.report = TurnReport(llama.shape.name, llama.version)
        self.messages: list[Message] = []
        self.clear()

    def clear(self) -> None:
        """Start over: no messages but the system prompt, no rows."""
        self.messages = list(self._system)
        self._text = ""  # what the cache holds, as text
        self._llama.sampler.reset()
        if self._engine.is_open:
            self._engine.clear()

    def context(self) -> ContextView:
        """Return what the cache holds now."""
        kv = self._engine.kv_report() if self._engine.is_open else dict.fromkeys(_CONTEXT_KEYS, 0)
        return ContextView(
            n_pinned=self._engine.n_pinned,
            n_turns=sum(message["role"] == "user" for message in self.messages),
            **{key: kv[key] for key in _CONTEXT_KEYS},
        )

    def send(
        self,
        text: str,
        *,
        documents: Sequence[str] = (),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[str]:
        """Ask; yields the answer piece by piece, ``report`` is complete afterwards.

        Parameters
        ----------
        text : str
            The question. With documents it is also what guides eviction.
        documents : sequence of str
            Texts to read before the question.
        on_progress : callable, optional
            Called after each chunk of the prompt.

        Raises
        ------
        InputError
            If there is nothing to read.
        KeyboardInterrupt
            On Ctrl-C, once the session is in order again: what was read and said so far stays.
        """
        content = _join(text, documents)
        return self._reply(content, text if text.strip() else content, on_progress)

    def prepare(self, text: str, *, documents: Sequence[str] = ()) -> tuple[list[int], int]:
        """Tokenise a message as :meth:`send` would as the first one; nothing is read or remembered.

        Returns
        -------
        tokens : list of int
            The whole prompt.
        n_pinned : int
            How many of its first tokens no eviction may touch.

        Raises
        ------
        InputError
            If there is nothing to read.
        """
        content = _join(text, documents)
        rendered = self._template.render([*self._system, {"role": "user", "content": content}])
        return self._template.tokenize(rendered, first=True), self._count_pinned()

    def _reply(
        self, content: str, question: str, on_progress: Callable[[Progress], None] | None
    ) -> Iterator[str]:
        engine, counters = self._engine, self._engine.counters
        self.report = report = TurnReport(self._llama.shape.name, self._llama.version)
        rendered = self._template.render([*self.messages, {"role": "user", "content": content}])
        first = not self._text
        if not first and not rendered.startswith(self._text):
            report.notes.append(
                "the template rewrote earlier turns: the conversation was read again"
            )
            first = True
            engine.clear()
            self._text = ""
        tokens = self._template.tokenize(rendered[len(self._text) :], first=first)
        if first:
            engine.open(len(tokens), engine.config.n_predict, self._count_pinned())
            counters = engine.counters
        guide = self._guide(rendered, question)
        seen, cached = counters.seen, round(engine.rows.mean)
        answer: list[str] = []
        start = answer_start = time.perf_counter()
        reading = True
        try:
            engine.read(tokens, guide=guide, on_progress=on_progress)
            reading = False
            answer_start = time.perf_counter()
            yield from self._generate(answer)
        finally:
            end = time.perf_counter()
            n_read = min(len(tokens), counters.seen - seen)
            n_said = counters.seen - seen - n_read
            report.response = "".join(answer)
            if reading:
                answer_start = end
                self._keep_partial_prompt(rendered, content, tokens[:n_read])
            else:
                self.messages.append({"role": "user", "content": content})
                self.messages.append({"role": "assistant", "content": report.response})
                self._text = rendered + report.response
            report.usage = {
                "prompt_tokens": seen + n_read,
                "completion_tokens": n_said,
                "total_tokens": seen + n_read + n_said,
            }
            prompt_s, answer_s = answer_start - start, end - answer_start
            report.timings = {
                "prompt_n": n_read,
                "prompt_ms": round(prompt_s * 1e3, 3),
                "prompt_per_second": round(n_read / prompt_s, 3) if prompt_s else 0.0,
                "predicted_n": n_said,
                "predicted_ms": round(answer_s * 1e3, 3),
                "predicted_per_second": round(n_said / answer_s, 3) if answer_s else 0.0,
                "cache_n": cached,
            }
            report.kv = engine.kv_report()

    def _count_pinned(self) -> int:
        pinned = self._template.pinned_text(self._system)
        return len(self._template.tokenize(pinned, first=True))

    def _generate(self, answer: list[str]) -> Iterator[str]:
        n_predict = self._engine.config.n_predict
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        n_said = 0
        while n_predict < 0 or n_said < n_predict:
            token = self._native.sample(self._llama.sampler)
            if self._native.is_eog(token):
                self.report.finish_reason = "stop"
                break
            # In the cache before it is said: whoever stops listening leaves both in step.
            self._engine.step(token)
            n_said += 1
            # A character may span tokens.
            if piece := decoder.decode(self._native.piece(token)):
                answer.append(piece)
                yield piece
        else:
            self.report.finish_reason = "length"
        if rest := decoder.decode(b"", final=True):
            answer.append(rest)
            yield rest

    def _guide(self, rendered: str, question: str) -> list[int]:
        config = self._engine.config
        if config.guide == "off":
            return []
        if config.guide != "auto":
            return self._native.tokenize(config.guide, add_special=False)[: config.n_guide]
        # The template may trim the question: look for its core.
        start = rendered.rfind(question.strip())
        tokens = self._native.tokenize(rendered[start:] if start >= 0 else "", add_special=False)
        if len(tokens) <= config.n_guide:
            return tokens
        # A long message has its question at either end.
        half = config.n_guide // 2
        return tokens[:half] + tokens[-(config.n_guide - half) :]

    def _keep_partial_prompt(self, rendered: str, content: str, tokens: Sequence[int]) -> None:
        """Put in the history what was read of a prompt that was stopped."""
        if not tokens:
            return
        read = b"".join(self._native.piece(token, special=True) for token in tokens)
        self._text += read.decode(errors="ignore")
        start = rendered.rfind(content.strip())
        part = rendered[start : max(start, len(self._text))] if start >= 0 else ""
        self.messages.append({"role": "user", "content": part})
        self.messages.append({"role": "assistant", "content": ""})


def _join(text: str, documents: Sequence[str]) -> str:
    """Put the documents before the question."""
    if not text.strip() and not any(document.strip() for document in documents):
        raise InputError("the prompt is empty: give a question, a document or both")
    return "\n\n".join([*documents, text] if text.strip() else documents)


_CONTEXT_KEYS = (
    "budget", "capacity", "kept", "seen", "evicted", "events", "bytes", "bytes_full",
)  # fmt: skip
