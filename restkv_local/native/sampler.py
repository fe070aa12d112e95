"""Draws tokens with llama.cpp's filters, so that what a chain would remember can be written down."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from restkv_local.config import PENALISED
from restkv_local.errors import ConfigError
from restkv_local.native._ownership import free_with
from restkv_local.types import F32

# Laid out as llama_token_data.
_CANDIDATE: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
# llama.cpp takes this seed for "none given" and draws one itself.
_NO_SEED: Final = 0xFFFFFFFF
# The signs of GBNF that need a look; literals, character classes and comments are stepped over.
_SIGNS: Final = re.compile(
    r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*'
    r"|\{\s*(\d+)\s*,\s*(\d+)\s*\}|(!?<[^>\n]*)|(\()|(\))|(::=)",
    re.DOTALL,
)
# A C string ends at the first, and the second is no character.
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
# llama.cpp follows rules and parentheses by recursion: 20,000 of either overflow a stack of 8 MiB.
_MOST_NESTED: Final = 250
_MOST_RULES: Final = 2500


class Sampler:
    """llama.cpp's filters in llama-cpp-python's order, then a draw; ``temp`` 0 takes the likeliest.

    The order is logit bias, penalties, grammar, top-k, typical, top-p, min-p, temperature.

    llama.cpp shows nothing of the random state inside its chains, so every token is drawn with a seed of
    its own, made from ``seed`` and the number of tokens drawn before. These two are the whole state of a
    sampler without penalties and grammar. Those two look back at the tokens drawn so far, and at nothing
    else: a new sampler that is given the same tokens (:meth:`accept`) goes on as the old one would.

    Parameters
    ----------
    llama : module
        The loaded bindings.
    vocab : ctypes pointer
        The model's vocabulary.
    temp, top_k, top_p, min_p, typical_p : float
        As in llama.cpp.
    seed : int
        0 to 2**32 - 1.
    repeat_penalty, frequency_penalty, presence_penalty : float
        As in llama.cpp; 1, 0 and 0 change nothing. They count drawn tokens, not the prompt's.
    n_last : int
        How many of the newest drawn tokens they count.
    logit_bias : mapping of int to float, optional
        Added to the logits of these tokens; ``-inf`` forbids one.
    grammar : str, optional
        GBNF; only what it derives from ``root`` can be drawn.
    owner : object, optional
        What frees the vocabulary when it goes: the sampler keeps it.

    Raises
    ------
    ConfigError
        If llama.cpp cannot parse the grammar, or a bias is no number for a token of this model.
    """

    def __init__(
        self,
        llama: Any,
        vocab: Any,
        *,
        temp: float,
        top_k: int,
        top_p: float,
        min_p: float,
        seed: int,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        n_last: int = PENALISED,
        logit_bias: Mapping[int, float] | None = None,
        grammar: str | None = None,
        owner: object = None,
    ) -> None:
        self.seed = seed
        self.n_drawn = 0
        self._owner = owner  # it lives as long: a grammar reads its vocabulary
        self._llama = llama
        self._greedy = temp <= 0
        n_vocab: int = llama.llama_vocab_n_tokens(vocab)
        self._ids: npt.NDArray[np.int32] = np.arange(n_vocab, dtype=np.int32)
        self._biased, self._bias = _bias_arrays(logit_bias or {}, n_vocab)
        chains: list[Any] = []
        self._chains = chains
        self._close = free_with(self, lambda: _free(llama, chains))
        # Made first: it is the one that may fail.
        self._grammar = None if grammar is None else self._make_grammar(vocab, grammar)
        self._penalties = self._chain(
            llama.llama_sampler_init_penalties(
                n_vocab, n_last, repeat_penalty, frequency_penalty, presence_penalty
            )
        )
        self._filters = self._chain(
            llama.llama_sampler_init_top_k(top_k),
            llama.llama_sampler_init_typical(typical_p, 1),
            llama.llama_sampler_init_top_p(top_p, 1),
            llama.llama_sampler_init_min_p(min_p, 1),
            llama.llama_sampler_init_temp(temp),
        )

    def _chain(self, *samplers: Any) -> Any:
        llama = self._llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in samplers:
            llama.llama_sampler_chain_add(chain, sampler)
        self._chains.append(chain)
        return chain

    def _make_grammar(self, vocab: Any, grammar: str) -> Any:
        _check_grammar(grammar)
        # llama.cpp takes an empty text for no grammar at all.
        sampler = grammar.strip() and self._llama.llama_sampler_init_grammar(
            vocab, grammar.encode(), b"root"
        )
        if not sampler:
            raise ConfigError(
                "grammar must be GBNF with a rule named root and without left recursion;"
                f" llama.cpp refuses grammar={grammar[:60]!r}"
            )
        return self._chain(sampler)

    def draw(self, logits: F32) -> int:
        """Draw from the logits of the newest token, shape (n_vocab,), which stay as they are.

        Raises
        ------
        ConfigError
            If bias, grammar or the caller's own changes leave no token to draw, or one that is not a number.
        """
        candidates = np.empty(self._ids.size, _CANDIDATE)
        candidates["id"] = self._ids
        candidates["logit"] = logits
        candidates["logit"][self._biased] += self._bias
        _check(candidates)
        self._apply(self._penalties, candidates)
        if self._grammar is not None:
            candidates = self._allowed(candidates)
            _check(candidates)
        token = self._select(candidates)
        self.n_drawn += 1
        self._remember(token)
        return token

    def _allowed(self, candidates: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the candidates that the grammar can go on with."""
        if self._greedy:
            # The likeliest is all that is wanted: the others matter only where it is forbidden.
            likeliest = int(candidates["logit"].argmax())
            best = candidates[likeliest : likeliest + 1].copy()
            self._apply(self._grammar, best)
            if best["logit"][0] > -math.inf:
                return best
        self._apply(self._grammar, candidates)
        allowed: npt.NDArray[Any] = candidates[candidates["logit"] > -math.inf]
        return allowed

    def _select(self, candidates: npt.NDArray[Any]) -> int:
        if self._greedy:
            return int(candidates["id"][candidates["logit"].argmax()])
        # Neighbouring seeds must not give related draws.
        seed = np.random.SeedSequence((self.seed, self.n_drawn)).generate_state(1)[0]
        draw = self._llama.llama_sampler_init_dist(int(seed) % _NO_SEED)
        view = self._apply(self._filters, candidates)
        self._llama.llama_sampler_apply(draw, ctypes.byref(view))
        self._llama.llama_sampler_free(draw)
        return int(view.data[view.selected].id)

    def _apply(self, chain: Any, candidates: npt.NDArray[Any]) -> Any:
        """Run a chain over the candidates in place; the view says how many are left and which is selected."""
        llama = self._llama
        pointer = candidates.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        view = llama.llama_token_data_array(pointer, candidates.size, -1, False)
        llama.llama_sampler_apply(chain, ctypes.byref(view))
        return view

    def accept(self, tokens: Iterable[int]) -> None:
        """Take tokens that another sampler drew for this one's own.

        Raises
        ------
        ConfigError
            If the grammar could not have drawn one of them; those before it are taken.
        """
        for token in tokens:
            if self._grammar is not None:
                # llama.cpp ends the process over a token that its grammar does not expect.
                one = np.array([(token, 0.0, 0.0)], _CANDIDATE)
                self._apply(self._grammar, one)
                if one["logit"][0] == -math.inf:
                    raise ConfigError(f"the grammar does not allow token {token} here")
            self.n_drawn += 1
            self._remember(token)

    def _remember(self, token: int) -> None:
        self._llama.llama_sampler_accept(self._penalties, token)
        if self._grammar is not None:
            self._llama.llama_sampler_accept(self._grammar, token)

    def begin_answer(self) -> None:
        """Let penalties count from here: what earlier answers said may be said again."""
        self._llama.llama_sampler_reset(self._penalties)

    def reset(self) -> None:
        """Start over: the same tokens would be drawn again."""
        self.n_drawn = 0
        for chain in self._chains:
            self._llama.llama_sampler_reset(chain)

    def close(self) -> None:
        """Free the chains; calling it again does nothing."""
        self._close()


def _free(llama: Any, chains: list[Any]) -> None:
    while chains:
        llama.llama_sampler_free(chains.pop())


def _check_grammar(grammar: str) -> None:
    """Refuse what llama.cpp's parser does not survive, or would not see."""
    if found := _NO_TEXT.search(grammar):
        raise ConfigError(
            f"grammar must be text in UTF-8; it holds {found.group()!r} at place {found.start() + 1}"
        )
    depth = n_rules = 0
    for low, high, token, opens, closes, rule in _SIGNS.findall(grammar):
        if token:  # what it lets through and what it can go on from differ: the process would end
            raise ConfigError(
                f"grammar names a token, {token}>, which cannot be had here: write its text as a literal"
            )
        if low and int(high) < int(low):  # it would count up for ever
            raise ConfigError(
                f"grammar repeats something {{{low},{high}}} times: the first number must be the lower one"
            )
        depth += bool(opens) - bool(closes)
        n_rules += bool(rule)
        if depth > _MOST_NESTED or n_rules > _MOST_RULES:
            raise ConfigError(
                f"grammar must have at most {_MOST_RULES} rules and parentheses {_MOST_NESTED} deep:"
                " simplify it, or its JSON schema"
            )


def _bias_arrays(bias: Mapping[int, float], n_vocab: int) -> tuple[npt.NDArray[np.int64], F32]:
    for token, value in bias.items():
        if not 0 <= token < n_vocab:
            raise ConfigError(
                f"logit_bias must name tokens of 0 to {n_vocab - 1}; got logit_bias={{{token}: {value}}}"
            )
        if math.isnan(value) or value == math.inf:
            raise ConfigError(
                "logit_bias must be numbers, or -inf to forbid a token;"
                f" got logit_bias={{{token}: {value}}}"
            )
    return np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)


def _check(candidates: npt.NDArray[Any]) -> None:
    """Refuse logits among which no token can be drawn."""
    best = candidates["logit"].max(initial=-math.inf)
    if best == -math.inf:
        raise ConfigError(
            "no token is left to draw: grammar, logit_bias and logits_processor forbid them all,"
            " the end of the answer included; allow one"
        )
    if not math.isfinite(best):  # NaN is the maximum of whatever holds one
        raise ConfigError(
            f"logits must be numbers or -inf, and one of them is {best}: look at logits_processor"
        )
