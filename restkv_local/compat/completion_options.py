"""How one answer is to be made, with llama-cpp-python's names; what cannot be had is refused here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from restkv_local.errors import ConfigError
from restkv_local.types import F32

Tokens = npt.NDArray[np.intc]
LogitsProcessor = Callable[[Tokens, F32], F32]
StoppingCriterion = Callable[[Tokens, F32], bool]

# name: (lowest, highest), both allowed
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "frequency_penalty": (-math.inf, math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "repeat_penalty": (0, math.inf),
    "top_k": (-1, 2**31 - 1),
    "max_tokens": (-math.inf, math.inf),
    "logprobs": (0, math.inf),
    "seed": (-1, 2**32 - 1),
}
# Zero itself is out: nothing could be drawn, or logits would become infinite.
_POSITIVE: Final = ("top_p", "typical_p", "repeat_penalty")
_WHOLE: Final = ("top_k", "max_tokens", "logprobs", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOptions:
    """Options of one answer.

    Attributes
    ----------
    max_tokens : int or None
        Most tokens of the answer; None, 0 or less: the model's ``n_predict``.
    stop : sequence of str
        Strings that end the answer and are not part of it.
    logprobs : int or None
        How many of the likeliest tokens are named beside each token of the answer.
    echo : bool
        Whether the prompt stands before the answer.
    stopping_criteria : callables
        Called before each draw with all tokens so far and the logits of the newest; a true result ends the answer.
    logits_processor : callables
        Called before each draw, one after the other, with all tokens so far and the logits, which they return changed.
    grammar : LlamaGrammar, str or None
        llama_cpp's object, or GBNF as text.
    logit_bias : mapping or None
        Added to the logits of these tokens.
    seed : int or None
        Starts the draws anew; None: they go on from the call before.

    Raises
    ------
    ConfigError
        If a value is out of bounds, or asks for what cannot be had.
    """

    suffix: str | None
    max_tokens: int | None
    temperature: float
    top_p: float
    min_p: float
    typical_p: float
    logprobs: int | None
    echo: bool
    stop: str | Sequence[str] | None
    frequency_penalty: float
    presence_penalty: float
    repeat_penalty: float
    top_k: int
    seed: int | None
    tfs_z: float
    mirostat_mode: int
    model: str | None
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    grammar: Any
    logit_bias: Mapping[Any, float] | None

    def __post_init__(self) -> None:
        """Check every option."""
        for name in _BOUNDS:
            _check_number(name, getattr(self, name))
        if self.stop is not None and not isinstance(self.stop, str):
            try:  # an iterator can be read once
                object.__setattr__(self, "stop", tuple(self.stop))
            except TypeError:
                raise ConfigError(
                    f"stop must be a string or a list of them; got stop={self.stop!r}"
                ) from None
        if any(not isinstance(stop, str) or not stop for stop in self.stops):
            raise ConfigError(
                f"stop must be a string or a list of them, none empty; got stop={self.stop!r}"
            )
        _read_bias(self.logit_bias)
        _read_grammar(self.grammar)
        if self.suffix is not None:
            raise ConfigError(
                "suffix= cannot be had here: the end of the prompt guides eviction; write the model's own"
                " infill tokens into the prompt"
            )
        if self.tfs_z != 1.0:
            raise ConfigError(
                "tfs_z cannot be had here: llama.cpp dropped it; use min_p or typical_p"
            )
        if self.mirostat_mode != 0:
            raise ConfigError(
                "mirostat_mode cannot be had here: it draws by a state that llama.cpp does not show;"
                " use temperature, top_p or min_p"
            )
        if self.echo and self.logprobs is not None:
            raise ConfigError(
                "echo with logprobs cannot be had here: logits of the prompt are not kept; ask for one of them"
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def criteria(self) -> tuple[StoppingCriterion, ...]:
        """Stopping criteria."""
        return _callables(self.stopping_criteria)

    @property
    def processors(self) -> tuple[LogitsProcessor, ...]:
        """Logits processors, in order."""
        return _callables(self.logits_processor)

    def sampler_options(self) -> dict[str, Any]:
        """Return what :class:`~restkv_local.native.sampler.Sampler` takes, but the seed."""
        return {
            "temp": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repeat_penalty": self.repeat_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": _read_bias(self.logit_bias),
            "grammar": _read_grammar(self.grammar),
        }


def _check_number(name: str, value: Any) -> None:
    if value is None and name in ("max_tokens", "logprobs", "seed"):
        return
    low, high = _BOUNDS[name]
    kinds = int if name in _WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ConfigError(f"{name} must be {kind}; got {name}={value!r}")
    positive = name in _POSITIVE
    if not (low <= value <= high and math.isfinite(value)) or (positive and value == 0):
        rule = "finite" if low == -math.inf else f"{'above' if positive else 'at least'} {low:g}"
        limit = f" and at most {high:.0f}" if math.isfinite(high) else ""
        raise ConfigError(f"{name} must be {rule}{limit}; got {name}={value!r}")


def _callables(given: Any) -> tuple[Any, ...]:
    # llama_cpp's lists of callables can be called too.
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Sequence) else (given,)


def _read_bias(bias: Mapping[Any, float] | None) -> dict[int, float]:
    try:
        return {int(token): float(value) for token, value in (bias or {}).items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"logit_bias must map tokens to numbers: {error}; got {bias!r}"
        ) from error


def _read_grammar(grammar: Any) -> str | None:
    if grammar is None or isinstance(grammar, str):
        return grammar
    text, root = getattr(grammar, "_grammar", None), getattr(grammar, "_root", None)
    if not isinstance(text, str) or root != "root":
        raise ConfigError(
            f"grammar must be GBNF as text or a llama_cpp.LlamaGrammar; got {type(grammar).__name__}"
        )
    return text
