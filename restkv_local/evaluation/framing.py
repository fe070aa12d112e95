"""Turns a sample into the prompt that the model reads: the chat template around it, cut where its question begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from restkv_local.chat.chat_template import USER_TEXT, ChatTemplate
from restkv_local.chat.guide import ending_guide, question_guide
from restkv_local.config import Config
from restkv_local.errors import InputError
from restkv_local.evaluation.sample import Sample
from restkv_local.llama import Llama


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is read, as text.

    Attributes
    ----------
    context : str
        The template's beginning and the context.
    ending : str
        The question, what the template puts after it, and the beginning of the answer.
    question : str
        The question alone, possibly empty.
    framed : bool
        Whether the chat template stands around it.
    """

    context: str
    ending: str
    question: str
    framed: bool


class Framing:
    """The chat template of a model, or none.

    Parameters
    ----------
    llama : Llama
        The model.
    use_template : bool
        False: prompts are plain text even where the model has a template.

    Raises
    ------
    InputError
        If the template does not show the user's text exactly once.
    """

    def __init__(self, llama: Llama, *, use_template: bool = True) -> None:
        self._native = llama.native
        self._template: ChatTemplate | None = None
        self._before = self._after = ""
        if use_template and self._native.metadata("tokenizer.chat_template") is not None:
            self._template = ChatTemplate(self._native, llama.shape.name)
            # Not the sample itself: a template that trims would trim blank lines that belong to it.
            rendered = self._template.render([{"role": "user", "content": USER_TEXT}])
            parts = rendered.split(USER_TEXT)
            if len(parts) != 2:
                raise InputError(
                    f"the chat template of {llama.shape.name} shows a user's text {len(parts) - 1} times, it must"
                    " be once; use --no-template"
                )
            self._before, self._after = parts

    @property
    def has_template(self) -> bool:
        """Whether a template is used where samples ask for one."""
        return self._template is not None

    @property
    def n_template(self) -> int:
        """Tokens that the template adds to a prompt."""
        return len(self._tokenize_first(self._before + self._after, framed=True))

    def frame(self, sample: Sample) -> Prompt:
        """Return the prompt of a sample; every space and line break of its parts is kept."""
        framed = sample.uses_template and self.has_template
        before, after = (self._before, self._after) if framed else ("", "")
        ending = sample.question + after + sample.answer_prefix
        return Prompt(before + sample.context, ending, sample.question, framed)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Return the tokens of the whole prompt."""
        return self._tokenize_first(prompt.context + prompt.ending, framed=prompt.framed)

    def tokenize_parts(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        """Return the tokens before the question, possibly none, and from it on."""
        before = self._tokenize_first(prompt.context, framed=prompt.framed)
        return before, self._native.tokenize(prompt.ending, add_special=False)

    def count_pinned(self, prompt: Prompt) -> int:
        """Return how many first tokens no eviction may touch: the system prompt, as in a chat."""
        return len(self._tokenize_first(self._before, framed=True)) if prompt.framed else 0

    def guide(self, prompt: Prompt, tokens: Sequence[int], config: Config) -> list[int]:
        """Return the tokens that say what matters: the question, or the prompt's end where there is none."""
        if not prompt.question.strip():
            return ending_guide(self._native, config, tokens)
        tail = prompt.ending[len(prompt.question) :]
        return question_guide(self._native, config, prompt.ending, prompt.question, tail=tail)

    def _tokenize_first(self, text: str, *, framed: bool) -> list[int]:
        if framed and self._template is not None:
            return self._template.tokenize(text, first=True)
        return self._native.tokenize(text, add_special=True)
