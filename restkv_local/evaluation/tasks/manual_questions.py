"""Turns the shipped manual into questions whose answers are certain: the names of definitions."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from functools import cache
from typing import Final

from restkv_local.errors import InputError
from restkv_local.evaluation.haystack import shipped_topics, split_sentences
from restkv_local.evaluation.tasks.question_set import Question, QuestionSet

# A dotted name alone on its line, with or without arguments, then an indented description. A blank line must come
# before: names that stand one below the other share a description, which would then not tell them apart.
_ENTRY: Final = re.compile(
    r"(?:\A|(?<=\n\n))( *)([a-z]\w*\.\w+)(?:\([^\n]*\))? *\n\n((?:(?:\1   [^\n]*)?\n)*\1   [^\n]*)"
)
_N_DOCUMENT_CHARS: Final = 400  # about 100 tokens, so that texts of 1,000 tokens hold several
_N_DEFINITION_CHARS: Final = 200
_N_SECTION: Final = 12  # names in one table of contents
_N_LEAST: Final = 20


@cache
def ask_manual(n_hops: int) -> QuestionSet:
    """Return questions about the entries of the manual.

    Parameters
    ----------
    n_hops : {1, 2}
        1: which name is defined by a sentence. 2: which name follows, in the contents of its section, the one that
        is defined by a sentence; two documents are needed.

    Raises
    ------
    InputError
        If the shipped manual has too few entries.

    Notes
    -----
    An entry is asked for only if the first sentence of its definition stands at no other entry and does not hold its
    own name. Entries that several topics repeat count for the first of them.
    """
    definitions: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    rest: list[str] = []
    for topic, text in shipped_topics().items():
        found = {match[2]: " ".join(match[3].split()) for match in _ENTRY.finditer(text)}
        names = [name for name in found if name not in definitions]
        definitions |= {name: found[name] for name in names}
        for i in range(0, len(names), _N_SECTION):
            sections[f"{topic}, section {i // _N_SECTION + 1}"] = names[i : i + _N_SECTION]
        rest += textwrap.wrap(_ENTRY.sub("", text), _N_DOCUMENT_CHARS)
    if len(definitions) < _N_LEAST:
        raise InputError(
            f"the manual of this Python holds {len(definitions)} definitions, too few to ask for; put squad.json"
            " and hotpotqa.json into ruler/ of the data folder"
        )
    place = {name: i for i, name in enumerate(definitions)}
    documents = [
        f"{name}\n{textwrap.wrap(text, _N_DOCUMENT_CHARS)[0]}" for name, text in definitions.items()
    ]
    opening = {name: split_sentences(text)[0] for name, text in definitions.items()}
    seen = Counter(opening.values())
    questions = []
    for section, names in sections.items():
        contents = len(documents)
        documents.append(f"Contents of {section}\n{', '.join(names)}")
        for name, following in zip(names, [*names[1:], None], strict=True):
            words = opening[name]
            tells = seen[words] == 1 and name.partition(".")[2] not in words
            if not tells or len(words) > _N_DEFINITION_CHARS:
                continue
            near = tuple(place[other] for other in names if other != name)
            if n_hops == 1:
                text = f'Which name does the manual define with the words "{words}"?'
                questions.append(Question(text, (name,), (place[name],), near))
            elif following is not None:
                text = (
                    "Which name stands in the contents directly after the one that the manual defines with the words"
                    f' "{words}"?'
                )
                questions.append(Question(text, (following,), (place[name], contents), near))
    return QuestionSet(tuple(questions), tuple([*documents, *rest]))
