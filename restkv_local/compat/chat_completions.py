"""Answers messages in llama-cpp-python's dictionaries: renders them, lets the completer answer."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from typing import Any, Final, cast

from restkv_local.chat.chat_template import ChatTemplate, Message
from restkv_local.chat.guide import question_guide
from restkv_local.compat.completion_options import CompletionOptions
from restkv_local.compat.completions import Completer, Completion, Prompt
from restkv_local.errors import ConfigError, InputError
from restkv_local.loaded_model import LoadedModel

_FORMATS: Final = ("text", "json_object")


class ChatCompleter:
    """Makes chat completions; the last user message guides eviction, the system prompt is never evicted.

    Parameters
    ----------
    llama : LoadedModel
        The model.
    completer : Completer
        Answers the rendered prompts. It reads only what is new when the messages go on where the last call
        ended.

    Raises
    ------
    UnsupportedModelError
        If the model has no chat template.
    """

    def __init__(self, llama: LoadedModel, completer: Completer) -> None:
        self._completer = completer
        self._template = ChatTemplate(llama.native, llama.shape.name)

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """Render messages.

        Raises
        ------
        InputError
            If they are no messages, or the template refuses them.
        """
        plain = [_plain_message(message) for message in messages]
        if not plain:
            raise InputError("messages is empty: give at least one, such as a question of the user")
        rendered = self._template.render(plain)
        tokens = self._completer.continue_text(rendered)
        if tokens is None:
            tokens = self._template.tokenize(rendered, first=True)
        users = [message for message in plain if message["role"] == "user"]
        question = (users or plain)[-1]["content"]
        system = list(takewhile(lambda message: message["role"] == "system", plain))
        llama, tail = self._completer.llama, self._template.tail(system)
        guide = question_guide(llama.native, llama.engine.config, rendered, question, tail=tail)
        pinned = self._template.pinned_text(system)
        # Some templates put what surrounds a first user message elsewhere: then nothing is pinned.
        n_pinned = (
            len(self._template.tokenize(pinned, first=True)) if rendered.startswith(pinned) else 0
        )
        return Prompt(tokens, rendered, guide, n_pinned)

    def complete(
        self, prompt: Prompt, options: CompletionOptions, *, stream: bool
    ) -> Completion | Generator[Completion, None, None]:
        """Answer a prompt; a stream does nothing before its first chunk is asked for."""
        completion = self._completer.complete(prompt, options, stream=stream)
        if stream:
            return _chat_stream(cast("Generator[Completion, None, None]", completion))
        return {**_to_chat(completion, stream=False), "kv": cast(Completion, completion)["kv"]}


def _chat_stream(chunks: Generator[Completion, None, None]) -> Generator[Completion, None, None]:
    kv: dict[str, Any] = {}

    def watched() -> Generator[Completion, None, None]:
        for chunk in chunks:
            kv.update(chunk.get("kv", {}))
            yield chunk

    with closing(chunks):
        for chunk in _to_chat(watched(), stream=True):
            yield {**chunk, "kv": kv} if kv else chunk


def _to_chat(completion: Any, *, stream: bool) -> Any:
    # Late: the bindings must have found the patched library first.
    from llama_cpp.llama_chat_format import _convert_completion_to_chat

    return _convert_completion_to_chat(completion, stream=stream)


def _plain_message(message: Mapping[str, Any]) -> Message:
    """Return a message whose content is one text."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(
            f'a message must be like {{"role": "user", "content": "..."}}; got {message!r}'
        )
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
        if any(kind != "text" for kind in kinds):
            raise InputError(f"the content of a message must be text; got parts of type {kinds}")
        if any(not isinstance(part.get("text"), str) for part in content):
            raise InputError(
                'a part of a message must be like {"type": "text", "text": "..."}; one has no text'
            )
        content = "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise InputError(f"the content of a message must be text; got {type(content).__name__}")
    return {**message, "content": content or ""}


def choose_grammar(grammar: Any, response_format: Mapping[str, Any] | None) -> Any:
    """Return the grammar that a ``response_format`` asks for, else the one that was given.

    Raises
    ------
    ConfigError
        If the format is unknown, its schema cannot be followed, or both say what is allowed.
    """
    if response_format is None:
        return grammar
    is_mapping = isinstance(response_format, Mapping)
    kind = response_format.get("type") if is_mapping else None
    if kind not in _FORMATS:
        raise ConfigError(
            f"response_format must have the type {' or '.join(_FORMATS)}, the second with an optional schema;"
            f" got response_format={response_format!r}"
        )
    if kind == "text":
        return grammar
    if grammar is not None:
        raise ConfigError("grammar and response_format both say what is allowed: give one of them")
    from llama_cpp import llama_grammar

    schema = response_format.get("schema")
    if schema is None:
        return llama_grammar.JSON_GBNF
    try:
        return llama_grammar.json_schema_to_gbnf(json.dumps(schema))
    except Exception as error:  # the converter raises whatever it likes
        raise ConfigError(
            f"the schema of response_format cannot be followed: {error!r}; simplify it, or leave it out"
            " for any JSON"
        ) from error


def refuse_tools(**options: Any) -> None:
    """Refuse function calls, which no template is asked for here.

    Raises
    ------
    ConfigError
        If one of the options asks for them.
    """
    for name, value in options.items():
        if value and value != "none":
            raise ConfigError(
                f"{name}= cannot be had here: describe the function in a message and ask for its arguments"
                " with response_format={'type': 'json_object', 'schema': ...}"
            )
