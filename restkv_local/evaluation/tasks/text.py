"""Running text for perplexity and KL divergence: what is read before an eviction, what is predicted after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from restkv_local.errors import ConfigError, InputError
from restkv_local.evaluation import N_SCORED
from restkv_local.evaluation.haystack import read_haystack


@dataclass(frozen=True, slots=True)
class Stride:
    """A piece of a text.

    Attributes
    ----------
    start : int
        Place of its first token in the text.
    read : tuple of int
        Tokens to read before the eviction.
    scored : tuple of int
        Tokens that follow, one by one. All but the first are predicted: what predicts that one was read before the
        eviction.
    """

    start: int
    read: tuple[int, ...]
    scored: tuple[int, ...]


def cut_strides(
    encode: Callable[[str], Sequence[int]],
    *,
    file: Path | None = None,
    n_read: int,
    n_scored: int = N_SCORED,
    stride: int | None = None,
    n: int | None = None,
    bos: int | None = None,
) -> Iterator[Stride]:
    """Cut a text into pieces of equal length.

    Parameters
    ----------
    encode : callable
        Tokens of a text.
    file : Path, optional
        A document of any kind; None: the manual that ships with Python.
    n_read, n_scored : int
        Tokens to read before an eviction, and to go on with after it.
    stride : int, optional
        Tokens from the start of one piece to the next. None: the pieces do not overlap. ``n_scored - 1`` predicts
        every token after the first ``n_read + 1`` exactly once, as strided perplexity usually does.
    n : int, optional
        Most pieces; None: as many as the text holds.
    bos : int, optional
        Stands in place of each piece's first token, as in llama.cpp's perplexity, for models that begin with one.

    Raises
    ------
    ConfigError
        If a number is below 1.
    InputError
        If the text cannot be read or is shorter than one piece.
    """
    step = n_read + n_scored if stride is None else stride
    for name, value in (("n_read", n_read), ("n_scored", n_scored), ("stride", step), ("n", n)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1; got {name}={value}")
    tokens = tuple(encode(read_haystack(file)))
    n_piece = n_read + n_scored
    if len(tokens) < n_piece:
        source = "the shipped manual" if file is None else file
        raise InputError(
            f"{source} has {len(tokens)} tokens, but a piece takes {n_read} + {n_scored}; give a longer text or fewer"
        )
    starts = range(0, len(tokens) - n_piece + 1, step)
    for start in starts if n is None else starts[:n]:
        middle = start + n_read
        read = tokens[start:middle] if bos is None else (bos, *tokens[start + 1 : middle])
        yield Stride(start, read, tokens[middle : middle + n_scored])
