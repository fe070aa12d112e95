"""Puts worked examples before a question: as many as asked for, or as a length holds."""

from __future__ import annotations

import random
from collections.abc import Sequence

from restkv_local.errors import ConfigError
from restkv_local.evaluation.tasks.base import Request

_N_SHOTS = 5  # lm-evaluation-harness's gsm8k


def join_shots(
    shots: Sequence[str], request: Request, task: str, index: int, rest: str, max_new_tokens: int
) -> str:
    """Return examples drawn for one sample, each followed by a blank line.

    Parameters
    ----------
    shots : sequence of str
        Examples with their answers.
    request : Request
        With a length: as many examples as it holds; without: five.
    task, index : str and int
        Which sample it is; each has examples of its own.
    rest : str
        What follows them in the prompt.
    max_new_tokens : int
        Tokens of the answer.

    Raises
    ------
    ConfigError
        If the length does not even hold what follows and the answer.
    """
    rng = random.Random(request.key(task, index))
    drawn = rng.sample(list(shots), len(shots))
    if request.length is None:
        return "".join(f"{shot}\n\n" for shot in drawn[:_N_SHOTS])
    n_rest = request.count(rest)
    room = request.length - max_new_tokens - n_rest
    if room < 0:
        raise ConfigError(
            f"a question takes {n_rest} tokens and its answer up to {max_new_tokens}; a length of {request.length}"
            " does not hold both; give more, or leave --length out"
        )
    text, n = "", 0
    for shot in drawn:
        n += request.count(f"{shot}\n\n")
        if n > room:
            break
        text += f"{shot}\n\n"
    return text
