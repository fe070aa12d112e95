"""Draws tokens with llama.cpp's filters, so that what a chain would remember is two numbers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

_SEED_MASK: Final = 0xFFFFFFFF


class Sampler:
    """llama.cpp's usual chain: top-k, top-p, min-p, temperature, then a draw; ``temp`` 0 takes the likeliest.

    llama.cpp shows nothing of the random state inside its chains, so every token is
    drawn with a seed of its own, made from ``seed`` and the number of tokens drawn before:
    these two are the whole state, and a saved conversation goes on as if it had not stopped.

    Parameters
    ----------
    llama : ctypes.CDLL
        The loaded library.
    temp, top_k, top_p, min_p : float
        As in llama.cpp.
    seed : int
        0 to 2**32 - 1.
    """

    def __init__(
        self, llama: Any, *, temp: float, top_k: int, top_p: float, min_p: float, seed: int
    ) -> None:
        self.seed = seed
        self.n_drawn = 0
        self._llama = llama
        self._greedy = temp <= 0
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if self._greedy:
            filters = [llama.llama_sampler_init_greedy()]
        else:
            filters = [
                llama.llama_sampler_init_top_k(top_k),
                llama.llama_sampler_init_top_p(top_p, 1),
                llama.llama_sampler_init_min_p(min_p, 1),
                llama.llama_sampler_init_temp(temp),
                llama.llama_sampler_init_dist(seed & _SEED_MASK),
            ]
        for one in filters:
            llama.llama_sampler_chain_add(self._chain, one)

    def draw(self, ctx: Any) -> int:
        """Draw from the logits of a context's newest token."""
        llama, chain = self._llama, self._chain
        if not self._greedy:
            last = llama.llama_sampler_chain_n(chain) - 1
            llama.llama_sampler_free(llama.llama_sampler_chain_remove(chain, last))
            # Neighbouring seeds must not give related draws.
            seed = np.random.SeedSequence((self.seed, self.n_drawn)).generate_state(1)[0]
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(int(seed)))
        token: int = llama.llama_sampler_sample(chain, ctx, -1)
        self.n_drawn += 1
        return token

    def reset(self) -> None:
        """Start over: the same tokens would be drawn again."""
        self.n_drawn = 0

    def close(self) -> None:
        """Free the chain; calling it again does nothing."""
        if self._chain is not None:
            self._llama.llama_sampler_free(self._chain)
            self._chain = None
