"""Picks the few tokens of a prompt that say what matters: they choose the rows that stay."""

from __future__ import annotations

from collections.abc import Sequence

from restkv_local.config import Config
from restkv_local.native import NativeContext


def question_guide(
    native: NativeContext, config: Config, rendered: str, question: str
) -> list[int]:
    """Return the guide of a chat prompt: its last question and what the template puts after it.

    Parameters
    ----------
    rendered : str
        The prompt as the model reads it.
    question : str
        What was asked, as the user wrote it.
    """
    if config.guide != "auto":
        return _fixed_guide(native, config)
    # The template may trim the question: look for its core.
    start = rendered.rfind(question.strip())
    tokens = native.tokenize(rendered[start:] if start >= 0 else "", add_special=False)
    if len(tokens) <= config.n_guide:
        return tokens
    # A long message has its question at either end.
    half = config.n_guide // 2
    return tokens[:half] + tokens[-(config.n_guide - half) :]


def ending_guide(native: NativeContext, config: Config, tokens: Sequence[int]) -> list[int]:
    """Return the guide of a prompt without turns: its last ``n_guide`` tokens."""
    if config.guide != "auto":
        return _fixed_guide(native, config)
    return list(tokens[max(0, len(tokens) - config.n_guide) :])


def _fixed_guide(native: NativeContext, config: Config) -> list[int]:
    if config.guide == "off":
        return []
    return native.tokenize(config.guide, add_special=False)[: config.n_guide]
