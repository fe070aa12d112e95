"""Seeded English prose of any length: a harbour chronicle that holds no long number."""

from __future__ import annotations

from restkv_local.evaluation.prose import write_paragraphs


def document(n_words: int, seed: int, needle: str = "", depth: float = 0.5) -> str:
    """Return about ``n_words`` words, ``needle`` inside a paragraph at ``depth`` (0 start, 1 end)."""
    texts: list[str] = []
    words = 0
    for text in write_paragraphs(seed):
        texts.append(text)
        words += len(text.split())
        if words >= n_words:
            break
    if needle:
        place = min(int(depth * len(texts)), len(texts) - 1)
        sentences = texts[place].split(". ")
        sentences.insert(len(sentences) // 2, needle.rstrip("."))
        texts[place] = ". ".join(sentences)
    return "\n\n".join(texts)
