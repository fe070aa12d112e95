"""Cuts what is too long in the middle, as LongBench and InfiniteBench do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from restkv_local.errors import InputError


def cut_middle(
    context: str,
    rest: str,
    n_tokens: int,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> tuple[str, str]:
    """Return context and rest without the middle of what they are together: its first and its last half stay.

    Parameters
    ----------
    context, rest : str
        The prompt is ``context + rest``. Where the rest is more than half of what may stay, as in repobench-p, its
        beginning goes too.
    n_tokens : int
        Most tokens of the prompt.
    encode, decode : callable
        Tokens of a text, and back, without tokens of the model's own.

    Raises
    ------
    InputError
        If not even one token of each half would stay.

    Notes
    -----
    LongBench (pred.py) and InfiniteBench (eval_utils.py) do so. Here one token may not span context and rest. Decoding
    and encoding again may add tokens where the halves meet: then both give up a few.
    """
    if len(encode(context + rest)) <= n_tokens:
        return context, rest
    tokens, border = [*encode(context), *encode(rest)], len(encode(context))
    half = n_tokens // 2
    while half > 0:
        head, tail = min(half, border), len(tokens) - half
        cut = decode(tokens[:head]) + decode(tokens[tail:border])
        left = decode(tokens[border:half]) + decode(tokens[max(tail, border) :])
        if tail <= border:
            left = rest  # to the letter
        excess = len(encode(cut + left)) - n_tokens
        if excess <= 0:
            return cut, left
        half -= (excess + 1) // 2
    raise InputError(f"a prompt of {n_tokens} tokens holds nothing; give a longer length")
