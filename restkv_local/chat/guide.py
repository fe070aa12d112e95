"""Picks the few tokens of a prompt that say what matters: they choose the rows that stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from restkv_local.chat.chat_template import find_last
from restkv_local.config import Config
from restkv_local.native import NativeContext

_QUESTION: Final = re.compile(r"[^.!?\u3002\uff01\uff1f\u061f\n]+[?\uff1f\u061f]")


def question_guide(
    native: NativeContext,
    config: Config,
    rendered: str,
    question: str,
    earlier: Sequence[str] = (),
    tail: str = "",
) -> list[int]:
    """Return the guide of a chat prompt: what was asked before, its last question, what the template puts after it.

    What earlier answers rested on would go as soon as the talk turns elsewhere: nothing asks for it any more.

    Parameters
    ----------
    rendered : str
        The prompt as the model reads it.
    question : str
        What was asked, as the user wrote it.
    earlier : sequence of str
        What the user wrote before, oldest first. The last question of each message counts, the newest first, in
        what room the new one leaves: half of ``n_guide`` at least.
    tail : str
        What the template puts after a question.
    """
    if config.guide != "auto":
        return _fixed_guide(native, config)
    start = find_last(rendered, question, tail)
    tokens = native.tokenize(rendered[start:] if start >= 0 else "", add_special=False)
    asked = _asked_before(
        native, question, earlier, max(config.n_guide - len(tokens), config.n_guide // 2)
    )
    room = config.n_guide - len(asked)
    if len(tokens) <= room:
        return asked + tokens
    # A long message has its question at either end.
    half = room // 2
    return asked + tokens[:half] + tokens[len(tokens) - (room - half) :]


def _asked_before(
    native: NativeContext, question: str, earlier: Sequence[str], room: int
) -> list[int]:
    """Tokens of the last questions of earlier messages, oldest first, as many as there is room for."""
    asked: list[int] = []
    known = {question.strip()}
    for message in reversed(earlier):
        found = _QUESTION.findall(message)
        if not found or found[-1].strip() in known:
            continue
        known.add(found[-1].strip())
        tokens = native.tokenize(found[-1].strip() + "\n", add_special=False)
        if len(asked) + len(tokens) > room:
            break
        asked = tokens + asked
    return asked


def ending_guide(native: NativeContext, config: Config, tokens: Sequence[int]) -> list[int]:
    """Return the guide of a prompt without turns: its last ``n_guide`` tokens."""
    if config.guide != "auto":
        return _fixed_guide(native, config)
    return list(tokens[max(0, len(tokens) - config.n_guide) :])


def _fixed_guide(native: NativeContext, config: Config) -> list[int]:
    if config.guide == "off":
        return []
    return native.tokenize(config.guide, add_special=False)  # the engine has checked its length
