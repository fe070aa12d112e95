"""The next prompt of a conversation: how much of it the cache can stand for without reading, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from restkv_local.chat.chat_template import ChatTemplate, Message, find_last
from restkv_local.chat.guide import question_guide
from restkv_local.chat.held_cache import HeldCache
from restkv_local.chat.moments import Moment, Moments
from restkv_local.chat.turn import Turn
from restkv_local.loaded_model import LoadedModel
from restkv_local.model.model_file import kv_bytes_per_token
from restkv_local.sequence import Snapshot
from restkv_local.storage.reading_cache import MIN_TOKENS, Reading, ReadingCache
from restkv_local.types import F32

BY_SNAPSHOT = "by snapshot"


@dataclass(frozen=True, slots=True)
class Request:
    """A turn to answer: why not simply the next one, what of the last one goes, where reading begins."""

    turn: Turn
    why: str = ""
    replaces: bool = False  # the last turn
    draws_anew: bool = False  # as if the replaced turn had never been
    afresh: bool = False  # from the start, whatever is in the cache


@dataclass(frozen=True, slots=True)
class Prompt:
    """A turn that is about to be read."""

    turn: Turn
    earlier: list[Turn]
    rendered: str
    tokens: list[int]  # not in the cache yet
    guide: list[int]
    notes: list[str]  # what the cache was made to stand for, and how
    logits: F32 | None  # of the prompt's last token, where nothing is left to read
    key: str | None  # under which the reading is worth keeping


class PromptBuilder:
    """Makes the cache of a conversation stand for a beginning of its next prompt, the longest to be had.

    Parameters
    ----------
    llama : LoadedModel
        The model that will read.
    cache : HeldCache
        The conversation's cache.
    moments : Moments
        Where it can be taken back to.
    readings : ReadingCache, optional
        Where a long first prompt is looked up before it is read, and kept afterwards.
    """

    def __init__(
        self,
        llama: LoadedModel,
        cache: HeldCache,
        moments: Moments,
        readings: ReadingCache | None,
    ) -> None:
        self._llama = llama
        self._template = ChatTemplate(llama.native, llama.shape.name)
        self._cache = cache
        self._moments = moments
        self._readings = readings

    def build(
        self, request: Request, system: str | None, turns: Sequence[Turn], content: str
    ) -> Prompt:
        """Go back as far as the request asks for, and find out what is left to read.

        Parameters
        ----------
        system : str or None
            System prompt.
        turns : sequence of Turn
            The conversation so far.
        content : str
            What the request's turn says to the model.

        Raises
        ------
        ConfigError
            If the machine does not hold the cache that the prompt needs.
        """
        sampler, turn = self._llama.sampler, request.turn
        earlier = list(turns[:-1] if request.replaces else turns)
        rendered = self.render(system, earlier, content)
        if not request.replaces:
            turn = replace(turn, n_drawn=sampler.n_drawn)
            self.keep_moment(len(earlier))
        logits, way = self._rewind(rendered, request, is_first=not turns)
        tokens = self._tokenize_rest(rendered)
        if request.draws_anew:
            sampler.n_drawn = turn.n_drawn
        # Read again from the start, the new question alone decides.
        before = [] if request.afresh else [turn.question for turn in earlier]
        config = self._llama.engine.config
        tail = self._template.tail(messages_of(system, ()))
        guide = question_guide(self._llama.native, config, rendered, turn.guide, before, tail)
        key, found, notes = None, None, []
        if not self._cache.text:
            self._cache.open((len(tokens), config.n_predict, self.count_pinned(system)))
            if not earlier and not request.afresh:
                key = self._key(tokens, guide)
            if key is not None:
                found = self._find_reading(key, rendered)
        elif not self._cache.make_room(len(tokens)):
            tokens = self._tokenize_rest(rendered)
            way = "; ".join(part for part in (way, "a larger cache") if part)
        if found is not None:
            notes.append(f"read before: {len(tokens):,} tokens from the cache folder")
            logits, tokens, key = found, [], None
        elif way:
            notes.append(f"{way}, {len(tokens):,} tokens read")
        if request.replaces and not request.draws_anew and config.temp == 0:
            notes.append("temp 0 draws nothing: the same cache answers the same")
        return Prompt(turn, earlier, rendered, tokens, guide, notes, logits, key)

    def render(self, system: str | None, earlier: Sequence[Turn], content: str) -> str:
        """Return a prompt as the model reads it."""
        asked: Message = {"role": "user", "content": content}
        return self._template.render([*messages_of(system, earlier), asked])

    def tokenize(self, rendered: str) -> list[int]:
        """Return the tokens of a prompt from its start."""
        return self._template.tokenize(rendered, first=True)

    def count_pinned(self, system: str | None) -> int:
        """Return how many first tokens of a prompt no eviction may touch."""
        return len(self.tokenize(self._template.pinned_text(messages_of(system, ()))))

    def keep_moment(self, n_turns: int, logits: F32 | None = None) -> Snapshot | None:
        """Copy the cache for going back to it, where memory allows."""
        engine = self._llama.engine
        config = engine.config
        row = kv_bytes_per_token(self._llama.shape, config.type_k, config.type_v)
        # Asked before it is copied: the cache of an unbounded policy may be most of the memory.
        if not self._moments.takes(round(engine.rows.mean * row)):
            return None
        snapshot = self._cache.snapshot()
        if snapshot is not None:
            self._moments.add(Moment(n_turns, self._cache.text, snapshot, logits))
        return snapshot

    def keep_reading(self, key: str, reading: Reading) -> None:
        """Keep what was read under a prompt's key, for the next time."""
        assert self._readings is not None
        self._readings.store(key, reading)

    def hear(self, prompt: Prompt, content: str, n_read: int) -> str:
        """Note what was read of a prompt that was stopped; return the message as far as it was heard."""
        rendered = prompt.rendered
        rest, n = rendered[len(self._cache.text) :].encode(), 0
        for token in prompt.tokens[:n_read]:
            piece = self._llama.native.piece(token, special=True)
            # A vocabulary puts a BOS before all and a space before words; a template need not know.
            is_added = n == 0 and piece == self._template.bos.encode()
            forms = (piece, piece.removeprefix(b" "), *([b""] if is_added else []))
            said = next((form for form in forms if rest.startswith(form, n)), None)
            if said is None:  # a vocabulary that writes some text in another way
                self._cache.forget()
                return ""
            n += len(said)
        self._cache.text += rest[:n].decode(errors="ignore")
        start = find_last(rendered, content, self._template.tail())
        return rendered[start : max(start, len(self._cache.text))] if start >= 0 else ""

    def _rewind(self, rendered: str, request: Request, *, is_first: bool) -> tuple[F32 | None, str]:
        """Make the cache stand for a beginning of a prompt without reading.

        Returns
        -------
        logits : ndarray or None
            Of the prompt's last token, if the cache stands for all of it.
        way : str
            What was done, empty if the cache went on as it was.
        """
        text = self._cache.held()
        why = request.why
        if not request.afresh:
            if text and len(text) < len(rendered) and rendered.startswith(text):
                return None, ""
            why = why or ("the template rewrote earlier turns" if text else "")
            moment = self._moments.longest(rendered)
            if moment is not None and self._cache.restore(moment.snapshot, moment.text):
                return moment.logits, f"{why or 'taken up again'}: {BY_SNAPSHOT}"
        self._cache.forget()
        if not text and is_first:
            return None, ""
        return None, ": ".join(part for part in (why, "the conversation was read again") if part)

    def _tokenize_rest(self, rendered: str) -> list[int]:
        """Return the tokens of a prompt that the cache does not stand for yet."""
        rest = rendered[len(self._cache.text) :]
        return self._template.tokenize(rest, first=not self._cache.text) if rest else []

    def _key(self, tokens: list[int], guide: list[int]) -> str | None:
        """Return what the reading of a first prompt is kept under, None if it is not kept."""
        if self._readings is None or len(tokens) < MIN_TOKENS:
            return None
        return self._llama.reading_key(tokens, guide)

    def _find_reading(self, key: str, rendered: str) -> F32 | None:
        """Put a kept reading in place; return the logits of its last token, None without one."""
        assert self._readings is not None
        reading = self._readings.load(key)
        if reading is None or not self._cache.restore(reading.snapshot, rendered):
            return None
        return reading.logits


def messages_of(system: str | None, turns: Sequence[Turn]) -> list[Message]:
    """Return a conversation as a chat template takes it."""
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *(message for turn in turns for message in turn.messages)]
