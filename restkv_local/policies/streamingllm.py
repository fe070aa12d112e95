"""StreamingLLM: keep the first tokens and the newest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from restkv_local.policies.fifo import Fifo


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Fifo):
    """Newer is better, except for the first tokens, which the planner protects.

    The paper caches keys before RoPE and counts positions inside the cache;
    that is compact positions here, and a choice of the session.

    References
    ----------
    .. [1] Xiao et al., "Efficient Streaming Language Models with Attention
       Sinks", 2023, arXiv:2309.17453.
    """

    name: ClassVar[str] = "streamingllm"
    summary: ClassVar[str] = "the first tokens and the newest ones"
    source: ClassVar[str] = "Xiao et al., StreamingLLM, 2023, arXiv:2309.17453"
    keeps_sinks: ClassVar[bool] = True
