"""Messages to prompt text, by the template that came with the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from restkv_local.errors import InputError, UnsupportedModelError
from restkv_local.native import NativeContext

Message = dict[str, Any]  # {"role": ..., "content": ...}, as OpenAI and llama-cpp-python spell it

# Stands for the user's text when only what surrounds it is wanted; no template rewrites it.
USER_TEXT = "\N{OBJECT REPLACEMENT CHARACTER}"


def find_last(rendered: str, text: str, tail: str) -> int:
    """Return where a text stands last in a prompt, -1 if nowhere; in the template's tail, any letter may.

    The template may trim the text: its core counts.
    """
    core = text.strip()
    n_tail = len(tail) if core and rendered.endswith(tail) else 0
    return rendered.rfind(core, 0, len(rendered) - n_tail)


class ChatTemplate:
    """The Jinja template of a GGUF.

    Raises
    ------
    UnsupportedModelError
        If the model has none.
    """

    def __init__(self, native: NativeContext, model: str) -> None:
        # Late: the bindings must have found the patched library first.
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        source = native.metadata("tokenizer.chat_template")
        if source is None:
            raise UnsupportedModelError(
                f"{model} has no chat template (tokenizer.chat_template): chat needs an instruct model"
            )
        self._native = native
        self.bos = native.special_token("bos")
        self._formatter = Jinja2ChatFormatter(
            template=source, eos_token=native.special_token("eos"), bos_token=self.bos
        )

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that makes the model answer.

        Raises
        ------
        InputError
            If the template refuses the messages, e.g. a system role it does not know.
        """
        try:
            return str(self._formatter(messages=list(messages)).prompt)
        except Exception as error:  # a template may raise whatever it likes
            raise InputError(
                f"the model's chat template refuses these messages: {error}"
            ) from error

    def pinned_text(self, messages: Sequence[Message]) -> str:
        """Return what stands before the first user text: system prompt, the template's own included."""
        system = [message for message in messages if message["role"] == "system"]
        rendered = self.render([*system, {"role": "user", "content": USER_TEXT}])
        return rendered.rsplit(USER_TEXT, 1)[0]  # a system prompt may hold that character too

    def tail(self, messages: Sequence[Message] = ()) -> str:
        """Return what stands after the last user text: what makes the model answer."""
        system = [message for message in messages if message["role"] == "system"]
        return self.render([*system, {"role": "user", "content": USER_TEXT}]).split(USER_TEXT)[-1]

    def tokenize(self, text: str, *, first: bool) -> list[int]:
        """Return the tokens of a rendered prompt, or of what follows one that is in the cache."""
        if first and self.bos and text.startswith(self.bos):
            # The vocabulary adds its BOS if it wants one; two would shift every position.
            with_bos = self._native.tokenize(text[len(self.bos) :], add_special=True)
            without = self._native.tokenize(text, add_special=False)
            return with_bos if with_bos[:1] == without[:1] else without
        return self._native.tokenize(text, add_special=first)
