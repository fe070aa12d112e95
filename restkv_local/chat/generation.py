"""Draws an answer token by token."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

from restkv_local.chat.text_stream import TextStream
from restkv_local.errors import CacheFullError
from restkv_local.loaded_model import LoadedModel
from restkv_local.types import F32

FinishReason = Literal["stop", "length", "cache_full"]


def generate(
    llama: LoadedModel, logits: F32, said: list[str]
) -> Generator[str, None, FinishReason]:
    """Yield an answer piece by piece; its end is returned.

    Parameters
    ----------
    llama : LoadedModel
        With the prompt in its cache; ``config.n_predict`` limits the answer.
    logits : ndarray of shape (n_vocab,)
        Of the prompt's last token: it may have been read long ago.
    said : list of str
        Takes each piece before it is yielded: whoever stops listening has lost nothing.

    Returns
    -------
    str
        ``"stop"`` where the model ended the answer, ``"length"`` where the limit did, ``"cache_full"`` where a
        cache did that evicts nothing.
    """
    native, engine, sampler = llama.native, llama.engine, llama.sampler
    sampler.begin_answer()
    stream = TextStream()
    pieces: list[bytes] = []
    counters, n_most = engine.counters, engine.config.n_predict
    n_read = counters.seen
    finish_reason: FinishReason = "length"
    try:
        while n_most < 0 or len(pieces) < n_most:
            token = sampler.draw(logits)
            if native.is_eog(token):
                finish_reason = "stop"
                break
            pieces.append(native.piece(token))
            # In the cache before it is said: whoever stops listening leaves both in step.
            try:
                engine.step(token)
            except CacheFullError:  # a whole cache, and no limit it could have been made for
                finish_reason = "cache_full"
                break
            logits = native.logits()
            if piece := stream.feed(pieces[-1]):
                said.append(piece)
                yield piece
    except BaseException:
        # Ctrl-C may have come between the two: what was said is what the cache holds. A cache that lost its rows has
        # new counters, and cannot tell.
        if engine.counters is counters:
            said[:] = _decide(pieces[: counters.seen - n_read])
        raise
    if rest := stream.finish():
        said.append(rest)
        yield rest
    return finish_reason


def _decide(pieces: list[bytes]) -> list[str]:
    """Return the text of some tokens, as far as it is decided."""
    stream = TextStream()
    return [text for piece in pieces if (text := stream.feed(piece))]
