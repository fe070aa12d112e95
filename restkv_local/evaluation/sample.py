"""One question of a task: what is read, what is asked, what must come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt in three parts, its references and the rule that scores an answer.

    The model reads ``template(context + question) + answer_prefix``, generates at most ``max_new_tokens`` and stops
    before the first of ``stop`` or at one of ``stop_tokens``; the parts hold every space and line break between them.

    Attributes
    ----------
    task : str
        Name in the registry of tasks.
    id : str
        Unique within the task, its seed and its length.
    context : str
        What may be evicted: the long part.
    question : str
        What is asked of it; may be read after the eviction, or guide it.
    answer_prefix : str
        The beginning of the answer that is given to the model, after the template's assistant header.
    references : tuple of str
        What the metric compares with; at least one.
    max_new_tokens : int
        Tokens of the answer.
    metric : str
        Name in the registry of metrics.
    more_metrics : tuple of str
        Further metrics of the same answer.
    uses_template : bool
        Whether the chat template is applied; without it the three parts are the prompt.
    stop : tuple of str
        Texts that end the answer and do not belong to it.
    stop_tokens : tuple of str
        Texts that do so only as a whole token, as where a benchmark makes them ends of the sequence.
    must_begin : bool
        Whether the first token may not end the answer: the likeliest other one is taken.
    extra : mapping
        What metrics and plots need besides: ``length``, ``depth``, ``all_classes``, ``needle`` and so on.
    """

    task: str
    id: str
    context: str
    question: str
    references: tuple[str, ...]
    max_new_tokens: int
    metric: str
    answer_prefix: str = ""
    more_metrics: tuple[str, ...] = ()
    uses_template: bool = True
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()
    must_begin: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All three parts, without the template."""
        return self.context + self.question + self.answer_prefix

    def count_tokens(self, count: Callable[[str], int]) -> int:
        """Return the tokens of prompt and longest answer together, without the template."""
        return count(self.text) + self.max_new_tokens
