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
) -> str:
    """Return the context without its middle, so that it fits together with what follows it.

    Parameters
    ----------
    context, rest : str
        The prompt is ``context + rest``; only the context is cut.
    n_tokens : int
        Most tokens of the prompt.
    encode, decode : callable
        Tokens of a text, and back, without tokens of the model's own.

    Raises
    ------
    InputError
        If the rest alone leaves no token of context.

    Notes
    -----
    LongBench (pred.py) and InfiniteBench (eval_utils.py) keep the first and the last half of the prompt's tokens.
    So does this, but for the one token that may span context and rest, and it keeps the rest whole even where
    it is longer than half. Decoding and encoding again may add tokens where the halves meet: then both give up a few.
    """
    if len(encode(context + rest)) <= n_tokens:
        return context
    tokens, n_rest = list(encode(context)), len(encode(rest))
    n_kept = n_tokens - n_rest
    while n_kept > 0:
        n_head = min(n_tokens // 2, n_kept)
        n_tail = n_kept - n_head
        cut = decode(tokens[:n_head]) + (decode(tokens[-n_tail:]) if n_tail else "")
        excess = len(encode(cut + rest)) - n_tokens
        if excess <= 0:
            return cut
        n_kept -= excess
    raise InputError(
        f"a prompt of {n_tokens} tokens holds no context: the question alone takes {n_rest}; give a longer length"
    )
