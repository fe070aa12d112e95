"""The text that is read: Python's own language reference, which every Python brings along."""

from __future__ import annotations

from restkv_local.native import NativeContext

QUESTION = (
    "Which statement of the text says what happens when a name is bound twice in one block,"
    " and what are its exact words?"
)
# More than a token has in English prose, so that one pass is enough as a rule.
_CHARACTERS_PER_TOKEN = 8


def tokenize_text(native: NativeContext, n_tokens: int) -> list[int]:
    """Return the first tokens of the text, which begins anew where it ends.

    Parameters
    ----------
    native : NativeContext
        The model's vocabulary.
    n_tokens : int
        How many, those that the vocabulary puts before a text included.
    """
    from pydoc_data.topics import topics  # 700 kB that only a measurement needs

    text = "\n\n".join(topics[name] for name in sorted(topics))
    while len(text) < n_tokens * _CHARACTERS_PER_TOKEN:
        text += "\n\n" + text
    text = text[: n_tokens * _CHARACTERS_PER_TOKEN]
    tokens = native.tokenize(text, add_special=True)
    while len(tokens) < n_tokens:
        tokens += native.tokenize(text, add_special=False)
    return tokens[:n_tokens]
