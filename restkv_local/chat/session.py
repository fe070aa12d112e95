"""A conversation: renders turns, reads only what is new, streams the answer, goes back, is kept on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from restkv_local.chat.chat_template import Message
from restkv_local.chat.generation import generate
from restkv_local.chat.held_cache import HeldCache
from restkv_local.chat.moments import Moments
from restkv_local.chat.prompt import BY_SNAPSHOT, PromptBuilder, Request, messages_of
from restkv_local.chat.session_file import (
    RUNTIME,
    SavedSession,
    merge_settings,
    read_session,
    write_session,
)
from restkv_local.chat.turn import Attachment, Turn
from restkv_local.chat.turn_report import TurnReport, make_timings
from restkv_local.config import Config
from restkv_local.documents import Source, list_sources, read_document
from restkv_local.engine import Engine
from restkv_local.errors import ConfigError, InputError, SessionFileError
from restkv_local.loaded_model import LoadedModel
from restkv_local.native import library_stamp
from restkv_local.sequence import OnProgress, Snapshot
from restkv_local.storage.reading_cache import Reading, ReadingCache
from restkv_local.storage.snapshot_file import tracked_kinds
from restkv_local.turn_taking import in_turn

READ_AGAIN = "all is read again with the next message"


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
    llama : LoadedModel
        The model. A new session takes its cache over and starts empty.
    system : str, optional
        System prompt; it is never evicted. Without one the template's own default counts, and is pinned too.
    readings : ReadingCache, optional
        Where a long first prompt is looked up before it is read, and kept afterwards.

    Notes
    -----
    A bounded cache cannot be cut back: what was evicted for a turn is gone. So the cache is copied before
    each turn and after the newest prompt while ``undo_mib`` allows, and going back means putting a copy in
    place; without one the turns are read again, and the report says which of the two it was.

    One call at a time: all but :meth:`context` and :meth:`prepare` raise BusyError while another thread's runs, and
    end a stream that was left open; what it said so far stays.
    """

    def __init__(
        self, llama: LoadedModel, *, system: str | None = None, readings: ReadingCache | None = None
    ) -> None:
        self._llama = llama
        self._system = system
        self._files: dict[str, str] = {}  # when each was written, as far as this conversation knows
        self._unsure: set[str] = set()  # likewise where Ctrl-C came: the file may be in place
        self._moments = Moments(self._engine.config.undo_mib << 20)
        self._cache = HeldCache(llama)
        self._prompts = PromptBuilder(llama, self._cache, self._moments, readings)
        self.report = TurnReport(llama.shape.name, llama.version)
        self.clear()

    @property
    def _engine(self) -> Engine:
        return self._llama.engine

    @property
    def llama(self) -> LoadedModel:
        """The model that answers."""
        return self._llama

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation so far."""
        return tuple(self._turns)

    @property
    def messages(self) -> list[Message]:
        """The conversation so far as the template takes it."""
        return messages_of(self._system, self._turns)

    def clear(self) -> None:
        """Start over: no messages but the system prompt, no rows."""
        with self._llama.turns.call():
            self._turns: list[Turn] = []
            self._moments.clear()
            self._llama.sampler.reset()
            self._cache.forget()

    def context(self) -> ContextView:
        """Return what the cache holds now."""
        kv = self._engine.kv_report() if self._engine.is_open else dict.fromkeys(_CONTEXT_KEYS, 0)
        return ContextView(
            n_pinned=self._engine.n_pinned,
            n_turns=len(self._turns),
            **{key: kv[key] for key in _CONTEXT_KEYS},
        )

    # Asking

    def send(
        self,
        text: str,
        *,
        documents: Source | Sequence[Source] = (),
        on_progress: OnProgress | None = None,
    ) -> Iterator[str]:
        """Ask; yields the answer piece by piece, ``report`` is complete afterwards.

        Parameters
        ----------
        text : str
            The question. With documents it is also what guides eviction.
        documents : str, Path, Document or a sequence of them
            What to read before the question: texts, and files by their Path.
        on_progress : callable, optional
            Called after each chunk of the prompt.

        Raises
        ------
        InputError
            If there is nothing to read.
        KeyboardInterrupt
            On Ctrl-C, once the session is in order again: what was read and said so far stays.
        """
        return self._start(Request(Turn(text, _attach(documents))), on_progress)

    def regenerate(self, *, on_progress: OnProgress | None = None) -> Iterator[str]:
        """Answer the last question again with other draws; the earlier answer is forgotten.

        Raises
        ------
        InputError
            If nothing was asked yet.
        """
        turn = replace(self._last(), answer="", heard=None)
        return self._start(Request(turn, "answered again", replaces=True), on_progress)

    def edit(self, text: str, *, on_progress: OnProgress | None = None) -> Iterator[str]:
        """Ask the last question in other words, with the same documents; the earlier turn is forgotten.

        Raises
        ------
        InputError
            If nothing was asked yet, or there is nothing to read.
        """
        last = self._last()
        turn = Turn(text, last.documents, n_drawn=last.n_drawn)
        request = Request(turn, "asked in other words", replaces=True, draws_anew=True)
        return self._start(request, on_progress)

    def reread(self, text: str = "", *, on_progress: OnProgress | None = None) -> Iterator[str]:
        """Read the conversation and its documents again from the start, guided by a question, then answer it.

        Parameters
        ----------
        text : str, optional
            A new question. Without one the last question is answered anew, in place of its answer.
        on_progress : callable, optional
            Called after each chunk.

        Raises
        ------
        InputError
            If nothing was asked yet.
        """
        last = self._last()
        new = bool(text.strip())
        turn = Turn(text) if new else replace(last, answer="", heard=None)
        request = Request(turn, "guided by this question", replaces=not new, afresh=True)
        return self._start(request, on_progress)

    def undo(self, n: int = 1) -> str:
        """Forget the last ``n`` turns.

        Returns
        -------
        str
            How: by snapshot, or that all is read again with the next message.

        Raises
        ------
        InputError
            If there are fewer turns.
        """
        with self._llama.turns.call():
            return self._undo(n)

    def _undo(self, n: int) -> str:
        if not 1 <= n <= len(self._turns):
            raise InputError(f"there are {len(self._turns)} turns to undo; got {n}")
        self._llama.sampler.n_drawn = self._turns[-n].n_drawn
        del self._turns[-n:]
        self._moments.cut(len(self._turns))
        if not self._turns:
            self._cache.forget()
            return "the conversation is empty again"
        moment = self._moments.between(len(self._turns))
        if moment is not None and self._cache.restore(moment.snapshot, moment.text):
            return BY_SNAPSHOT
        self._cache.forget()
        return READ_AGAIN

    def prepare(
        self, text: str, *, documents: Source | Sequence[Source] = ()
    ) -> tuple[list[int], int]:
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
        rendered = self._prompts.render(self._system, (), Turn(text, _attach(documents)).content)
        return self._prompts.tokenize(rendered), self._prompts.count_pinned(self._system)

    # Other rules

    def set_budget(self, budget: int | str) -> str:
        """Give every layer and KV head another number of rows; a smaller one is evicted to at once.

        Returns
        -------
        str
            How the conversation went on: by snapshot, or that all is read again with the next message.

        Raises
        ------
        ConfigError
            If it is no budget or does not fit the machine; nothing has changed then.
        """
        with self._llama.turns.call():
            return self._set_budget(budget)

    def _set_budget(self, budget: int | str) -> str:
        return self._reconfigure(replace(self._engine.config, budget=budget))

    def set_policy(self, policy: str, allocation: str | None = None) -> str:
        """Evict by other rules from now on.

        Returns
        -------
        str
            As :meth:`set_budget`; "from the next eviction on" where the open cache takes the rules.

        Raises
        ------
        ConfigError
            If there is no such rule, or these two do not go together; nothing has changed then.
        """
        with self._llama.turns.call():
            return self._set_policy(policy, allocation)

    def _set_policy(self, policy: str, allocation: str | None) -> str:
        engine = self._engine
        config = replace(
            engine.config, policy=policy, allocation=allocation or engine.config.allocation
        )
        budget, n_rows = engine.budget, engine.capacity
        if self._cache.held():
            budget, n_rows = engine.renewed(config).check(*self._cache.opened)
        with self._cache.or_as_before():
            try:
                engine.use(policy=policy, allocation=allocation, budget=budget)
            except ConfigError:
                # What this cache cannot take another may; what is wrong in itself is refused there too.
                return self._reconfigure(config)
            if n_rows >= engine.capacity:
                return "from the next eviction on"
            # What held all of the text does not keep its memory: it chooses the rows that go to a smaller cache.
            evicts = engine.rows.mean > budget and engine.can_evict
            if evicts:
                engine.evict()
            way = self._reconfigure(config)
        return f"{way}, evicted to {budget:,} rows" if evicts and way == BY_SNAPSHOT else way

    def _reconfigure(self, config: Config) -> str:
        old, renewed = self._engine, self._engine.renewed(config)
        if not self._cache.held():
            self._cache.hand_to(renewed)
            return "from the next message on"
        # A cache that cannot be copied is not given up for what is refused.
        renewed.check(*self._cache.opened)
        text, way = self._cache.text, BY_SNAPSHOT
        with self._cache.or_as_before() as before:
            moved = self._cache.move_to(renewed, self._cache.opened, before, text)
            may_cut = old.policy.evicts and (not moved or renewed.budget < old.budget)
            if may_cut and before is not None and before.rows.positions.shape[-1] > renewed.budget:
                # The old cache chooses which rows go to the new one, unless Ctrl-C in a chunk left it no queries.
                moved = self._cache.move_to(old, self._cache.opened, before, text) and old.can_evict
                if moved:
                    old.use(budget=renewed.budget)
                    old.evict()
                    way = f"{BY_SNAPSHOT}, evicted to {renewed.budget:,} rows"
                cut = self._cache.snapshot() if moved else None
                moved = self._cache.move_to(renewed, self._cache.opened, cut, text)
        if moved:
            return way
        # What a policy wants to know of every query so far, older moments do not tell either.
        self._moments.clear()
        self._cache.forget()
        return READ_AGAIN

    # On disk

    def save(self, path: str | Path, *, replace_any: bool = True) -> None:
        """Write the conversation with its cache to a file; :meth:`load` goes on from there to the bit.

        Parameters
        ----------
        path : str or Path
            Where to.
        replace_any : bool
            Whether a session may be replaced that this conversation neither read nor wrote.

        Raises
        ------
        SessionFileError
            If it cannot be written, or somebody else wrote the file since this conversation last read or wrote
            it; what was there is unchanged. Or if the policy has knobs of its own, which a file does not hold.
        """
        path = Path(path)
        if not self._engine.is_configured:
            raise SessionFileError(
                f"policy={self._engine.policy.name!r} has knobs of its own, and a session file holds options and names"
                " alone; take the policy by its name first"
            )
        with self._llama.turns.call():
            saved = self._pack()
        place = os.path.abspath(path)
        known = self._files.get(place, None if replace_any else "")
        replaces = None if known is None else {known, *self._unsure}
        self._unsure.add(saved.saved)
        write_session(path, saved, replaces=replaces)
        self._files[place] = saved.saved
        self._unsure.discard(saved.saved)

    def _pack(self) -> SavedSession:
        sampler = self._llama.sampler
        return SavedSession(
            model=self._llama.shape.name,
            fingerprint=self._llama.fingerprint,
            library=library_stamp(),
            config=self._engine.config,
            system=self._system,
            turns=self.turns,
            text=self._cache.held(),
            opened=self._cache.opened,
            seed=sampler.seed,
            n_drawn=sampler.n_drawn,
            snapshot=self._cache.snapshot(),
        )

    def load(
        self, session: str | Path | SavedSession, changes: Mapping[str, Any] | None = None
    ) -> str:
        """Go on with a conversation that :meth:`save` wrote; this one is forgotten.

        Parameters
        ----------
        session : str, Path or SavedSession
            The file, or what ``read_session`` made of it.
        changes : mapping, optional
            Fields of Config to go on with instead of the file's.

        Returns
        -------
        str
            How: by snapshot, or that all is read again with the next message, and why; empty without turns.

        Raises
        ------
        SessionFileError
            If the file cannot be used here. Nothing has changed then, nor with the next.
        ConfigError
            If a change does not fit the session, or the machine does not hold the cache.
        """
        saved = session if isinstance(session, SavedSession) else read_session(Path(session))
        with self._llama.turns.call():
            return self._load(saved, changes)

    def _load(self, saved: SavedSession, changes: Mapping[str, Any] | None) -> str:
        saved.check_model(self._llama.fingerprint, self._llama.shape.name)
        changes = {
            name: value
            for name, value in (changes or {}).items()
            if str(value) != str(getattr(saved.config, name))  # a budget may be text
        }
        rules = {name: changes.pop(name) for name in _RULES if name in changes}
        here = {name: getattr(self._engine.config, name) for name in RUNTIME}
        config = Config(**{**here, **merge_settings(saved.config, changes)})
        snapshot, why = saved.snapshot, ""
        if snapshot is not None and saved.library != library_stamp():
            snapshot, why = None, f": its cache was made by another library ({saved.library})"
        kinds = tracked_kinds(snapshot) if snapshot is not None else ()
        # Rules that cannot be are refused now.
        ruled = self._engine.renewed(replace(config, **rules))
        if snapshot is not None:
            ruled.check(*saved.opened)
        renewed = self._engine.renewed(config, kinds)
        moved = False
        with self._cache.or_as_before():
            if snapshot is None:
                self._cache.hand_to(renewed)
            else:
                moved = self._cache.move_to(renewed, saved.opened, snapshot, saved.text)
        seed = changes.get("seed", -1)
        self._use_sampling(config, saved.seed if seed < 0 else seed, saved.n_drawn)
        self._system, self._turns = saved.system, list(saved.turns)
        self._cache.opened = saved.opened
        if saved.path is not None:
            self._files[os.path.abspath(saved.path)] = saved.saved
        self._moments.clear()
        if not moved:
            self._cache.forget()
        ways = [BY_SNAPSHOT if moved else READ_AGAIN + why] if saved.turns else []
        if rules.keys() & {"policy", "allocation"}:
            policy = rules.get("policy", config.policy)
            ways.append(f"rules: {self._set_policy(policy, rules.get('allocation'))}")
        if "budget" in rules:
            ways.append(f"budget: {self._set_budget(rules['budget'])}")
        return "; ".join(ways)

    def _use_sampling(self, config: Config, seed: int, n_drawn: int) -> None:
        old = self._llama.sampler
        self._llama.sampler = self._llama.make_sampler(config, seed)
        self._llama.sampler.n_drawn = n_drawn
        self._llama.config = config
        old.close()

    # Answering

    def _last(self) -> Turn:
        with self._llama.turns.call():  # a stream that was left open ends with a turn of its own
            if not self._turns:
                raise InputError("nothing was asked yet: ask first")
            return self._turns[-1]

    def _start(self, request: Request, on_progress: OnProgress | None) -> Iterator[str]:
        # What cannot be read is refused now, not with the first piece: nothing is given up for it.
        content = request.turn.content
        self._llama.native.encode(content)
        reply = self._reply(request, content, on_progress)
        return in_turn(self._llama.turns, reply)

    def _reply(
        self, request: Request, content: str, on_progress: OnProgress | None
    ) -> Generator[str, None, None]:
        self.report = report = TurnReport(self._llama.shape.name, self._llama.version)
        prompt = self._prompts.build(request, self._system, self._turns, content)
        report.notes += prompt.notes
        earlier, tokens, logits = prompt.earlier, prompt.tokens, prompt.logits
        engine = self._engine
        counters = engine.counters
        seen, cached = counters.seen, round(engine.rows.mean)
        answer: list[str] = []
        kept: Snapshot | None = None
        start = answer_start = time.perf_counter()
        reading = True
        try:
            engine.guide = prompt.guide  # of an answer that needs no reading, too
            if tokens:
                engine.read(tokens, guide=prompt.guide, on_progress=on_progress)
                self._cache.hold(prompt.rendered)
            reading = False
            if logits is None:
                logits = self._llama.native.logits().copy()
                kept = self._prompts.keep_moment(len(earlier), logits)
                if prompt.key is not None and kept is None:
                    kept = self._cache.snapshot()
            answer_start = time.perf_counter()
            report.finish_reason = yield from generate(self._llama, logits, answer)
        finally:
            end = time.perf_counter()
            is_lost = engine.counters is not counters  # with rows half moved it was cleared
            n_new = 0 if is_lost else counters.seen - seen
            n_read = min(len(tokens), n_new)
            n_said = n_new - n_read
            report.response = "".join(answer)
            if reading:
                answer_start = end
                if n_read:
                    self._cache.hold(self._cache.text)
                    heard = self._prompts.hear(prompt, content, n_read)
                    self._turns = [*earlier, replace(prompt.turn, heard=heard)]
            else:
                if not is_lost:
                    self._cache.hold(self._cache.text + report.response)
                self._turns = [*earlier, replace(prompt.turn, answer=report.response)]
            report.usage = {
                "prompt_tokens": seen + n_read,
                "completion_tokens": n_said,
                "total_tokens": seen + n_new,
            }
            timings = make_timings(n_read, answer_start - start, n_said, end - answer_start)
            report.timings = timings | {"cache_n": cached}
            report.kv = engine.kv_report()
            if prompt.key is not None and kept is not None and logits is not None:
                self._prompts.keep_reading(prompt.key, Reading(kept, logits))


def _attach(documents: Source | Sequence[Source]) -> tuple[Attachment, ...]:
    return tuple(_attachment(one) for one in list_sources(documents))


def _attachment(one: Source) -> Attachment:
    if isinstance(one, str):
        return Attachment.of_text(one)
    document = read_document(one) if isinstance(one, Path) else one
    return Attachment(document.name, document.text, document.sha256)


_CONTEXT_KEYS = (
    "budget", "capacity", "kept", "seen", "evicted", "events", "bytes", "bytes_full",
)  # fmt: skip
# Rules of eviction: they may change while rows are there.
_RULES = ("policy", "allocation", "budget")
