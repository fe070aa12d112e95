"""What a task is asked for, and what the registry knows of it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from restkv_local.errors import ConfigError, InputError
from restkv_local.evaluation import LENGTH, N_SAMPLES, SEED
from restkv_local.evaluation.fitting import fit_sample
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.truncation import cut_middle

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Which samples a task shall yield; equal requests yield equal samples.

    Attributes
    ----------
    count : callable
        Tokens of a text, for the model that will read it.
    encode, decode : callable, optional
        Tokens of a text and back; needed where prompts must be cut.
    seed : int
        Decides everything that is drawn.
    length : int, optional
        Most tokens of prompt and answer together. None: 4,096 for what is generated, no limit for what is read
        from files.
    n_template : int
        Tokens that the chat template adds to a prompt; they count too, where it is used.
    n : int, optional
        Number of samples. None: 10 generated ones, or all that a file holds.
    data : Path, optional
        The folder that holds ``longbench/``, ``infinitebench/``, ``ruler/`` and so on.
    haystack : Path, optional
        A document to hide things in, in place of the shipped text.

    Raises
    ------
    ConfigError
        If ``n`` or ``length`` is below 1.
    """

    count: Callable[[str], int]
    encode: Callable[[str], Sequence[int]] | None = None
    decode: Callable[[Sequence[int]], str] | None = None
    seed: int = SEED
    length: int | None = None
    n_template: int = 0
    n: int | None = None
    data: Path | None = None
    haystack: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("n", self.n), ("length", self.length)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; got {name}={value}")

    @property
    def n_generated(self) -> int:
        """Samples to generate."""
        return N_SAMPLES if self.n is None else self.n

    @property
    def n_tokens(self) -> int:
        """Most tokens of a generated sample, answer included."""
        return LENGTH if self.length is None else self.length

    def key(self, task: str, index: int) -> str:
        """Return what a sample is drawn from: seeds of ``random.Random`` may be text."""
        return f"{task}/{self.n_tokens}/{self.seed}/{index}"

    def name(self, index: int) -> str:
        """Return the id of a generated sample."""
        return f"{self.n_tokens}-{self.seed}-{index}"

    def measure(self, sample: Sample) -> int:
        """Return the tokens of a sample, template and answer included."""
        n_template = self.n_template if sample.uses_template else 0
        return sample.count_tokens(self.count) + n_template

    def fit(self, build: Callable[[int], Sample], least: int = 1) -> Sample:
        """Return the largest sample of at most ``n_tokens``; see :func:`fit_sample`.

        Raises
        ------
        ConfigError
            If not even the smallest one fits.
        """
        return fit_sample(build, self.measure, self.n_tokens, least)

    def choose(self, read: Callable[[], Iterator[Item]], task: str) -> Iterator[tuple[int, Item]]:
        """Yield ``n`` of the items, drawn by the seed, in their order and numbered from 1; all by default.

        They are read twice: whatever is wrong shows before the first of them is used, and memory holds one.
        """
        n_items = sum(1 for _ in read())
        drawn: Container[int] = range(n_items)
        if self.n is not None and self.n < n_items:
            drawn = set(random.Random(f"{task}/{self.seed}").sample(range(n_items), self.n))
        for i, item in enumerate(read()):
            if i in drawn:
                yield i + 1, item

    def find_file(self, path: str, holds: str) -> Path:
        """Return the file of the data folder that a task reads.

        Raises
        ------
        InputError
            If there is no folder or no such file: where it must lie and what it must hold.
        """
        if self.data is None:
            raise InputError(
                f"reads local data: give --data, the folder that holds {path}, {holds}"
            )
        file = self.data / path
        if not os.path.isfile(file):
            raise InputError(f"found no {file}; put it there: {holds}")
        return file

    def cut(self, sample: Sample) -> Sample:
        """Return the sample, its middle cut out where it is longer than asked for.

        Raises
        ------
        ConfigError
            If it must be cut and there is no tokenizer to do it.
        InputError
            If the length leaves room for nothing but the answer and its beginning.
        """
        if self.length is None or self.measure(sample) <= self.length:
            return sample
        if self.encode is None or self.decode is None:
            raise ConfigError(
                f"{sample.task} has prompts above {self.length} tokens; cutting them needs encode and decode"
            )
        n_template = self.n_template if sample.uses_template else 0
        n_prompt = self.length - sample.max_new_tokens - n_template
        # What the answer begins with stays: it is counted, not cut.
        n_prefix = len(self.encode(sample.answer_prefix)) if sample.answer_prefix else 0
        context, question = cut_middle(
            sample.context, sample.question, n_prompt - n_prefix, self.encode, self.decode
        )
        return replace(sample, context=context, question=question)


def read_references(answers: Sequence[Any], place: str) -> tuple[str, ...]:
    """Return the right answers of a record as text; empty ones, which nothing can agree with, are left out.

    Raises
    ------
    InputError
        If there is none, or one is neither text nor a number.
    """
    for answer in answers:
        if not isinstance(answer, str | int | float):
            raise InputError(f"{place} has the answer {answer!r}, which must be text or a number")
    texts = tuple(text for text in map(str, answers) if text.strip())
    if not texts:
        raise InputError(f"{place} has no answer, so it cannot be scored")
    return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One entry of the registry.

    Attributes
    ----------
    name : str
        As users type it.
    family : str
        The benchmark it belongs to; users may ask for all of it.
    summary : str
        What is asked, in one line.
    needs : str
        The files it reads, relative to the data folder; empty if it is generated.
    takes : str
        The files that it uses in place of generated text where they are there.
    make : callable
        Yields its samples.
    """

    name: str
    family: str
    summary: str
    make: Callable[[Request], Iterator[Sample]]
    needs: str = ""
    takes: str = ""
