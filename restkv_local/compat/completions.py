"""Answers a prompt in llama-cpp-python's dictionaries: reads what is new, draws, says what the cache did."""

from __future__ import annotations

import operator
import time
import uuid
import warnings
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from restkv_local.chat.guide import ending_guide
from restkv_local.chat.text_stream import TextStream
from restkv_local.compat.completion_options import CompletionOptions, Tokens
from restkv_local.engine import Engine
from restkv_local.errors import ConfigError, InputError, RestKVError
from restkv_local.loaded_model import LoadedModel
from restkv_local.native import NativeContext
from restkv_local.native.sampler import Sampler
from restkv_local.sequence import Counters, OnProgress, Snapshot
from restkv_local.storage.snapshot_file import tracked_kinds
from restkv_local.turn_taking import Turn, taken_over
from restkv_local.types import F32

# llama_cpp.llama_types.CreateCompletionResponse, and "kv": the object of the JSON report.
Completion = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be read: tokens, the same as text, what guides eviction, how many first tokens must stay."""

    tokens: list[int]
    text: str
    guide: list[int]
    n_pinned: int = 0


@dataclass(slots=True)
class _Held:
    """What the cache stands for, as long as ``counters`` are the engine's: every other use replaces those."""

    tokens: list[int]
    counters: Counters
    opened: tuple[int, int, int]  # what the cache was made for: Engine.open's arguments
    # Text of the tokens and logits of the newest one; None after a read that was cut short.
    text: bytes | None = None
    logits: F32 | None = None
    unread: list[int] = field(default_factory=list)  # the last token said, which no other followed

    def copy(self, counters: Counters) -> _Held:
        """Return the same for other counters; nothing is shared."""
        logits = None if self.logits is None else self.logits.copy()
        return replace(
            self, tokens=[*self.tokens], counters=counters, logits=logits, unread=[*self.unread]
        )


@dataclass(frozen=True, slots=True)
class SavedState:
    """A model's state between two calls: :meth:`Llama.load_state` goes on from there.

    Attributes
    ----------
    input_ids : ndarray of shape (n_tokens,), intc
        Every token that was read and said, evicted ones included.
    seed, n_drawn : int
        State of the draws.
    """

    input_ids: Tokens
    seed: int
    n_drawn: int
    _snapshot: Snapshot | None = None
    _held: _Held | None = None

    @property
    def n_tokens(self) -> int:
        """Number of tokens the state stands for."""
        return int(self.input_ids.size)


@dataclass(slots=True)
class _TokenLogprob:
    text: str
    start: int  # character of the answer
    logprob: float
    top: dict[str, float]


@dataclass(slots=True)
class _Piece:
    text: str
    tokens: list[_TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class _Ending:
    finish_reason: str = "length"
    n_tokens: int = 0
    kv: dict[str, Any] = field(default_factory=dict)


class Completer:
    """Makes completions, one after the other, in one cache.

    A prompt that begins with all tokens the cache stands for is read from there on; the rows that earlier
    questions let go stay gone. Any other prompt starts over: an evicted cache cannot be cut back.

    Parameters
    ----------
    llama : LoadedModel
        Whose cache it is.
    n_last : int
        How many of an answer's newest tokens the penalties count.
    on_progress : callable or None
        Called after each chunk of a prompt.
    """

    def __init__(self, llama: LoadedModel, *, n_last: int, on_progress: OnProgress | None) -> None:
        # The model holds this object: a cycle would keep all of it until a collection.
        self._llama_ref = weakref.ref(llama)
        self._n_last = n_last
        self._on_progress = on_progress
        self._held: _Held | None = None

    @property
    def llama(self) -> LoadedModel:
        """Whose cache it is."""
        llama = self._llama_ref()
        assert llama is not None  # whoever calls holds it
        return llama

    @property
    def _native(self) -> NativeContext:
        return self.llama.native

    @property
    def _engine(self) -> Engine:
        return self.llama.engine

    def prompt(self, prompt: str | Sequence[int]) -> Prompt:
        """Read a prompt without turns; its end guides eviction.

        Raises
        ------
        InputError
            If there is nothing to read, or it is neither text nor tokens.
        """
        native = self._native
        if isinstance(prompt, str):
            text, tokens = prompt, native.tokenize(prompt, add_special=True)
        else:
            tokens = _tokens(prompt)
            data = b"".join(native.piece(token, special=True) for token in tokens)
            text = data.decode(errors="replace")
        if not tokens:
            raise InputError("the prompt is empty, and the vocabulary has no BOS to begin with")
        bos = native.special_token_id("bos")
        if bos >= 0 and tokens[:2] == [bos, bos]:
            warnings.warn(
                "the prompt begins with two BOS tokens: leave the one in its text out",
                RuntimeWarning,
                stacklevel=3,
            )
        return Prompt(tokens, text, ending_guide(native, self._engine.config, tokens))

    def continue_text(self, text: str) -> list[int] | None:
        """Return the tokens of a text that goes on where the cache ends, None if it does not.

        What a model says it may spell with other tokens than the tokenizer would: the ones in the cache count.
        """
        held = self._known()
        if held is None or held.text is None:
            return None
        # A stop string may have kept the last token from being said.
        for unread in (held.unread, []):
            data = held.text + b"".join(map(self._native.piece, unread))
            known = data.decode(errors="replace")  # as it was said
            if text.startswith(known):
                rest = self._native.tokenize(text[len(known) :], add_special=False)
                return [*held.tokens, *unread, *rest]
        return None

    def complete(
        self, prompt: Prompt, options: CompletionOptions, *, stream: bool
    ) -> Completion | Generator[Completion, None, None]:
        """Answer a prompt; a stream does nothing before its first chunk is asked for."""
        head = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.llama.model_path if options.model is None else options.model,
        }
        ending = _Ending()
        pieces = self._pieces(self.llama, prompt, options, ending)
        if stream:
            return self._stream(head, pieces, options, ending)
        return self._whole(head, list(pieces), prompt, options, ending)

    def _stream(
        self,
        head: dict[str, Any],
        pieces: Generator[_Piece, None, None],
        options: CompletionOptions,
        ending: _Ending,
    ) -> Generator[Completion, None, None]:
        with closing(pieces):  # whoever closes the stream ends the answer
            for piece in pieces:
                logprobs = None if options.logprobs is None else _logprobs(piece.tokens)
                yield {**head, "choices": [_choice(piece.text, logprobs, None)]}
        yield {**head, "choices": [_choice("", None, ending.finish_reason)], "kv": ending.kv}

    def _whole(
        self,
        head: dict[str, Any],
        pieces: list[_Piece],
        prompt: Prompt,
        options: CompletionOptions,
        ending: _Ending,
    ) -> Completion:
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        logprobs = None if options.logprobs is None else _logprobs(tokens)
        return {
            **head,
            "choices": [_choice(text, logprobs, ending.finish_reason)],
            "usage": {
                "prompt_tokens": len(prompt.tokens),
                "completion_tokens": ending.n_tokens,
                "total_tokens": len(prompt.tokens) + ending.n_tokens,
            },
            "kv": ending.kv,
        }

    def _pieces(
        self, llama: LoadedModel, prompt: Prompt, options: CompletionOptions, ending: _Ending
    ) -> Generator[_Piece, None, None]:
        with llama.turns.turn() as turn:
            with turn.work():
                if options.seed is not None:
                    llama.set_seed(options.seed)
                sampler = self._make_sampler(options)
            with closing(sampler):
                with turn.work():
                    held = self._read(prompt, options)
                if options.echo:
                    yield _Piece(prompt.text)
                yield from self._answer(held, turn, sampler, prompt, options, ending)
            with turn.work():
                ending.kv = self._engine.kv_report()

    def _make_sampler(self, options: CompletionOptions) -> Sampler:
        own = self.llama.sampler
        sampler = self._native.make_sampler(
            seed=own.seed, n_last=self._n_last, **options.sampler_options()
        )
        sampler.n_drawn = own.n_drawn
        return sampler

    # Reading

    def _read(self, prompt: Prompt, options: CompletionOptions) -> _Held:
        engine = self._engine
        held = self._find(prompt, options)
        if held is None:
            self._forget()
            opened = (len(prompt.tokens), self._most(options), prompt.n_pinned)
            engine.open(*opened)
            held = _Held([], engine.counters, opened)
        n_known = len(held.tokens)
        held.tokens = list(prompt.tokens)
        held.text = prompt.text.encode()
        held.unread = []
        self._held = held
        engine.guide = prompt.guide  # of an answer that needs no reading, too
        if n_known < len(prompt.tokens):
            held.logits = None
            engine.read(prompt.tokens[n_known:], guide=prompt.guide, on_progress=self._on_progress)
            held.logits = self._native.logits()
        return held

    def _find(self, prompt: Prompt, options: CompletionOptions) -> _Held | None:
        """Return what the cache stands for if the prompt goes on from there."""
        held, engine = self._known(), self._engine
        if held is None or held.opened[2] != prompt.n_pinned:
            return None
        known = held.tokens
        n_new = len(prompt.tokens) - len(known)
        if prompt.tokens[: len(known)] != known or (n_new == 0 and held.logits is None):
            return None
        evicts = engine.policy.evicts
        if not evicts or engine.config.prefill == "full":
            # Read whole: the cache was made for another length.
            n_needed = n_new + (engine.n_repeat if evicts else max(0, self._most(options)))
            if n_needed > self._native.room:
                return None
        return held

    def _known(self) -> _Held | None:
        """Return what the cache stands for, None if it holds somebody else's tokens or none.

        Nothing is changed: another thread may ask while a call runs, which is refused only later.
        """
        held, counters = self._held, self._engine.counters
        if held is None or held.counters is not counters or not self._engine.is_open:
            return None
        seen = counters.seen
        if not 0 < seen <= len(held.tokens):
            return None
        if seen < len(held.tokens):
            # Of a read that was interrupted only the first chunks are there.
            return replace(held, tokens=held.tokens[:seen], text=None, logits=None, unread=[])
        return held

    def _most(self, options: CompletionOptions) -> int:
        """Return how many tokens an answer may have, -1 for no limit."""
        wanted = options.max_tokens
        return self._engine.config.n_predict if wanted is None or wanted <= 0 else wanted

    # Answering

    def _answer(
        self,
        held: _Held,
        turn: Turn,
        sampler: Sampler,
        prompt: Prompt,
        options: CompletionOptions,
        ending: _Ending,
    ) -> Iterator[_Piece]:
        text = TextStream(options.stops)
        waiting: list[_TokenLogprob] = []  # of tokens whose text is held back
        most = self._most(options)
        if not self._engine.policy.evicts:
            # The last token of an answer needs no row.
            most = min(most if most >= 0 else self._native.room + 1, self._native.room + 1)
        while most < 0 or ending.n_tokens < most:
            with turn.work():
                self._check_still_held(held)
                if held.unread:
                    self._step(held)
                assert held.logits is not None
                drawn = self._draw(held, sampler, options)
                if drawn is None or self._native.is_eog(drawn):
                    ending.finish_reason = "stop"
                    break
                held.unread = [drawn]
                ending.n_tokens += 1
                if options.logprobs is not None:
                    start = len(prompt.text) + text.n_decoded
                    waiting.append(self._logprob(held.logits, drawn, start, options.logprobs))
                said = text.feed(self._native.piece(drawn))
            n_given = len(prompt.text) + text.n_given
            shown = [one for one in waiting if one.start < n_given]
            del waiting[: len(shown)]
            if said or shown:
                yield _Piece(said, shown)
            if text.stopped:
                ending.finish_reason = "stop"
                return
        said = text.finish()
        if text.stopped:  # a broken character completed a stop string
            ending.finish_reason = "stop"
            waiting = [one for one in waiting if one.start < len(prompt.text) + text.n_given]
        if said or waiting:
            yield _Piece(said, waiting)

    def _check_still_held(self, held: _Held) -> None:
        """Refuse to go on in a cache that a session took over, or the caller."""
        counters = self._engine.counters
        if counters is not held.counters or counters.seen != len(held.tokens):
            raise taken_over()

    def _step(self, held: _Held) -> None:
        (token,) = held.unread
        held.logits = None
        held.unread = []
        held.tokens.append(token)
        if held.text is not None:
            held.text += self._native.piece(token)
        self._engine.step(token)
        held.logits = self._native.logits()

    def _draw(self, held: _Held, sampler: Sampler, options: CompletionOptions) -> int | None:
        """Draw a token; None if a stopping criterion ends the answer before it."""
        logits = held.logits
        assert logits is not None
        if options.criteria or options.processors:
            ids: Tokens = np.array(held.tokens, np.intc)
            logits = logits.copy()  # callbacks may keep or change what they get
            if any(criterion(ids, logits) for criterion in options.criteria):
                return None
            for processor in options.processors:
                logits = np.asarray(processor(ids, logits), np.float32)
            if logits.shape != (self._native.n_vocab,):
                raise ConfigError(
                    f"logits_processor must return {self._native.n_vocab} logits, one for each token;"
                    f" got an array of shape {logits.shape}"
                )
        token = sampler.draw(logits)
        self.llama.sampler.n_drawn = sampler.n_drawn
        return token

    def _logprob(self, logits: F32, token: int, start: int, n_top: int) -> _TokenLogprob:
        shifted = logits.astype(np.float64) - logits.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        best = np.argsort(-logprobs, kind="stable")[:n_top].tolist()
        # Where tokens share a text it stands for the likeliest of them, or for the one that was drawn.
        top = {self._show(one): float(logprobs[one]) for one in (*best[::-1], token)}
        # The likeliest first, as others have it.
        top = dict(sorted(top.items(), key=lambda item: -item[1]))
        return _TokenLogprob(self._show(token), start, float(logprobs[token]), top)

    def _show(self, token: int) -> str:
        return self._native.piece(token).decode(errors="replace")

    # State

    def reset(self) -> None:
        """Forget every token."""
        with self.llama.turns.call():
            self._forget()

    def _forget(self) -> None:
        self._held = None
        if self._engine.is_open:
            self._engine.clear()

    def save(self) -> SavedState:
        """Copy what the cache stands for, its rows and the state of the draws."""
        with self.llama.turns.call():
            sampler, held = self.llama.sampler, self._known()
            if held is None:
                if self._engine.is_open and self._engine.counters.seen:
                    raise InputError(
                        "the cache holds tokens of another kind of call, a ChatSession's for example:"
                        " save_state() saves what create_completion() read"
                    )
                return SavedState(np.empty(0, np.intc), sampler.seed, sampler.n_drawn)
            ids = np.array(held.tokens, np.intc)
            copy = held.copy(held.counters)
            return SavedState(ids, sampler.seed, sampler.n_drawn, self._engine.save(), copy)

    def load(self, state: SavedState) -> None:
        """Go back to a saved state."""
        if not isinstance(state, SavedState):
            raise InputError(
                f"load_state() takes what save_state() returned; got {type(state).__name__}"
            )
        with self.llama.turns.call():
            if state._snapshot is None or state._held is None:
                self._forget()
            else:
                self._put(state._snapshot, state._held)
            sampler = self.llama.sampler
            sampler.seed, sampler.n_drawn = state.seed, state.n_drawn

    def _put(self, snapshot: Snapshot, held: _Held) -> None:
        """Put a snapshot in place; if this cache cannot take it, what it held is there again."""
        engine, before = self._engine, self._known()
        if before is not None:
            # Its logits are the cache's own, which may be made anew.
            before = before.copy(before.counters)
        if tracked_kinds(snapshot) != engine.tracks:
            raise ConfigError(
                "this state was saved under another policy, which keeps other figures of every row:"
                " load it into a Llama with the options of the one that saved it"
            )
        rows = engine.save() if before is not None else None
        try:
            engine.open(*held.opened)
            engine.restore(snapshot)
        except RestKVError:
            self._forget()
            if before is not None and rows is not None:
                engine.open(*before.opened)
                engine.restore(rows)
                self._held = before.copy(engine.counters)
            raise
        self._held = held.copy(engine.counters)


def _tokens(prompt: Sequence[int]) -> list[int]:
    """Take whole numbers of any kind, NumPy's too; bytes are text that nobody decoded."""
    try:
        if not isinstance(prompt, bytes):
            return [operator.index(token) for token in prompt]
    except TypeError:
        pass
    raise InputError(f"prompt must be a text or a list of tokens; got {prompt!r:.80}")


def _choice(
    text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(tokens: list[_TokenLogprob]) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens],
        "text_offset": [token.start for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top for token in tokens],
    }
